"""Which driver and which kernel a site's nodes have, of those that its mirror offers. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from onprem_mlops.errors import MlopsError

Offers = Mapping[str, tuple[str, ...]]
"""Package → versions, as the mirror's archive has them."""

ARCHIVE = "bookworm-gpu"
"""The mirror's archive of drivers and kernels."""
ARTIFACT = "debs-gpu-bookworm"
"""The artifact that it is."""


@dataclass(frozen=True)
class Modules:
    """One of the two builds of NVIDIA's kernel modules, as Debian packages it."""

    kind: str
    """As `settings.gpu.modules` names it."""
    source: str
    """Package with what DKMS builds."""
    support: str
    """Package with how they are loaded."""
    name: str
    """In DKMS; also what its module files begin with."""
    alternative: str
    """The choice of Debian's alternative `nvidia` that loads them."""

    def file(self, kernel: str) -> str:
        """Where the driver's module for a kernel lies."""
        return f"/lib/modules/{kernel}/updates/dkms/{self.name}.ko"


PROPRIETARY = Modules(
    "proprietary", "nvidia-kernel-dkms", "nvidia-kernel-support", "nvidia-current", "/usr/lib/nvidia/current"
)
OPEN = Modules(
    "open",
    "nvidia-open-kernel-dkms",
    "nvidia-open-kernel-support",
    "nvidia-current-open",
    "/usr/lib/nvidia/current-open",
)
KINDS = {one.kind: one for one in (PROPRIETARY, OPEN)}
_OTHERS = re.compile(r"nvidia-(open-)?kernel-(dkms|support)$|nvidia-fabricmanager")
"""Packages of the driver's version that not every node gets."""

_REBUILD = f"Build the archive again: ./mlops mirror build --again {ARTIFACT}."
KERNEL = re.compile(r"linux-image-(\d[\d.]*-\d+-amd64)")
USER_SPACE = ("libcuda1", "libnvidia-ml1", "libnvidia-ptxjitcompiler1", "nvidia-smi")
"""What programs use of the driver; it must be of exactly the kernel module's version."""


@dataclass(frozen=True)
class Pins:
    """One driver and one kernel that belong together, and what to install for them."""

    driver: str
    """Upstream's version, such as 535.309.01."""
    kernel: str
    """Its release, such as 6.1.0-56-amd64."""
    modules: Modules
    driver_packages: Mapping[str, str]
    """Every package that must be of the driver's version, with its exact version."""
    kernel_packages: Mapping[str, str]
    """The kernel's image and headers."""

    @property
    def fabric_manager(self) -> str:
        """NVIDIA's package for nodes whose cards are joined by NVSwitch; of the driver's very version, too."""
        return f"nvidia-fabricmanager-{self.driver.partition('.')[0]}"


def resolved(
    offers: Offers, driver: str | None, kernel: str | None, modules: Modules = PROPRIETARY, *, nvswitch: bool = False
) -> Pins:
    """The wanted driver and kernel, or the newest of each. MlopsError names what there is if one is not there.

    Args:
        offers: of the mirror.
        driver: version of the driver; None: the newest that has such modules.
        kernel: release of the kernel; None: the newest.
        modules: which kernel modules.
        nvswitch: whether the node needs the fabric manager.
    """
    drivers = map(_upstream, offers.get(modules.source, ()))
    kernels = (match[1] for match in map(KERNEL.fullmatch, offers) if match)
    wanted_driver = _chosen(f"drivers with {modules.kind} kernel modules", "driver", driver, drivers)
    wanted_kernel = _chosen("kernels", "kernel", kernel, kernels)
    exact = _of(offers, "libnvidia-ml1", wanted_driver)
    own = {name: exact for name, versions in offers.items() if exact in versions and not _OTHERS.match(name)}
    own |= {
        name: version for name in (modules.source, modules.support) if (version := _of(offers, name, wanted_driver))
    }
    if missing := [name for name in (*USER_SPACE, modules.support) if name not in own]:
        raise MlopsError(
            f"the mirror has driver {wanted_driver} without its {', '.join(missing)}",
            _REBUILD,
        )
    kernel_packages = {name: max(offers[name], key=numbers) for name in packages_of(wanted_kernel) if name in offers}
    if missing := [name for name in packages_of(wanted_kernel) if name not in kernel_packages]:
        raise MlopsError(f"the mirror has kernel {wanted_kernel} without {', '.join(missing)}", _REBUILD)
    pins = Pins(wanted_driver, wanted_kernel, modules, own, kernel_packages)
    return _with_fabric_manager(pins, offers) if nvswitch else pins


def packages_of(kernel: str) -> tuple[str, str]:
    """A kernel's image and its headers."""
    return f"linux-image-{kernel}", f"linux-headers-{kernel}"


def _with_fabric_manager(pins: Pins, offers: Offers) -> Pins:
    version = _of(offers, pins.fabric_manager, pins.driver)
    if not version:
        raise MlopsError(
            f"cards joined by NVSwitch need {pins.fabric_manager} {pins.driver}, which the mirror does not have",
            f"Debian does not have it. Take it from NVIDIA's repository for Debian 12, put the .deb into "
            f"artifacts/debs/gpu-bookworm/, and run ./mlops mirror build {ARTIFACT}.",
        )
    return replace(pins, driver_packages={**pins.driver_packages, pins.fabric_manager: version})


def _of(offers: Offers, package: str, driver: str) -> str:
    """Version of a package that is a driver's; empty if there is none."""
    return max((one for one in offers.get(package, ()) if _upstream(one) == driver), key=numbers, default="")


def _upstream(version: str) -> str:
    return version.partition("-")[0]


def _chosen(what: str, setting: str, wanted: str | None, offered: Iterable[str]) -> str:
    newest_first = sorted(offered, key=numbers, reverse=True)
    if wanted is None and newest_first:
        return newest_first[0]
    if wanted in newest_first:
        return str(wanted)
    there = ", ".join(newest_first) or "none"
    raise MlopsError(
        f"settings.gpu.{setting} is {wanted or 'not given'}, and the mirror has {there} as {what}",
        f"Write one of these into site.yaml, or fetch what Debian has today: ./mlops mirror build --again {ARTIFACT}.",
    )


def numbers(version: str) -> tuple[int, ...]:
    """The numbers in a version, by which versions of one kind are compared."""
    return tuple(int(part) for part in re.findall(r"\d+", version))
