"""The store: filled from a real server, damaged by hand, killed in the middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest

from onprem_mlops.artifacts import BuildFailed, Damaged, Failed, Finished, Planned, Started
from onprem_mlops.artifacts.commands import mirror_build, mirror_list, mirror_verify
from onprem_mlops.errors import MlopsError, RequestError
from onprem_mlops.locks import locked

if TYPE_CHECKING:
    from tests.unit.artifacts.conftest import Bench, Site

_FILL = """
import sys
from pathlib import Path
from onprem_mlops.artifacts import Catalogue, Store
from onprem_mlops.errors import MlopsError
try:
    built = Store(Path(sys.argv[2]), Catalogue.load(Path(sys.argv[1]))).ensure()
except MlopsError as error:
    sys.stderr.write(str(error))
    raise SystemExit(error.exit_code)
print(",".join(built.made))
"""


def fill(bench: Bench) -> subprocess.Popen[str]:
    """Another process that fills the same store."""
    return subprocess.Popen(
        [sys.executable, "-c", _FILL, str(bench.write()), str(bench.cache)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: object, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_file_is_fetched_checked_and_kept(bench: Bench, upstream: Site) -> None:
    bench.add("tool", upstream.release("tool", b"content"))
    built = bench.store().ensure()
    assert built.made == ("tool",)
    file = bench.store().file("tool", "tool")
    assert (file.path.read_bytes(), file.size) == (b"content", 7)
    assert bench.store().manifest("tool").source == "url"


def test_a_second_run_makes_nothing_and_asks_nobody(bench: Bench, upstream: Site) -> None:
    bench.add("tool", upstream.release("tool", b"content"))
    bench.store().ensure()
    upstream.asked.clear()
    assert bench.store().ensure().made == ()
    assert upstream.asked == []


def test_a_wrong_checksum_is_refused_and_nothing_is_kept(bench: Bench, upstream: Site) -> None:
    source = upstream.release("tool", b"content")
    upstream.put("tool", b"changed on its way")
    bench.add("tool", source)
    with pytest.raises(BuildFailed, match="expected"):
        bench.store().ensure(listener=bench.listen)
    assert bench.names(Failed) == ["tool"]
    with pytest.raises(RequestError, match="not in the artifact store"):
        bench.store().manifest("tool")


def test_a_checksum_published_beside_the_file(bench: Bench, upstream: Site) -> None:
    digest = upstream.put("tool", b"content")
    upstream.put("sums", f"{'0' * 64}  other\n{digest}  tool\n".encode())
    bench.add(
        "tool",
        {"kind": "url", "files": [{"url": f"{upstream.address}/tool", "sha256_url": f"{upstream.address}/sums"}]},
    )
    assert bench.store().ensure().made == ("tool",)


def test_members_of_an_archive_keep_their_execute_bit(bench: Bench, upstream: Site, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("#!/bin/sh\n")
    (tmp_path / "run").chmod(0o755)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "run", "bin-1.0/run")
    content = (tmp_path / "a.tar.gz").read_bytes()
    bench.add("tool", upstream.release("a.tar.gz", content, members={"run": "bin-{version}/run"}))
    bench.store().ensure()
    assert os.access(bench.store().file("tool", "run").path, os.X_OK)
    bench.add("tool", upstream.release("a.tar.gz", content, members={"run": "no/run"}), version="2")
    with pytest.raises(BuildFailed, match="has no no/run"):
        bench.store().ensure()


def test_a_damaged_file_is_noticed_and_made_again(bench: Bench, upstream: Site) -> None:
    bench.add("tool", upstream.release("tool", b"content"))
    bench.store().ensure()
    blob = bench.store().file("tool", "tool").path
    blob.chmod(0o644)
    blob.write_bytes(b"CONTENT")
    assert bench.store().ensure(listener=bench.listen).made == ("tool",)
    assert [event for event in bench.heard if isinstance(event, Damaged)] == [Damaged("tool", "tool")]
    assert blob.read_bytes() == b"content"


def test_rot_that_keeps_size_and_time_is_found_by_verify(bench: Bench, upstream: Site) -> None:
    bench.add("tool", upstream.release("tool", b"content"))
    store = bench.store()
    store.ensure()
    blob = store.file("tool", "tool").path
    before = blob.stat()
    blob.chmod(0o644)
    blob.write_bytes(b"c0ntent")
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.ensure().made == ()
    result = mirror_verify(store=store)
    assert [problem.artifact for problem in result.problems] == ["tool"]
    assert store.ensure().made == ("tool",)
    assert mirror_verify(store=store).problems == ()


def test_a_touched_but_whole_file_is_not_made_again(bench: Bench, upstream: Site) -> None:
    bench.add("tool", upstream.release("tool", b"content"))
    bench.store().ensure()
    bench.store().file("tool", "tool").path.touch()
    assert bench.store().ensure().made == ()


def test_a_missing_blob_is_made_again(bench: Bench, upstream: Site) -> None:
    bench.add("tool", upstream.release("tool", b"content"))
    bench.store().ensure()
    bench.store().file("tool", "tool").path.unlink()
    assert bench.store().ensure().made == ("tool",)


def test_what_determines_the_content_is_made_again_and_prose_is_not(bench: Bench, upstream: Site) -> None:
    source = upstream.release("tool", b"content")
    bench.add("tool", source)
    bench.store().ensure()
    bench.add("tool", source, licence="MIT", note="told otherwise", cost=99)
    assert bench.store().ensure().made == ()
    bench.add("tool", source, version="1.1")
    assert bench.store().ensure().made == ("tool",)
    bench.add("tool", upstream.release("tool", b"other"), version="1.1")
    assert bench.store().ensure().made == ("tool",)


def test_made_again_when_asked(bench: Bench, upstream: Site) -> None:
    bench.add("tool", upstream.release("tool", b"content"))
    bench.add("other", upstream.release("other", b"other"))
    bench.store().ensure()
    assert bench.store().ensure(again=["tool"]).made == ("tool",)


def test_two_processes_at_once_fetch_once(bench: Bench, upstream: Site) -> None:
    upstream.slow = 1.0
    bench.add("tool", upstream.release("tool", b"content" * 1000))
    both = [fill(bench), fill(bench)]
    said = [process.communicate(timeout=30)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(said) == ["", "tool"]
    assert upstream.asked == ["/tool"]


def test_killed_in_the_middle_leaves_nothing_half_and_the_next_run_goes_on(bench: Bench, upstream: Site) -> None:
    bench.add("first", upstream.release("first", b"first"))
    bench.store().ensure()
    upstream.slow = 30.0
    upstream.asked.clear()
    bench.add("tool", upstream.release("tool", b"content" * 1000))
    process = fill(bench)
    wait_until(lambda: "/tool" in upstream.asked)
    time.sleep(0.2)
    process.kill()
    process.communicate()
    manifests = bench.cache / "store" / "manifests"
    assert [path.name for path in manifests.iterdir()] == ["first.json"]
    upstream.slow = 0.0
    assert bench.store().ensure().made == ("tool",)
    assert mirror_verify(store=bench.store()).problems == ()
    assert list((bench.cache / "work").iterdir()) == []


def test_ctrl_c_says_how_to_go_on(bench: Bench, upstream: Site) -> None:
    upstream.slow = 2.0
    bench.add("tool", upstream.release("tool", b"content"))
    process = fill(bench)
    wait_until(lambda: "/tool" in upstream.asked)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 3
    assert "run the same command again" in said


def test_the_tree_is_sorted_the_same_each_time_and_only_what_is_published(bench: Bench, upstream: Site) -> None:
    bench.add("b", upstream.release("b", b"b"))
    bench.add("a", upstream.release("a", b"a"), version="2")
    bench.add("inner", upstream.release("inner", b"inner"), publish=False)
    store = bench.store()
    store.ensure()
    tree = list(store.tree())
    assert [file.path for file in tree] == [PurePosixPath("files/a/2/a"), PurePosixPath("files/b/1.0/b")]
    assert tree == list(bench.store().tree())
    assert [file.path.name for file in store.tree(["b"])] == ["b"]
    assert store.url_path("b", "b") == PurePosixPath("files/b/1.0/b")
    with pytest.raises(RequestError, match="does not serve"):
        store.url_path("inner", "inner")


def test_unknown_files_and_images_are_named(bench: Bench, upstream: Site) -> None:
    bench.add("tool", upstream.release("tool", b"content"))
    store = bench.store()
    store.ensure()
    with pytest.raises(RequestError, match="has no file 'tol'"):
        store.file("tool", "tol")
    with pytest.raises(RequestError, match="is no image"):
        store.image("tool")


def test_one_failure_does_not_stop_the_others(bench: Bench, upstream: Site) -> None:
    bad = upstream.release("bad", b"bad")
    (upstream.folder / "bad").unlink()
    bench.add("bad", bad, cost=100)
    bench.add("good", upstream.release("good", b"good"))
    with pytest.raises(BuildFailed, match="bad: http"):
        bench.store().ensure()
    assert bench.store().manifest("good").files[0].size == 4


def test_what_is_heard(bench: Bench, upstream: Site) -> None:
    bench.add("a", upstream.release("a", b"a"))
    bench.store().ensure(listener=bench.listen)
    bench.add("b", upstream.release("b", b"b"))
    bench.heard.clear()
    bench.store().ensure(listener=bench.listen)
    assert bench.heard[0] == Planned(("a",), ("b",))
    assert [type(event) for event in bench.heard] == [Planned, Started, Finished]
    finished = bench.heard[2]
    assert isinstance(finished, Finished)
    assert (finished.source, finished.size, finished.reused) == ("url", 1, False)


# --- sources


def write_module(bench: Bench, text: str = "hello") -> dict[str, object]:
    """A Go module without dependencies in the catalogue's folder."""
    folder = bench.folder / "go" / "hello"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "go.mod").write_text("module onprem.local/hello\n\ngo 1.20\n")
    (folder / "main.go").write_text(
        f'package main\n\nvar version = "none"\n\nfunc main() {{ println("{text}", version) }}\n'
    )
    ldflags = "-X main.version={version}"
    return {"kind": "go", "module": "hello", "commands": {"hello": "onprem.local/hello"}, "ldflags": ldflags}


needs_go = pytest.mark.skipif(shutil.which("go") is None, reason="no Go here; fetching one is not for a unit test")


@needs_go
def test_a_go_command_is_built_with_its_version_and_again_when_its_module_changes(bench: Bench) -> None:
    bench.add("hello", write_module(bench))
    assert bench.store().ensure().made == ("hello",)
    said = subprocess.run([bench.store().file("hello", "hello").path], capture_output=True, text=True, check=True)
    assert said.stderr == "hello 1.0\n"
    assert bench.store().ensure().made == ()
    write_module(bench, "changed")
    assert bench.store().ensure().made == ("hello",)


@needs_go
def test_auto_takes_the_first_that_is_reachable_and_says_why(bench: Bench, upstream: Site) -> None:
    gone = {"kind": "url", "files": [{"url": "http://127.0.0.1:9/hello", "sha256": "a" * 64}]}
    bench.add("hello", gone, write_module(bench))
    bench.store().ensure(listener=bench.listen)
    (started,) = (event for event in bench.heard if isinstance(event, Started))
    assert started.source == "go"
    assert "127.0.0.1:9: " in started.why
    bench.add("other", upstream.release("other", b"other"), write_module(bench))
    bench.heard.clear()
    bench.store().ensure(listener=bench.listen)
    (started,) = (event for event in bench.heard if isinstance(event, Started))
    assert (started.source, started.why) == ("url", "reachable")


@needs_go
def test_a_source_can_be_asked_for(bench: Bench, upstream: Site) -> None:
    bench.add("hello", upstream.release("hello", b"hello"), write_module(bench))
    bench.store().ensure()
    assert bench.store().manifest("hello").source == "url"
    assert bench.store().ensure(source="go").made == ("hello",)
    assert bench.store().manifest("hello").source == "go"
    with pytest.raises(BuildFailed, match="no source 'deb'"):
        bench.store().ensure(source="deb")


@needs_go
def test_a_failed_build_names_command_last_lines_and_log(bench: Bench) -> None:
    source = write_module(bench)
    (bench.folder / "go" / "hello" / "main.go").write_text("package main\n\nfunc main() { nonsense() }\n")
    bench.add("hello", source)
    with pytest.raises(BuildFailed) as caught:
        bench.store().ensure()
    assert "go build" in caught.value.message
    assert "undefined: nonsense" in caught.value.message
    assert str(bench.cache / "logs" / "hello.log") in caught.value.advice


# --- what the commands say


def test_build_list_and_verify_can_be_written_as_json(bench: Bench, upstream: Site) -> None:
    bench.add("tool", upstream.release("tool", b"content"))
    bench.add("absent", upstream.release("absent", b"absent"), default=False)
    store = bench.store()
    built = json.loads(mirror_build(store=store).model_dump_json())
    assert built["made"] == ["tool"]
    listed = mirror_list(store=store)
    assert {entry.name: entry.state for entry in listed.artifacts} == {"tool": "there", "absent": "missing"}
    assert json.loads(mirror_verify(store=store).model_dump_json())["checked"] == 1
    bench.add("tool", upstream.release("tool", b"content"), version="2")
    assert mirror_list(store=bench.store()).artifacts[0].state == "other version"


def test_build_caches_go_once_everything_is_there(bench: Bench, upstream: Site) -> None:
    bench.add("first", upstream.release("first", b"first"))
    bench.add("second", upstream.release("second", b"second"))
    module = bench.cache / "build" / "go-mod" / "module"
    module.mkdir(parents=True)
    (module / "file").write_text("content")
    module.chmod(0o555)  # as Go leaves it
    assert mirror_build(["first"], store=bench.store()).freed == 0
    assert module.exists()
    assert mirror_build(store=bench.store(), keep_build_caches=True).freed == 0
    assert mirror_build(["first"], store=bench.store(), again=True).freed == 7
    assert not (bench.cache / "build").exists()


def test_build_caches_stay_while_another_process_makes_something(bench: Bench, upstream: Site) -> None:
    bench.add("tool", upstream.release("tool", b"content"))
    store = bench.store()
    build = bench.cache / "build"
    build.mkdir(parents=True, exist_ok=True)
    with locked(store.folders.store / "locks" / "elsewhere"):
        assert mirror_build(store=store).made == ("tool",)
        assert build.exists()
    mirror_build(["tool"], store=bench.store(), again=True)
    assert not build.exists()


def test_no_error_is_a_traceback(bench: Bench) -> None:
    bench.add("tool", {"kind": "go", "module": "absent", "commands": {"x": "x"}})
    with pytest.raises(MlopsError):
        bench.store().ensure()
