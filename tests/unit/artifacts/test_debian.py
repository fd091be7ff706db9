"""Repositories of Debian packages, made by the real apt from a small Debian of our own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pysequoia
import pytest

from onprem_mlops.artifacts import BuildFailed, Catalogue
from onprem_mlops.artifacts.catalogue import DebSource
from onprem_mlops.artifacts.commands import mirror_list, mirror_verify
from onprem_mlops.artifacts.fingerprint import fingerprint
from onprem_mlops.artifacts.sources.debian import signing_key
from onprem_mlops.artifacts.sources.generations import KEPT, following

if TYPE_CHECKING:
    from tests.unit.artifacts.conftest import Bench, Site

needs_apt = pytest.mark.skipif(
    not all(map(shutil.which, ("apt-get", "apt-ftparchive", "dpkg-deb"))), reason="no Debian here"
)

# --- a small Debian


@dataclass(frozen=True)
class Package:
    """One version of a package."""

    name: str
    version: str
    depends: str = ""
    conflicts: str = ""

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.name}_{self.version}_amd64.deb"

    def build(self, folder: Path) -> None:
        """Make its file in `folder`."""
        tree = folder / "tree"
        (tree / "DEBIAN").mkdir(parents=True)
        fields = {"Package": self.name, "Version": self.version, "Depends": self.depends, "Conflicts": self.conflicts}
        fields |= {"Architecture": "amd64", "Maintainer": "Nobody <nobody@example.org>", "Description": self.name}
        lines = [f"{key}: {value}\n" for key, value in fields.items() if value]
        (tree / "DEBIAN" / "control").write_text("".join(lines))
        subprocess.run(
            ["dpkg-deb", "-Znone", "-b", str(tree), str(folder / self.file)], check=True, capture_output=True
        )
        shutil.rmtree(tree)


@dataclass(frozen=True)
class Debian:
    """A signed mirror: `bookworm` is the last point release, and there is what security has."""

    site: Site
    key: pysequoia.Tsk

    def has(self, *, security: tuple[Package, ...] = (), bookworm: tuple[Package, ...] = ()) -> None:
        """From now on it has these packages and no others."""
        self._publish("debian", "bookworm", bookworm)
        self._publish("debian", "bookworm-updates", ())
        self._publish("debian-security", "bookworm-security", security)
        self.site.asked.clear()

    def fetched(self) -> set[str]:
        """Names of the packages that somebody downloaded since."""
        return {path.rpartition("/")[2] for path in self.site.asked if path.endswith(".deb")}

    def _publish(self, archive: str, suite: str, content: tuple[Package, ...]) -> None:
        root = self.site.folder / archive
        pool, lists, dist = root / "pool" / suite, root / "dists" / suite / "main/binary-amd64", root / "dists" / suite
        for folder in (pool, lists):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        for package in content:
            package.build(pool)
        (lists / "Packages").write_bytes(_said("packages", f"pool/{suite}", folder=root))
        about = {"Suite": suite, "Codename": suite, "Architectures": "amd64", "Components": "main"}
        options = [part for key, value in about.items() for part in ("-o", f"APT::FTPArchive::Release::{key}={value}")]
        (dist / "InRelease").unlink(missing_ok=True)
        release = _said(*options, "release", ".", folder=dist)
        (dist / "InRelease").write_bytes(pysequoia.sign(self.key.signer(), release, mode=pysequoia.SignatureMode.CLEAR))


def _said(*arguments: str, folder: Path) -> bytes:
    return subprocess.run(["apt-ftparchive", *arguments], cwd=folder, check=True, capture_output=True).stdout


@pytest.fixture
def debian(upstream: Site, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Debian:
    """A mirror of Debian that the bench's catalogue trusts."""
    key = signing_key(tmp_path / "debian-keys")
    bench.keyring = tmp_path / "debian.asc"
    bench.keyring.write_text(str(key.extract_certificate()))
    monkeypatch.setenv("MLOPS_DEBIAN_MIRROR", f"{upstream.address}/debian")
    return Debian(upstream, key)


@dataclass(frozen=True)
class Archive:
    """The artifact that is made from it: `gpu`, with the driver on its list."""

    bench: Bench

    def build(self, *, again: bool = False) -> tuple[str, ...]:
        """Make it if that is needed; gives what was made."""
        return self.bench.store().ensure(again=["gpu"] if again else ()).made

    def offers(self) -> list[str]:
        """What its index offers."""
        index = self.bench.store().file("gpu", "Packages").path.read_text()
        fields = [line.partition(": ")[::2] for line in index.splitlines()]
        names = [value for key, value in fields if key == "Package"]
        versions = [value for key, value in fields if key == "Version"]
        return sorted(f"{name} {version}" for name, version in zip(names, versions, strict=True))

    def generations(self) -> list[list[str]]:
        """The package files of each, the newest first."""
        found: list[list[str]] = json.loads(self.bench.store().file("gpu", "generations.json").path.read_bytes())
        return found

    def log(self) -> str:
        """Of its last build."""
        return (self.bench.cache / "logs" / "gpu.log").read_text()

    def bring(self, package: Package) -> Path:
        """Put a package into the folder beside the list."""
        folder = self.bench.folder / "debs" / "gpu"
        folder.mkdir(exist_ok=True)
        package.build(folder)
        return folder / package.file


@pytest.fixture
def archive(bench: Bench) -> Callable[..., Archive]:
    """Puts the artifact into the catalogue; each list of `apart` has one package, its own name."""

    def add(*, apart: tuple[str, ...] = (), **more: Any) -> Archive:
        debs = bench.write() / "debs"
        debs.mkdir(exist_ok=True)
        (debs / "gpu.yaml").write_text("driver: computes\n")
        for name in apart:
            (debs / f"{name}.yaml").write_text(f"{name}: instead\n")
        source = {"kind": "deb", "release": "bookworm", "packages": "debs/gpu.yaml", **more}
        bench.add("gpu", source | ({"apart": [f"debs/{name}.yaml" for name in apart]} if apart else {}))
        return Archive(bench)

    return add


OLD, NEW = Package("driver", "1", depends="library"), Package("driver", "2", depends="library")
LIBRARY = Package("library", "1")

# --- what is in it


@needs_apt
def test_packages_come_with_what_they_need(debian: Debian, archive: Callable[..., Archive]) -> None:
    debian.has(security=(NEW,), bookworm=(OLD, LIBRARY))
    gpu = archive()
    assert gpu.build() == ("gpu",)
    assert gpu.offers() == ["driver 2", "library 1"]
    assert "generations.json" not in [file.name for file in gpu.bench.store().manifest("gpu").files]
    assert gpu.build() == ()


@needs_apt
def test_the_way_back_is_what_the_point_release_has(debian: Debian, archive: Callable[..., Archive]) -> None:
    debian.has(security=(NEW,), bookworm=(OLD, LIBRARY))
    gpu = archive(previous=True)
    gpu.build()
    assert gpu.offers() == ["driver 1", "driver 2", "library 1"]
    assert [path for path in debian.site.asked if "library" in path] == ["/debian/pool/bookworm/library_1_amd64.deb"]


@needs_apt
def test_lists_that_cannot_be_installed_side_by_side(debian: Debian, archive: Callable[..., Archive]) -> None:
    other = Package("other", "1", depends="library", conflicts="driver")
    debian.has(security=(NEW, other), bookworm=(LIBRARY,))
    gpu = archive(apart=("other",))
    gpu.build()
    assert gpu.offers() == ["driver 2", "library 1", "other 1"]


@needs_apt
def test_a_list_apart_may_fit_the_point_release_alone(debian: Debian, archive: Callable[..., Archive]) -> None:
    """As Debian's NVIDIA packages do: security has no open modules, and those of the release want its driver."""
    other = Package("other", "1", depends="driver (= 1)")
    debian.has(security=(NEW,), bookworm=(OLD, LIBRARY, other))
    gpu = archive(apart=("other",), previous=True)
    gpu.build()
    assert gpu.offers() == ["driver 1", "driver 2", "library 1", "other 1"]


@needs_apt
def test_a_list_apart_that_fits_nowhere_is_an_error(debian: Debian, archive: Callable[..., Archive]) -> None:
    debian.has(security=(NEW,), bookworm=(OLD, LIBRARY, Package("other", "1", depends="driver (= 3)")))
    gpu = archive(apart=("other",), previous=True)
    with pytest.raises(BuildFailed, match=r"(?s)--download-only install other.*Depends: driver \(= 3\)"):
        gpu.build()


@needs_apt
def test_the_list_itself_must_fit_both_ways(debian: Debian, archive: Callable[..., Archive]) -> None:
    debian.has(security=(NEW,), bookworm=(LIBRARY,))
    gpu = archive(previous=True)
    with pytest.raises(BuildFailed, match="Unable to locate package driver"):
        gpu.build()


@needs_apt
def test_a_mirror_that_lacks_what_it_lists_is_an_error(debian: Debian, archive: Callable[..., Archive]) -> None:
    """It must not look as if apt could not install the list: then the archive would be made without it."""
    debian.has(security=(NEW, Package("other", "2")), bookworm=(OLD, LIBRARY, Package("other", "1")))
    (debian.site.folder / "debian-security/pool/bookworm-security/other_2_amd64.deb").unlink()
    gpu = archive(apart=("other",), previous=True)
    with pytest.raises(BuildFailed, match="404"):
        gpu.build()


# --- what is brought


@needs_apt
def test_a_brought_package_is_served_with_what_it_needs(debian: Debian, archive: Callable[..., Archive]) -> None:
    debian.has(bookworm=(OLD, LIBRARY, Package("tool", "1")))
    gpu = archive(previous=True)
    gpu.build()
    assert gpu.offers() == ["driver 1", "library 1"]
    brought = gpu.bring(Package("manager", "1", depends="tool"))
    assert gpu.build() == ("gpu",)
    assert gpu.offers() == ["driver 1", "library 1", "manager 1", "tool 1"]
    assert brought.exists()
    assert gpu.build() == ()


@needs_apt
def test_brought_versions_of_one_package_are_all_served(debian: Debian, archive: Callable[..., Archive]) -> None:
    debian.has(bookworm=(OLD, LIBRARY))
    gpu = archive()
    gpu.bring(Package("manager", "1"))
    gpu.bring(Package("manager", "2"))
    gpu.build()
    assert gpu.offers() == ["driver 1", "library 1", "manager 1", "manager 2"]


@needs_apt
def test_a_brought_package_that_needs_what_nobody_has_is_an_error(
    debian: Debian, archive: Callable[..., Archive]
) -> None:
    debian.has(bookworm=(OLD, LIBRARY))
    gpu = archive(previous=True)
    gpu.bring(Package("manager", "1", depends="nowhere"))
    with pytest.raises(BuildFailed, match="manager : Depends: nowhere but it is not installable"):
        gpu.build()


@needs_apt
def test_what_is_taken_out_of_the_folder_does_not_come_back(debian: Debian, archive: Callable[..., Archive]) -> None:
    debian.has(bookworm=(OLD, LIBRARY, Package("tool", "1")))
    gpu = archive(previous=True)
    brought = gpu.bring(Package("manager", "1", depends="tool"))
    gpu.build()
    assert "manager 1" in gpu.offers()
    brought.unlink()
    assert gpu.build() == ("gpu",)
    assert gpu.offers() == ["driver 1", "library 1", "tool 1"]


# --- what stays


def made(bench: Bench, name: str = "gpu") -> str:
    """Fingerprint of an artifact of the catalogue as it is now."""
    catalogue = Catalogue.load(bench.write())
    artifact = catalogue.artifact(name)
    return fingerprint(catalogue, artifact, artifact.sources[0], {})


def test_what_was_built_before_there_were_lists_apart_is_still_valid(archive: Callable[..., Archive]) -> None:
    assert made(archive().bench) == "ae138a323749063a51c65fb5128497fa3998a3d02a7a528d864b17f8bc150c3a"
    assert made(archive(previous=True).bench) == "dada89079c9038639afc8b6c03518f341fd8893def3e43e7e786720bff9797a6"


@needs_apt
def test_what_lists_and_brought_packages_are_belongs_to_the_fingerprint(archive: Callable[..., Archive]) -> None:
    gpu = archive(previous=True)
    plain = made(gpu.bench)
    brought = gpu.bring(Package("manager", "1"))
    with_manager = made(gpu.bench)
    gpu.bring(Package("manager", "2"))
    with_both = made(gpu.bench)
    for path in brought.parent.iterdir():
        path.unlink()
    assert made(gpu.bench) == plain
    with_list = made(archive(apart=("other",), previous=True).bench)
    (gpu.bench.folder / "debs" / "other.yaml").write_text("another: instead\n")
    assert len({plain, with_manager, with_both, with_list, made(gpu.bench)}) == 5


def test_a_package_brought_for_one_list_is_not_anothers(archive: Callable[..., Archive]) -> None:
    source = archive().bench.artifacts["gpu"]["sources"][0]
    assert DebSource.model_validate(source).brought == "debs/gpu"
    assert DebSource.model_validate({**source, "packages": "debs/gpu-bookworm.yaml"}).brought == "debs/gpu-bookworm"


@needs_apt
def test_what_debian_has_no_more_stays(debian: Debian, archive: Callable[..., Archive]) -> None:
    debian.has(security=(Package("driver", "2"),), bookworm=(Package("driver", "1"),))
    gpu = archive(previous=True)
    gpu.build()
    debian.has(security=(Package("driver", "3"),), bookworm=(Package("driver", "1"),))
    assert gpu.build() == ()
    assert gpu.build(again=True) == ("gpu",)
    assert gpu.offers() == ["driver 1", "driver 2", "driver 3"]
    assert debian.fetched() == {"driver_1_amd64.deb", "driver_3_amd64.deb"}
    assert gpu.generations() == [
        ["driver_1_amd64.deb", "driver_3_amd64.deb"],
        ["driver_1_amd64.deb", "driver_2_amd64.deb"],
    ]
    store = gpu.bench.store()
    assert mirror_verify(store=store).problems == ()
    assert mirror_list(store=store).artifacts[0].files == len(store.manifest("gpu").files)
    assert "apt/bookworm/pool/driver_2_amd64.deb" in [str(file.path) for file in store.tree(["gpu"])]


@needs_apt
def test_the_oldest_goes_in_the_end(debian: Debian, archive: Callable[..., Archive]) -> None:
    gpu = archive(previous=True)
    for version in range(1, KEPT + 2):
        debian.has(bookworm=(Package("driver", str(version)),))
        gpu.build(again=True)
    assert gpu.offers() == [f"driver {version}" for version in range(2, KEPT + 2)]
    gpu.build(again=True)
    assert gpu.offers() == [f"driver {version}" for version in range(2, KEPT + 2)]


@needs_apt
def test_an_archive_of_before_there_were_generations_is_one(debian: Debian, archive: Callable[..., Archive]) -> None:
    debian.has(bookworm=(OLD, LIBRARY))
    gpu = archive()
    gpu.build()
    gpu = archive(previous=True)
    debian.has(bookworm=(Package("driver", "2"),))
    gpu.build()
    assert gpu.offers() == ["driver 1", "driver 2", "library 1"]
    assert gpu.generations() == [["driver_2_amd64.deb"], ["driver_1_amd64.deb", "library_1_amd64.deb"]]


def rot(blob: Path) -> None:
    """Another content of the same size and time: only who reads it in full sees it."""
    before = blob.stat()
    blob.chmod(0o644)
    blob.write_bytes(b"x" * before.st_size)
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))


@needs_apt
@pytest.mark.parametrize("harm", [Path.unlink, rot])
def test_what_the_store_has_lost_is_left_out(
    debian: Debian, archive: Callable[..., Archive], harm: Callable[[Path], None]
) -> None:
    debian.has(bookworm=(OLD, LIBRARY))
    gpu = archive(previous=True)
    gpu.build()
    harm(gpu.bench.store().file("gpu", f"pool/{OLD.file}").path)
    debian.has(bookworm=(NEW, LIBRARY))
    assert gpu.build(again=True) == ("gpu",)
    assert gpu.offers() == ["driver 2", "library 1"]
    assert gpu.generations() == [[NEW.file, LIBRARY.file], [LIBRARY.file]]
    assert f"{OLD.file}: missing or damaged in the store, left out" in gpu.log()
    assert mirror_verify(store=gpu.bench.store()).problems == ()


@needs_apt
def test_without_its_generations_an_archive_is_one(debian: Debian, archive: Callable[..., Archive]) -> None:
    gpu = archive(previous=True)
    for version in ("1", "2"):
        debian.has(bookworm=(Package("driver", version),))
        gpu.build(again=True)
    gpu.bench.store().file("gpu", "generations.json").path.unlink()
    debian.has(bookworm=(Package("driver", "3"),))
    gpu.build()
    assert gpu.generations() == [["driver_3_amd64.deb"], ["driver_1_amd64.deb", "driver_2_amd64.deb"]]


def names(*versions: str) -> set[str]:
    return {f"{version.replace(' ', '_')}_amd64.deb" for version in versions}


@pytest.mark.parametrize(
    ("fetched", "after"),
    [
        (names("driver 2", "library 1"), [names("driver 2", "library 1")]),
        (names("driver 2"), [names("driver 2", "library 1")]),
        (names("driver 2", "library 2"), [names("driver 2", "library 1", "library 2")]),
        (names("driver 3", "library 2"), [names("driver 3", "library 2"), names("driver 2", "library 1")]),
    ],
    ids=["nothing new", "less than before", "a library", "a driver"],
)
def test_a_generation_begins_with_a_new_version_of_what_is_listed(fetched: set[str], after: list[set[str]]) -> None:
    oldest = names("driver 1", "library 1")
    assert following([names("driver 2", "library 1"), oldest], fetched, {"driver"}) == [*after, oldest]


def test_what_an_older_generation_has_is_not_new() -> None:
    earlier = [names("driver 2"), names("driver 1")]
    assert following(earlier, names("driver 1"), {"driver"}) == [names("driver 1", "driver 2"), names("driver 1")]


def test_the_first_fetch_is_the_first_generation() -> None:
    assert following([], names("driver 1"), {"driver"}) == [names("driver 1")]
