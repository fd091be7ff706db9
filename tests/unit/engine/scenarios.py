"""Scenarios for the engine, each run in a process of its own that gevent has patched first."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import hashlib  # noqa: E402
import io  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import tarfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from types import SimpleNamespace  # noqa: E402
from typing import Any, cast  # noqa: E402

import gevent  # noqa: E402
from pyinfra.api.exceptions import ConnectError  # noqa: E402
from pyinfra.connectors.local import LocalConnector  # noqa: E402

from onprem_mlops.engine.facts import file_state, probe  # noqa: E402
from onprem_mlops.engine.operations import files, shell  # noqa: E402
from onprem_mlops.engine.results import RunResult  # noqa: E402
from onprem_mlops.engine.run import Run  # noqa: E402
from onprem_mlops.errors import MlopsError, RequestError  # noqa: E402
from onprem_mlops.events import Event, Listener, StepDone, StepStarted, to_all  # noqa: E402
from onprem_mlops.plan import Graph, PlannedStep  # noqa: E402
from onprem_mlops.site import Hidden, Node, Site  # noqa: E402
from onprem_mlops.site.role import Role  # noqa: E402
from onprem_mlops.steps import Context, PublishedFile, Step, StepFunction, step, steps_of  # noqa: E402

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0000000000000000000000000000000000000000000"
NODES = tuple(
    Node.model_construct(name=name, address=address, groups=("all",), host_key=KEY)
    for name, address in (("n1", "10.77.9.1"), ("n2", "10.77.9.2"))
)
SITE = Site.model_construct(name="test", nodes=NODES)
ROLE = Role("demo", Path(), "demo", cast("Any", None))
USER, GROUP = Path("/").owner(), Path("/").group()


class Ran:
    """A run's result and the events that it told."""

    def __init__(self, result: RunResult, events: list[Event]) -> None:
        self.result = result
        self.events = events

    def changes(self) -> list[tuple[str, str, str]]:
        return sorted((one.step, one.node, change.operation) for one in self.result.steps for change in one.changes)


class FirstIsLost(LocalConnector):
    """n1 cannot be reached."""

    def connect(self) -> None:
        if self.host.name == "n1":
            raise ConnectError("no route to n1")
        super().connect()


def run(
    *functions: StepFunction,
    planning: bool = False,
    folder: Path,
    connector: type[LocalConnector] = LocalConnector,
    listener: Listener = lambda event: None,
    admissions: tuple[PlannedStep, ...] = (),
) -> Ran:
    """Run step functions as the steps of a role on both nodes (or the first one)."""
    steps: tuple[Step, ...] = steps_of(SimpleNamespace(**{one.__name__: one for one in functions}))
    planned = tuple(
        PlannedStep(
            f"demo.{one.name}",
            ROLE,
            one,
            NODES[:1] if one.only == "first" else NODES,
            frozenset(f"demo.{name}" for name in (*one.inputs, *one.after)),
            frozenset(),
        )
        for one in steps
    )
    events: list[Event] = []

    def context(planned: PlannedStep, node: Node) -> Context[Any]:
        own = folder / node.name
        own.mkdir(exist_ok=True)
        return cast("Context[Any]", SimpleNamespace(node=node, folder=own, planning=planning))

    tell = to_all((listener, events.append))
    engine = Run(
        SITE,
        Graph(planned),
        context,
        tell,
        phase="test",
        planning=planning,
        connector=connector,
        admissions=admissions,
    )
    return Ran(engine.execute(), events)


def plan_then_deploy(folder: Path) -> None:
    @step(on="all")
    def lay_down(ctx: Context[Any]) -> None:
        files.directory("data folder", f"{ctx.folder}/data", mode="750", owner=USER, group=GROUP)
        files.content("setting", f"{ctx.folder}/data/setting", "a = 1\n", mode="640", owner=USER, group=GROUP)
        shell.run("count", f"echo x >>{ctx.folder}/count", unless=f"test -e {ctx.folder}/count")

    planned = run(lay_down, planning=True, folder=folder)
    assert not list((folder / "n1").iterdir()), "the plan wrote something"
    assert planned.result.changed == 6
    diff = planned.result.steps[0].changes[1].diffs[0]
    assert (diff.before, diff.after) == (None, "a = 1\n")
    done = run(lay_down, folder=folder)
    assert done.changes() == planned.changes()
    setting = folder / "n2" / "data" / "setting"
    assert setting.read_text() == "a = 1\n"
    assert oct(setting.stat().st_mode)[-3:] == "640"
    assert run(lay_down, planning=True, folder=folder).result.changed == 0
    setting.write_text("a = 2\n")
    drift = run(lay_down, planning=True, folder=folder)
    assert drift.changes() == [("demo.lay_down", "n2", "setting")]
    assert [one.diffs[0].before for step in drift.result.steps for one in step.changes] == ["a = 2\n"]


def second_run(folder: Path) -> None:
    @step(on="all")
    def lay_down(ctx: Context[Any]) -> None:
        files.content("file", f"{ctx.folder}/file", b"\x00\xff", owner=USER, group=GROUP)
        files.link("link", f"{ctx.folder}/link", "file")
        files.content("empty", f"{ctx.folder}/empty", "", owner=USER, group=GROUP)
        files.absent("nothing", f"{ctx.folder}/nothing")

    assert run(lay_down, folder=folder).result.changed == 6
    again = run(lay_down, folder=folder)
    assert again.result.changed == 0
    assert [one.operations for one in again.result.steps] == [4, 4]
    assert (folder / "n1" / "link").read_bytes() == b"\x00\xff"


def values(folder: Path) -> None:
    @step(on="all", only="first")
    def token(ctx: Context[Any]) -> str:
        return shell.run("make token", f"echo t0ken | tee {ctx.folder}/token", unless="false").stdout

    @step(on="all")
    def names(ctx: Context[Any]) -> str:
        return ctx.node.name

    @step(on="all")
    def use(ctx: Context[Any], token: str, names: dict[str, str]) -> None:
        files.content("before", f"{ctx.folder}/before", "known", owner=USER, group=GROUP)
        files.content("uses", f"{ctx.folder}/uses", f"{token} {sorted(names.values())}", owner=USER, group=GROUP)

    planned = run(token, names, use, planning=True, folder=folder)
    assert {one.note for one in planned.result.steps if one.outcome == "later"} == {"after demo.token"}
    assert ("demo.use", "n2", "before") in planned.changes()
    assert run(token, names, use, folder=folder).result.ok
    assert (folder / "n2" / "uses").read_text() == "t0ken ['n1', 'n2']"


def failure(folder: Path) -> None:
    @step(on="all")
    def break_one(ctx: Context[Any]) -> None:
        command = "echo no space >&2; exit 7" if ctx.node.name == "n1" else f"touch {ctx.folder}/done"
        shell.run("work", command, unless="false")

    @step(on="all", after=("break_one",))
    def follow(ctx: Context[Any]) -> None:
        files.content("follow", f"{ctx.folder}/follow", "x", owner=USER, group=GROUP)

    ran = run(break_one, follow, folder=folder)
    assert ran.result.failed == ("n1",)
    assert not ran.result.ok
    failed = next(one for one in ran.events if one.kind == "step_failed").record()
    assert failed["node"] == "n1"
    assert failed["operation"] == "work"
    assert "exit 7" in failed["command"]
    assert failed["output"] == "no space"
    assert failed["advice"]
    assert (folder / "n2" / "done").exists(), "the other node did not finish the step"
    assert not (folder / "n2" / "follow").exists(), "the run did not stop"
    assert {one.node for one in ran.result.steps if one.outcome == "skipped"} == {"n1", "n2"}


def lost_node(folder: Path) -> None:
    ran: list[tuple[str, str]] = []

    @step(on="all")
    def everywhere(ctx: Context[Any]) -> None:
        ran.append(("everywhere", ctx.node.name))

    @step(on="all", only="first")
    def its_disk(ctx: Context[Any]) -> None:
        ran.append(("its_disk", ctx.node.name))

    @step(on="all", only="any", after=("everywhere",))
    def of_the_cluster(ctx: Context[Any]) -> str:
        ran.append(("of_the_cluster", ctx.node.name))
        return ctx.node.name

    @step(on="all")
    def after_it(ctx: Context[Any], of_the_cluster: str) -> None:
        ran.append((f"after_it ran on {of_the_cluster}", ctx.node.name))

    @step(on="all", after=("its_disk",))
    def after_the_disk(ctx: Context[Any]) -> None:
        ran.append(("after_the_disk", ctx.node.name))

    steps = (everywhere, its_disk, of_the_cluster, after_it, after_the_disk)
    result = run(*steps, folder=folder, connector=FirstIsLost).result
    assert sorted(ran) == [("after_it ran on n2", "n2"), ("everywhere", "n2"), ("of_the_cluster", "n2")]
    assert list(result.unreachable) == ["n1"]
    assert not result.ok
    skipped = {(one.step, one.node): one.note for one in result.steps if one.outcome == "skipped"}
    assert skipped["demo.its_disk", "n1"] == "n1 could not be reached"
    assert skipped["demo.after_the_disk", "n2"] == "it needs demo.its_disk, which did not run"
    assert ("demo.of_the_cluster", "n1") not in skipped
    ran.clear()
    assert run(*steps, folder=folder).result.ok
    assert [node for name, node in ran if name == "of_the_cluster"] == ["n1"]


def defect(folder: Path) -> None:
    @step(on="all")
    def broken(ctx: Context[Any]) -> None:
        if ctx.node.name == "n1":
            raise KeyError("no such setting")

    ran = run(broken, folder=folder)
    assert ran.result.failed == ("n1",)
    assert "KeyError" in next(one for one in ran.events if one.kind == "step_failed").record()["output"]


def full_disk_here(folder: Path) -> None:
    @step(on="all")
    def work(ctx: Context[Any]) -> None:
        shell.run("work", "true", unless="false")

    @step(on="all", after=("work",))
    def follow(ctx: Context[Any]) -> None:
        raise AssertionError("the run went on")

    for kind in (StepStarted, StepDone):

        def write(event: Event, kind: type[Event] = kind) -> None:
            if isinstance(event, kind) and getattr(event, "node", "") == "n1":
                raise OSError(28, "No space left on device")

        with gevent.Timeout(10):
            try:
                run(work, follow, folder=folder, listener=write)
            except OSError as error:
                assert error.errno == 28
            else:
                raise AssertionError("nobody would know what the run did")


def refused_node(folder: Path) -> None:
    def fit(ctx: Context[Any]) -> None:
        if ctx.node.name == "n2":
            raise MlopsError(f"{ctx.node.name} runs {probe('echo Ubuntu').text}", "Install Debian.")

    @step(on="all", only="first")
    def work(ctx: Context[Any]) -> None:
        raise AssertionError("a node was touched")

    asked = PlannedStep("demo.fit", ROLE, Step("fit", fit, ("all",), None, (), 1), NODES, frozenset(), frozenset())

    @step(on="all")
    def more(ctx: Context[Any]) -> None:
        raise AssertionError("a node was touched")

    try:
        run(work, more, folder=folder, admissions=(asked,))
    except RequestError as error:
        assert error.message == "n2 runs Ubuntu"
        assert error.advice == "Install Debian. Nothing was changed."
    else:
        raise AssertionError("the node was not refused")


def memory(folder: Path) -> None:
    seen: list[str] = []

    @step(on="all", only="first")
    def read(ctx: Context[Any]) -> None:
        path = f"{ctx.folder}/file"
        seen.append(file_state(path).kind)
        Path(path).write_text("behind its back")
        seen.append(file_state(path).kind)
        files.content("other", f"{ctx.folder}/other", "x", owner=USER, group=GROUP)
        seen.append(file_state(path).kind)

    run(read, folder=folder)
    assert seen == ["absent", "absent", "file"]


def files_of_others(folder: Path) -> None:
    @step(on="all", only="first")
    def lay_down(ctx: Context[Any]) -> None:
        files.set_aside("sources", f"{ctx.folder}/sources")
        files.block("names", f"{ctx.folder}/hosts", "192.0.2.1 n1\n")

    @step(on="all", only="first")
    def remove(ctx: Context[Any]) -> None:
        files.block("no names", f"{ctx.folder}/hosts", "")
        files.brought_back("sources", f"{ctx.folder}/sources")

    hosts, sources = folder / "n1" / "hosts", folder / "n1" / "sources"
    hosts.parent.mkdir()
    hosts.write_bytes(b"127.0.0.1 localhost # M\xfcller\n")
    sources.write_text("first\n")
    refused = run(lay_down, folder=folder)
    assert hosts.read_bytes() == b"127.0.0.1 localhost # M\xfcller\n"
    assert f"{hosts} is no text" in next(one for one in refused.events if one.kind == "step_failed").record()["output"]
    hosts.write_text("127.0.0.1 localhost\n")
    sources.write_text("made anew\n")
    assert run(lay_down, folder=folder).result.ok
    assert not sources.exists()
    assert "192.0.2.1 n1" in hosts.read_text()
    assert run(remove, folder=folder).result.ok
    assert (hosts.read_text(), sources.read_text()) == ("127.0.0.1 localhost\n", "first\n")


def umask(folder: Path) -> None:
    @step(on="all", only="first")
    def lay_down(ctx: Context[Any]) -> None:
        files.content("file", f"{ctx.folder}/a/b/file", "x", owner=USER, group=GROUP)

    os.umask(0o077)
    assert run(lay_down, folder=folder).result.ok
    found = {str(path.relative_to(folder / "n1")): oct(path.stat().st_mode)[-3:] for path in folder.rglob("n1/a/**/*")}
    assert found == {"a/b": "755", "a/b/file": "644"}
    assert oct((folder / "n1" / "a").stat().st_mode)[-3:] == "755"


def downloads(folder: Path) -> None:
    curl = folder / "bin" / "curl"
    curl.parent.mkdir()
    os.environ["PATH"] = f"{curl.parent}:{os.environ['PATH']}"
    source = PublishedFile("https://mirror.test/x", "x", hashlib.sha256(b"right\n").hexdigest(), 6, "1")

    @step(on="all", only="first")
    def fetch(ctx: Context[Any]) -> None:
        files.download("tool", f"{ctx.folder}/bin/tool", source, authority="/ca.pem")

    def output(script: str) -> str:
        curl.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; {script}\n')
        curl.chmod(0o755)
        failed = [one for one in run(fetch, folder=folder).events if one.kind == "step_failed"]
        assert [path.name for path in (folder / "n1" / "bin").iterdir()] == ([] if failed else ["tool"])
        return str(failed[0].record()["output"]) if failed else ""

    assert output("echo 'curl: (7) Failed to connect' >&2; exit 7") == "curl: (7) Failed to connect"
    assert output("echo wrong >$2") == f"not the file that the catalogue pins: {source.sha256}"
    assert output("echo right >$2") == ""


def archives(folder: Path) -> None:
    curl = folder / "bin" / "curl"
    curl.parent.mkdir()
    os.environ["PATH"] = f"{curl.parent}:{os.environ['PATH']}"
    curl.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; cp {folder}/archive.tar $2\n')
    curl.chmod(0o755)
    target = folder / "n1" / "bin" / "assets"

    def lay_down(content: dict[str, str], *, pinned: bool = True) -> Ran:
        with tarfile.open(folder / "archive.tar", "w") as tar:
            for name, text in content.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text.encode()))
        digest = hashlib.sha256((folder / "archive.tar").read_bytes()).hexdigest() if pinned else "0" * 64
        source = PublishedFile("https://mirror.test/x", "x", digest, 6, "1")

        @step(on="all", only="first")
        def fetch(ctx: Context[Any]) -> None:
            files.unpacked("assets", f"{ctx.folder}/bin/assets", source, authority="/ca.pem")

        return run(fetch, folder=folder)

    def there() -> set[str]:
        return {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}

    assert lay_down({"a/one": "1", "two": "2"}).result.ok
    listing = f"{files.MARKER}.listing"
    assert there() == {"a/one", "two", files.MARKER, listing}
    assert lay_down({"a/one": "1", "two": "2"}).changes() == []
    (target / "two").unlink()
    (target / "a" / "one").write_text("3")
    (target / "b").mkdir()
    assert lay_down({"a/one": "1", "two": "2"}).result.ok
    assert ((target / "a" / "one").read_text(), there()) == ("1", {"a/one", "two", files.MARKER, listing})
    assert not (target / "b").exists()
    assert not lay_down({"a/one": "1"}, pinned=False).result.ok
    assert "a/one" in there(), "a download that fails must leave what was there"
    assert lay_down({"three": "3"}).result.ok
    assert there() == {"three", files.MARKER, listing}
    assert [path.name for path in target.parent.iterdir()] == ["assets"]


def barriers(folder: Path) -> None:
    order: list[tuple[str, str]] = []

    def note(name: str, node: str) -> None:
        order.append((name, node))

    @step(on="all")
    def slow_on_n1(ctx: Context[Any]) -> None:
        if ctx.node.name == "n1":
            shell.run("sleep", "sleep 0.5", unless="false")
        note("slow", ctx.node.name)

    @step(on="all")
    def free(ctx: Context[Any]) -> None:
        note("free", ctx.node.name)

    @step(on="all", after=("slow_on_n1",))
    def barred(ctx: Context[Any]) -> None:
        note("barred", ctx.node.name)

    run(slow_on_n1, free, barred, folder=folder)
    assert order.index(("free", "n2")) < order.index(("slow", "n1")), "n2 waited for n1 without need"
    assert order.index(("barred", "n2")) > order.index(("slow", "n1")), "the barrier did not hold"


def rolling(folder: Path) -> None:
    order: list[str] = []

    @step(on="all")
    def slow_on_n1(ctx: Context[Any]) -> None:
        if ctx.node.name == "n1":
            shell.run("sleep", "sleep 0.3", unless="false")

    @step(on="all", rolling=True)
    def switch(ctx: Context[Any]) -> None:
        order.append(f"{ctx.node.name} begins")
        shell.run("sleep", "sleep 0.3", unless="false")
        if fails:
            raise MlopsError("no way")
        order.append(f"{ctx.node.name} ends")

    @step(on="all")
    def free(ctx: Context[Any]) -> None:
        order.append(f"free on {ctx.node.name}")

    fails = False
    run(slow_on_n1, switch, free, folder=folder)
    assert [one for one in order if "free" not in one] == ["n1 begins", "n1 ends", "n2 begins", "n2 ends"], order
    assert order.index("free on n2") < order.index("n1 ends"), "n2 has nothing to do but wait for its turn"
    order.clear()
    ran = run(slow_on_n1, switch, folder=folder, connector=FirstIsLost)
    assert order == ["n2 begins", "n2 ends"], "a lost node keeps nobody waiting"
    assert list(ran.result.unreachable) == ["n1"]
    order.clear()
    fails = True
    ran = run(slow_on_n1, switch, folder=folder)
    assert order == ["n1 begins"], "a canary that failed stops the rest"
    assert [(one.node, one.note) for one in ran.result.steps if one.outcome == "skipped"] == [
        ("n2", "the run stopped after demo.switch failed on n1")
    ]


def secrets(folder: Path) -> None:
    @step(on="all", only="first")
    def lay_down(ctx: Context[Any]) -> None:
        files.content("key", f"{ctx.folder}/key", Hidden("hunter2-secret"), mode="600", owner=USER, group=GROUP)

    for planning in (True, False):
        ran = run(lay_down, planning=planning, folder=folder)
        assert ran.result.changed == 1
        assert "hunter2" not in repr([one.record() for one in ran.events]) + repr(ran.result)
    key = folder / "n1" / "key"
    assert key.read_text() == "hunter2-secret"
    assert oct(key.stat().st_mode)[-3:] == "600"


if __name__ == "__main__":
    chosen: Callable[[Path], None] = globals()[sys.argv[1]]
    began = time.monotonic()
    chosen(Path(sys.argv[2]))
    sys.stdout.write(f"{sys.argv[1]} in {time.monotonic() - began:.2f} s\n")
