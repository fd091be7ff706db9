"""One run on one site: its lock, its log, its artifacts, secrets and certificates, and the engine."""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onprem_mlops.artifacts.publish import StorePublisher
from onprem_mlops.engine.results import RunResult
from onprem_mlops.engine.run import Run
from onprem_mlops.errors import MlopsError, RequestError
from onprem_mlops.events import Event, Listener, to_all
from onprem_mlops.plan import Graph, PlannedStep, admissions
from onprem_mlops.site import Node, Site
from onprem_mlops.site.material import SiteMaterial, authority_pem
from onprem_mlops.site.safe_file import private_folder
from onprem_mlops.steps import Context, Material, Published


@dataclass(frozen=True, slots=True)
class Work:
    """What a run is to do. `remove_data` only matters to removals."""

    site: Site
    graph: Graph
    phase: str
    planning: bool
    remove_data: bool = False

    @property
    def admissions(self) -> tuple[PlannedStep, ...]:
        """What is asked of nodes first; nothing in a removal, which is the way out for a node that is not fit."""
        removing = any(hasattr(one.step.function, "__removal__") for one in self.graph)
        return () if removing else admissions(self.site)


def carry_out(work: Work, listener: Listener) -> RunResult:
    """Run a graph on a site. A plan takes no lock and changes nothing, on nodes or here.

    Raises RequestError if somebody else's run holds the site, a node shows a wrong host key, or a role refuses one.
    """
    authority_pem(work.site)  # refused without one, before anything is written here
    with ExitStack() as stack:
        if not work.planning:
            stack.enter_context(site_lock(work.site))
        path = _log_path(work)
        log = stack.enter_context(_log(path))
        material = SiteMaterial(work.site, planning=work.planning)
        run = Run(
            work.site,
            work.graph,
            context_maker(work, StorePublisher(work.site), material),
            to_all((log, listener)),
            phase=work.phase,
            planning=work.planning,
            admissions=work.admissions,
            redact=material.redact,
        )
        run.result.log = path
        return run.execute()


def context_maker(work: Work, artifacts: Published, material: Material) -> Callable[[PlannedStep, Node], Context[Any]]:
    """What makes the context of a step on a node; what is the same for all nodes is worked out once."""
    site = work.site
    names = site.names
    openings = {
        node.name: tuple(one for settings in site.role_settings.values() for one in settings.openings(site, node))
        for node in site.nodes
    }

    def make(planned: PlannedStep, node: Node) -> Context[Any]:
        return Context(
            site=site,
            node=node,
            role=planned.role.name,
            settings=site.settings(planned.role.name),
            folder=planned.role.folder,
            artifacts=artifacts,
            material=material,
            planning=work.planning,
            site_openings=openings,
            names=names,
            state=site.state,
            remove_data=work.remove_data,
        )

    return make


@contextmanager
def site_lock(site: Site) -> Iterator[None]:
    """Hold the site on this machine. Raises RequestError naming the holder; a killed holder's lock is free at once."""
    with (private_folder(site.state) / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = json.loads(file.read() or "{}")
            since = time.strftime("%H:%M:%S", time.localtime(holder.get("since", time.time())))
            raise RequestError(
                f"site {site.name} is held by {holder.get('user', 'somebody')} on {holder.get('host', 'this machine')} "
                f"(process {holder.get('pid', 'unknown')}) since {since}",
                "Wait for that run to end, or stop it.",
            ) from None
        file.truncate(0)
        holder = {"user": getpass.getuser(), "host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        file.write(json.dumps(holder))
        file.flush()
        yield


def _log_path(work: Work) -> Path:
    """`run.jsonl` in a folder of its own, readable by its owner only."""
    stamp = time.strftime("%Y%m%dT%H%M%S")
    runs = private_folder(private_folder(work.site.state) / "runs")
    folder = private_folder(runs / f"{stamp}-{'plan' if work.planning else 'deploy'}-{os.getpid()}")
    _forget_old(runs)
    return folder / "run.jsonl"


@contextmanager
def _log(path: Path) -> Iterator[Listener]:
    """Write every event of the run, a line each."""
    # Unbuffered: what a full disk did not take must not fail a second time when the file is closed.
    with path.open("wb", buffering=0) as file:

        def write(event: Event) -> None:
            try:
                file.write(json.dumps(event.record()).encode() + b"\n")
            except OSError as error:
                raise MlopsError(
                    f"the run's log {path} cannot be written ({error.strerror}); the run has stopped",
                    "Make room on this machine, then run the same command again: it goes on from here.",
                ) from error

        yield write


KEPT_RUNS = 200
"""Logs of runs that are kept; older ones go."""


def _forget_old(runs: Path) -> None:
    # Plans take no lock: another one may be forgetting the same logs.
    for folder in sorted(runs.iterdir())[:-KEPT_RUNS]:
        shutil.rmtree(folder, ignore_errors=True)
