"""Packages and holds of a node whose dpkg and apt are scripts, run by this machine's own shell."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from pyinfra.context import ctx_host

from onprem_mlops.artifacts.manifest import TreeFile
from onprem_mlops.engine.facts import Packages
from onprem_mlops.engine.operations import apt
from tests.roles.harness import Case, FakeNode, FakeStore

TOOLS = {
    "dpkg-query": "cat {db}",
    # The database has lines such as `ii |curl`; `autoremove` finds what is named in `orphans`, as apt does.
    "apt-get": """\
case "$*" in
*-s*install*) echo "Inst haproxy [1:2] (1:3 local)";;
*install*) for name; do :; done; echo "$name" >>{installs};;
*autoremove*) while read -r name; do grep -q "^.i.|$name$" {db} && echo "Remv $name [1]"; done <{orphans};;
*"purge -s"*) for name; do :; done; echo "Purg $name [1]"; grep -s "^$name " {needed} | sed 's/.* /Remv /';;
*purge*)
  if [ -e {cut} ]; then rm {cut}; sed -i 's/^ii \\(|chrony\\)$/rc \\1/' {db}; kill -9 $PPID; exit 1; fi
  for name; do sed -i "/^...|$name$/d" {db}; done;;
esac""",
    # `needed` has lines such as `python3 unattended-upgrades`: who goes along with a package.
    "apt-mark": 'case $1 in showmanual) cut -d" " -f2 {needed} 2>/dev/null;; *) echo "$*" >>{marks};; esac',
}


class Debian:
    """A node with a database of packages."""

    def __init__(self, folder: Path, packages: str, *, record: str = "", orphans: str = "") -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        for name, text in TOOLS.items():
            paths = {one: str(folder / one) for one in ("db", "orphans", "cut", "marks", "installs", "needed")}
            for one, path in paths.items():
                text = text.replace(f"{{{one}}}", path)
            (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / "bin" / name).chmod(0o755)
        (folder / "db").write_text(packages)
        (folder / "orphans").write_text(orphans)
        if record:
            (folder / "packages").write_text(record)

    @property
    def db(self) -> list[str]:
        return (self.folder / "db").read_text().splitlines()

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def perform(self, operation: Callable[..., Any], *arguments: str) -> list[int]:
        """Run what the operation yields; the exit status of each command."""
        probes: dict[str, str | int] = {"dpkg --audit": 0}
        for name in ("packages", "held"):
            path = self.folder / name
            probes[f"cat /var/lib/onprem-mlops/{name}"] = path.read_text() if path.exists() else 1
        packages = Packages().process([f"{line}|1" for line in self.db])
        with ctx_host.use(FakeNode(packages=packages, probes=probes)):
            generator: Iterator[Any] = operation.generator(*arguments)  # type: ignore[attr-defined]
            return [self._run(command.get_raw_value()) for command in generator]

    def _run(self, text: str) -> int:
        env = {**os.environ, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        text = text.replace("/var/lib/onprem-mlops", str(self.folder))
        return subprocess.run(["sh", "-c", text], env=env, check=False).returncode


def test_what_came_with_a_role_goes_with_it(tmp_path: Path) -> None:
    node = Debian(
        tmp_path,
        "ii |curl\nii |chrony\nii |libedit\nii |other\n",
        record="chrony\nlibedit\n",
        orphans="libedit\nother\n",
    )
    assert node.perform(apt.purged, "chrony", "curl") == [0]
    assert node.db == ["ii |curl", "ii |other"], "curl was there before, other is not our orphan"
    assert not (tmp_path / "packages").exists()
    assert node.perform(apt.purged, "chrony", "curl") == []


def test_a_removal_that_was_cut_off_is_ended_by_the_next(tmp_path: Path) -> None:
    node = Debian(tmp_path, "ii |chrony\nii |libedit\n", record="chrony\nlibedit\n", orphans="libedit\n")
    (tmp_path / "cut").touch()
    assert node.perform(apt.purged, "chrony") != [0]
    assert node.db == ["rc |chrony", "ii |libedit"]
    assert node.perform(apt.purged, "chrony") == [0]
    assert node.db == []
    assert not (tmp_path / "packages").exists(), "what a person installs later is theirs"


def test_a_removal_that_was_cut_off_before_its_record_went_is_ended(tmp_path: Path) -> None:
    node = Debian(tmp_path, "ii |libedit\nii |nginx\n", record="chrony\nlibedit\nnginx\n", orphans="libedit\n")
    assert node.perform(apt.purged, "chrony") == [0]
    assert node.db == ["ii |nginx"]
    assert node.lines("packages") == ["nginx"]


def test_a_hold_of_a_person_outlives_ours(tmp_path: Path) -> None:
    node = Debian(tmp_path, "ii |runc\nhi |linux-image-amd64\nhi |haproxy\n")
    assert node.perform(apt.held, "runc", "haproxy", "keepalived") == [0]
    assert node.lines("marks") == ["hold runc"]
    (tmp_path / "db").write_text("hi |runc\nhi |linux-image-amd64\nhi |haproxy\n")
    assert node.perform(apt.unheld) == [0]
    assert node.lines("marks")[1:] == ["unhold runc"]
    assert node.perform(apt.unheld) == []


def test_a_hold_goes_with_its_package(tmp_path: Path) -> None:
    node = Debian(tmp_path, "hi |runc\nhi |haproxy\n", record="runc\n")
    (tmp_path / "held").write_text("runc\nhaproxy\n")
    assert node.perform(apt.purged, "runc") == [0]
    assert node.lines("held") == ["haproxy"]


def test_no_hold_of_ours_is_no_work(tmp_path: Path) -> None:
    assert Debian(tmp_path, "hi |runc\n").perform(apt.unheld) == []


def test_held_packages_that_are_older_than_the_mirrors_are_upgraded(tmp_path: Path) -> None:
    node = Debian(tmp_path, "hi |runc\nhi |haproxy\nhi |keepalived\nhi |mine\n")
    (tmp_path / "held").write_text("runc\nhaproxy\nkeepalived\n")
    probes: dict[str, str | int] = {"grep -qx haproxy": 0, "grep -qx": 1, "dpkg --audit": 0}
    packages = dict.fromkeys(("runc", "haproxy", "keepalived", "mine"), "1:2")
    offered = {"runc": "1:2", "haproxy": "1:3", "keepalived": "1:1", "mine": "1:3", "containerd": "1"}
    with ctx_host.use(FakeNode(packages=packages, probes=probes)):
        [command] = apt.upgraded.generator(offered)  # type: ignore[attr-defined]
    assert node._run(command.get_raw_value()) == 0
    assert node.lines("installs") == ["haproxy"]
    assert node.lines("packages") == [], "it did not come with us"


@pytest.mark.parametrize(("installed", "upgraded"), [("1:2.2.7-1+b2", True), ("1:2.2.8-1", False), ("2:1", False)])
def test_only_what_we_hold_and_is_older_is_upgraded(installed: str, upgraded: bool, tmp_path: Path) -> None:
    if shutil.which("dpkg") is None:
        pytest.skip("versions are compared by dpkg")
    (tmp_path / "held").write_text("keepalived\n")
    for name, expected in (("keepalived", upgraded), ("keep", False)):
        command = apt._may_be_upgraded(name, installed, "1:2.2.8-1").replace("/var/lib/onprem-mlops", str(tmp_path))
        assert (subprocess.run(["sh", "-c", command], check=False).returncode == 0) is expected


def test_a_deploy_upgrades_to_what_the_mirror_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "Packages"
    index.write_text("Package: runc\nVersion: 1.1.6\nDepends: libc6\n\nPackage: haproxy\nVersion: 1:2\n")
    file = TreeFile(path=PurePosixPath("apt/bookworm/Packages"), source=index, sha256="0" * 64, size=1)
    whole = FakeStore.tree
    monkeypatch.setattr(FakeStore, "tree", lambda self, names: (*whole(self, names), file))
    debian = "debian|12|Debian GNU/Linux 12 (bookworm)\nx86_64"
    given = {"step": "packages", "node": "w1", "settings": {}}
    node = FakeNode(
        packages={"runc": "1.1.5", "held:runc": "1.1.5"},
        probes={"/etc/os-release": debian, "dpkg --audit": 0, "grep -qx runc": 0},
    )
    assert Case(Path(__file__), given).run(node, tmp_path) == ""
    changes = {one.purpose: one.commands for one in node.changes}
    assert "install runc" in changes["held packages as the mirror has them"][0]


def test_a_package_that_something_else_needs_by_now_stays_until_that_goes(tmp_path: Path) -> None:
    node = Debian(tmp_path, "ii |curl\nii |python3\nii |unattended-upgrades\n", record="curl\npython3\n")
    (tmp_path / "needed").write_text("python3 unattended-upgrades\n")
    assert node.perform(apt.purged, "curl", "python3") == [0]
    assert node.db == ["ii |python3", "ii |unattended-upgrades"]
    assert node.lines("marks") == ["auto python3"]
    assert node.lines("packages") == ["python3"]
