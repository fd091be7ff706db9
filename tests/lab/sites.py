"""Sites for tests: a copy of a lab's site file with a name, a subnet and a bridge of its own, and how to run it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from onprem_mlops import lab
from onprem_mlops.artifacts import Store
from onprem_mlops.paths import REPOSITORY, site_state
from onprem_mlops.site import load_site

MLOPS = str(REPOSITORY / "mlops")

HANGS_SECONDS = 2400
"""After this a command is taken for one that never ends. A busy machine takes its time, above all beside a compiler."""

CLUSTER = ("node", "firewall", "mirror", "containerd", "kubernetes", "network")
"""The roles of a cluster, without the services beside it."""


@dataclass(frozen=True)
class Done:
    """A command of ours that ended: exit code, both streams together, seconds."""

    code: int
    output: str
    seconds: float

    def must(self, code: int = 0) -> Done:
        """Fail the test with the whole output unless the exit code is this."""
        assert self.code == code, f"exit code {self.code} instead of {code} after {self.seconds:.0f} s\n{self.output}"
        return self


@dataclass(frozen=True)
class TestSite:
    """A lab of its own below `folder`."""

    __test__ = False
    name: str
    folder: Path

    @classmethod
    def copy(
        cls, of: str, name: str, subnet: int, folder: Path, roles: tuple[str, ...], without: tuple[str, ...] = ()
    ) -> TestSite:
        """Copy `inventories/<of>` as site `name` in 10.77.<subnet>.0/24.

        Args:
            of: name of the inventory.
            name: of the new site.
            subnet: third byte of its addresses.
            folder: below which it comes to lie.
            roles: the only ones that it has; none: all.
            without: nodes that it does not have.
        """
        source = REPOSITORY / "inventories" / of
        target = folder / name
        shutil.copytree(source, target)
        text = (source / "site.yaml").read_text()
        text = re.sub(r"^name: .*$", f"name: {name}", text, flags=re.MULTILINE)
        text = re.sub(r"^domain: .*$", f"domain: {name}.mlops.test", text, flags=re.MULTILINE)
        text = re.sub(r"10\.77\.\d+\.", f"10.77.{subnet}.", text)
        text = re.sub(r"bridge: .*$", f"bridge: brt{subnet}", text, flags=re.MULTILINE)
        (target / "site.yaml").write_text(_with(text, roles, without) if roles or without else text)
        return cls(name, target)

    @property
    def spec(self) -> lab.LabSpec:
        return lab.LabSpec.from_site(load_site(self.folder))

    def command(self, *words: str) -> list[str]:
        """Our command line for this site. `-i` stands before a `--`."""
        at = words.index("--") if "--" in words else len(words)
        return [MLOPS, *words[:at], "-i", str(self.folder), *words[at:]]

    def run(self, *words: str, timeout: float = HANGS_SECONDS, stdin: str | None = None) -> Done:
        return _done(self.command(*words), timeout=timeout, input=stdin)

    def json(self, *words: str, code: int = 0, timeout: float = HANGS_SECONDS) -> dict[str, Any]:
        """Run with `--json` and give what it wrote."""
        result = self.folder / "result.json"
        result.unlink(missing_ok=True)
        self.run(*words, "--json", str(result), timeout=timeout).must(code)
        found: dict[str, Any] = json.loads(result.read_text())
        return found

    def on(self, node: str, command: str, *, check: bool = True) -> str:
        """Run a command as root on a node over SSH, beside the engine."""
        spec = self.spec
        line = lab.ssh_command(spec, spec.node(node), f"sudo -n sh -c {_quote(command)}")
        done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
        assert not check or done.returncode == 0, f"{node}: {command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def kubectl(self, *words: str, code: int = 0) -> str:
        """What the site's kubectl says, not by way of `./mlops kubectl`: that takes a second to begin, many times."""
        binary = Store().file("kubernetes", "kubectl").path
        environment = {**os.environ, "KUBECONFIG": str(site_state(self.name) / "kubeconfig")}
        done = _done(["kubectl", *words], timeout=HANGS_SECONDS, executable=binary, env=environment)
        return done.must(code).output

    def deploying(self, *words: str) -> Deploying:
        """A deploy in the background, whose events can be followed."""
        return Deploying(self, words or ("infrastructure",))


def _done(command: list[str], **options: Any) -> Done:
    """Run a command to its end."""
    begun = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)
    return Done(done.returncode, done.stdout, time.monotonic() - begun)


def _with(text: str, roles: tuple[str, ...], without: tuple[str, ...]) -> str:
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 4096
    written = yaml.load(text)
    written["nodes"] = [node for node in written["nodes"] if node["name"] not in without]
    if roles:
        written["roles"] = list(roles)
        for off in set(written["settings"]) - set(roles):
            del written["settings"][off]
    out = io.StringIO()
    yaml.dump(written, out)
    return out.getvalue()


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"


class Deploying:
    """A deploy that runs; its `run.jsonl` is followed."""

    def __init__(self, site: TestSite, words: tuple[str, ...]) -> None:
        runs = site_state(site.name) / "runs"
        before = set(runs.iterdir()) if runs.exists() else set()
        self.process = subprocess.Popen(
            site.command("deploy", *words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._log = self._find(runs, before)

    def _find(self, runs: Path, before: set[Path]) -> Path:
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            new = (set(runs.iterdir()) if runs.exists() else set()) - before
            for folder in new:
                if (folder / "run.jsonl").exists():
                    return folder / "run.jsonl"
            time.sleep(0.01)
        output = self.process.communicate()[0] if self.process.poll() is not None else "no log after 60 s"
        raise AssertionError(f"the deploy did not begin: {output}")

    def events(self) -> Iterator[dict[str, Any]]:
        """Events as they happen, until the run ends."""
        with self._log.open() as file:
            line = ""
            while True:
                # A line may be read while it is being written: what is there of it is kept.
                line += file.readline()
                if line.endswith("\n"):
                    yield json.loads(line)
                    line = ""
                elif self.process.poll() is not None:
                    return
                else:
                    time.sleep(0.005)

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
        """The first event that is wanted; None if the run ended before."""
        return next((event for event in self.events() if wanted(event)), None)

    def signal(self, number: signal.Signals) -> Done:
        """Send a signal to the deploy, and wait for its end."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self, timeout: float = HANGS_SECONDS) -> Done:
        begun = time.monotonic()
        output, _ = self.process.communicate(timeout=timeout)
        return Done(self.process.returncode, output, time.monotonic() - begun)


def _free_subnet() -> int:
    """A third byte of 10.77.x.0/24 whose bridge no lab on this machine has, be it one that an aborted test left."""
    # Each process begins elsewhere, so that two that start together do not meet.
    choice = [200 + (os.getpid() + at) % 30 for at in range(30)]
    return next(one for one in choice if not Path(f"/sys/class/net/brt{one}").exists())


@contextmanager
def made(
    of: str,
    name: str,
    folder: Path,
    *,
    roles: tuple[str, ...] = CLUSTER,
    without: tuple[str, ...] = (),
    booted: bool = True,
) -> Iterator[TestSite]:
    """A site whose nodes are booted (nothing laid down), gone at the end. By default without services: it is quick."""
    site = TestSite.copy(of, f"{name}-{os.getpid()}", _free_subnet(), folder, roles, without)
    try:
        if booted:
            site.run("lab", "up", "--nodes-only").must()
        yield site
    finally:
        site.run("lab", "destroy", "--yes-destroy", site.name).must()
        assert not site_state(site.name).exists()
