"""pytest's side of a verification: what suites receive, which checks a worker makes, and how each one ended."""

from __future__ import annotations

import inspect
import signal
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml

from onprem_mlops.errors import MlopsError
from onprem_mlops.paths import REPOSITORY
from onprem_mlops.shell import Unreachable
from onprem_mlops.site import Site
from onprem_mlops.site.role import RoleSettings
from onprem_mlops.verify.backend import NodeHost
from onprem_mlops.verify.cluster import Cluster
from onprem_mlops.verify.controller import Controller
from onprem_mlops.verify.nodes import Nodes
from onprem_mlops.verify.outcomes import DoesNotApply, NotChecked
from onprem_mlops.verify.results import SITE, Check, Outcome
from onprem_mlops.verify.selection import Unit

FOUND = "found"
"""What a check that holds has measured, if that is worth telling: ``record_property("found", "cp1: 7 ms")``."""

CHECK_SECONDS = 60
"""How long one check may take, fixtures included. ``@pytest.mark.limit(seconds)`` says otherwise."""

MARKERS = (
    "on(*groups): make the check only on nodes of these groups",
    "controls(*names): requirements of standards that the check is evidence for",
    "limit(seconds): how long the check may take",
)


class OutOfTime(BaseException):
    """A check outlasted its limit. Not an Exception, so that no suite catches it by accident."""


class VerifyPlugin:
    """One worker's part of a verification: one unit, reported check by check to ``report``."""

    def __init__(self, site: Site, unit: Unit, report: Callable[[Check], None]) -> None:
        self._site = site
        self._unit = unit
        self._report = report
        self._roles = {path: suite.role for suite in unit.suites for path in suite.files}
        self._nodes = Nodes(site)
        self.broken: list[str] = []

    # What suites receive

    @pytest.fixture(scope="session")
    def site(self) -> Site:
        """The site file."""
        return self._site

    @pytest.fixture(scope="module")
    def settings(self, request: pytest.FixtureRequest) -> RoleSettings:
        """The settings of the role whose suite this is."""
        return self._site.settings(self._roles[Path(str(request.path))])

    @pytest.fixture(scope="session")
    def nodes(self) -> Mapping[str, NodeHost]:
        """Every node by name; connected on first use."""
        return self._nodes

    @pytest.fixture
    def node(self) -> NodeHost:
        """The node that is verified. A check that takes it is made on each node of the role, else once for the site."""
        return self._nodes[self._unit.node]

    @pytest.fixture(scope="session")
    def versions(self) -> Mapping[str, str]:
        """The version of each artifact in the catalogue."""
        catalogue = yaml.load((REPOSITORY / "artifacts" / "catalogue.yaml").read_text(), yaml.CSafeLoader)
        return {name: str(entry["version"]) for name, entry in catalogue["artifacts"].items()}

    @pytest.fixture(scope="session")
    def controller(self) -> Controller:
        """This machine as a client of the site."""
        return Controller(self._site)

    @pytest.fixture(scope="session")
    def cluster(self) -> Cluster:
        """The Kubernetes API with the administrator's kubeconfig. NotChecked if it does not answer."""
        planes = self._site.in_group("control_plane")
        if not planes:
            raise DoesNotApply("this site has no cluster")
        cluster = Cluster.of_site(self._site)
        cluster.require(str(node.address) for node in planes)
        return cluster

    # Which checks this worker makes

    def pytest_configure(self, config: pytest.Config) -> None:
        for marker in MARKERS:
            config.addinivalue_line("markers", marker)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self._concerns(item)]

    def _concerns(self, item: pytest.Item) -> bool:
        of_node = "node" in getattr(item, "fixturenames", ())
        if self._unit.node == SITE or not of_node:
            return self._unit.node == SITE and not of_node
        marker = item.get_closest_marker("on")
        return marker is None or not set(marker.args).isdisjoint(self._site.node(self._unit.node).groups)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken.append(f"{report.nodeid}: {report.longreprtext[-2000:]}")

    # How each one ended

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        marker = item.get_closest_marker("limit")
        seconds = marker.args[0] if marker else CHECK_SECONDS
        previous = signal.signal(signal.SIGALRM, _out_of_time)
        signal.alarm(seconds)
        try:
            return (yield)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when == "setup":
            item.stash[_SETUP_SECONDS] = call.duration
        if call.when == "call" or call.excinfo is not None:
            self._report(self._check(item, call))
        return report

    def pytest_sessionfinish(self) -> None:
        self._nodes.close()

    def _check(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Check:
        role = self._roles[Path(str(item.path))]
        name, what_to_do = sentence(item)
        if call.excinfo is not None and isinstance(call.excinfo.value, OutOfTime):
            # A shell may still be busy with this check's command, and would keep the next check waiting.
            self._nodes.close()
        outcome, message, advice = judged(call.excinfo.value if call.excinfo else None)
        if call.when == "teardown":
            name = f"{name} (cleaning up after it)"
        if outcome == "passed":
            message = "; ".join(str(value) for key, value in item.user_properties if key == FOUND)
        if outcome == "failed":
            advice = what_to_do or self._restore(role)
        return Check(
            role=role,
            node=self._unit.node,
            name=name,
            outcome=outcome,
            message=message,
            advice=advice,
            seconds=round(call.duration + item.stash.get(_SETUP_SECONDS, 0.0), 3),
            controls=tuple(name for marker in item.iter_markers("controls") for name in marker.args),
        )

    def _restore(self, role: str) -> str:
        # A phase's own suite goes by the phase's name.
        what = f"--role {role}" if self._site.is_on(role) else role
        only = f" --node {self._unit.node}" if self._unit.node else ""
        return f"`./mlops deploy {what}{only}` lays down again what the site file says."


_SETUP_SECONDS = pytest.StashKey[float]()


def sentence(item: pytest.Item) -> tuple[str, str]:
    """What a check says, and what to do if it does not hold: first and further paragraphs of its docstring."""
    written = inspect.getdoc(getattr(item, "function", None)) or item.name
    first, _, rest = written.partition("\n\n")
    name = " ".join(first.split()).removesuffix(".")
    case = getattr(item, "callspec", None)
    return (f"{name} [{case.id}]" if case is not None else name), " ".join(rest.split())


def judged(error: BaseException | None) -> tuple[Outcome, str, str]:
    """Outcome, message and advice of a check that ended with ``error``."""
    match error:
        case None:
            return "passed", "", ""
        case NotChecked():
            return "not_checked", error.message, error.advice
        case Unreachable():
            return "not_checked", error.message, error.advice
        case DoesNotApply() | pytest.skip.Exception():
            return "does_not_apply", str(error), ""
        case FileNotFoundError(filename=str() | Path()):
            what_to_do = "`./mlops deploy` makes or fetches what belongs on this machine."
            return "not_checked", f"{error.filename} does not exist on this machine", what_to_do
        case MlopsError():
            return "failed", error.message, ""
        case AssertionError():
            return "failed", str(error) or f"an assertion without a message: {_last_line(error)}", ""
        case OutOfTime():
            return "failed", "no answer within the check's time limit", ""
        case _:
            return "failed", f"{type(error).__name__}: {error} ({_last_line(error)})", ""


def _last_line(error: BaseException) -> str:
    traceback = error.__traceback__
    place = ""
    while traceback is not None:
        place = f"{Path(traceback.tb_frame.f_code.co_filename).name}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place


def _out_of_time(signum: int, frame: FrameType | None) -> None:
    raise OutOfTime


def run_pytest(plugin: VerifyPlugin, files: Iterator[Path], root: Path) -> int:
    """Run pytest over the files of a unit, without its output, caches or other plugins. Returns its exit status."""
    arguments: list[Any] = [
        *("-c", str(Path(__file__).with_name("pytest.ini")), "--rootdir", str(root)),
        *("-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:faulthandler"),
        *("--import-mode=importlib", "--assert=plain", "--strict-markers"),
        *(str(path) for path in files),
    ]
    return int(pytest.main(arguments, plugins=[plugin]))
