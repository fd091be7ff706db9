"""Which driver and which kernel a site's nodes have, of those that its mirror offers. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from onprem_mlops.errors import MlopsError

Offers = Mapping[str, tuple[str, ...]]
"""Package → versions, as the mirror's archive has them."""

SOURCE = "nvidia-kernel-dkms"
_KERNEL = re.compile(r"linux-image-(\d[\d.]*-\d+-amd64)")
USER_SPACE = ("libcuda1", "libnvidia-ml1", "libnvidia-ptxjitcompiler1", "nvidia-smi")
"""What programs use of the driver; it must be of exactly the kernel module's version."""


@dataclass(frozen=True)
class Pins:
    """One driver and one kernel that belong together, and what to install for them."""

    driver: str
    """Upstream's version, such as 535.309.01."""
    kernel: str
    """Its release, such as 6.1.0-56-amd64."""
    driver_packages: Mapping[str, str]
    """Every package of the driver's own source, with its exact version."""
    kernel_packages: Mapping[str, str]
    """The kernel's image and headers."""


def resolved(offers: Offers, driver: str | None, kernel: str | None) -> Pins:
    """The wanted driver and kernel, or the newest of each. MlopsError names what there is if one is not there."""
    drivers = {_upstream(version): version for version in offers.get(SOURCE, ())}
    kernels = [match[1] for match in map(_KERNEL.fullmatch, offers) if match]
    wanted_driver = _chosen("driver", driver, list(drivers))
    wanted_kernel = _chosen("kernel", kernel, kernels)
    exact = drivers[wanted_driver]
    own = {name: exact for name, versions in offers.items() if exact in versions}
    if missing := [name for name in USER_SPACE if name not in own]:
        raise MlopsError(
            f"the mirror has driver {wanted_driver} without its {', '.join(missing)}",
            "Build the archive again: ./mlops mirror build --again debs-gpu-bookworm.",
        )
    images = (f"linux-image-{wanted_kernel}", f"linux-headers-{wanted_kernel}")
    return Pins(wanted_driver, wanted_kernel, own, {name: offers[name][-1] for name in images if name in offers})


def _upstream(version: str) -> str:
    return version.partition("-")[0]


def _chosen(what: str, wanted: str | None, offered: list[str]) -> str:
    newest_first = sorted(offered, key=_numbers, reverse=True)
    if wanted is None and newest_first:
        return newest_first[0]
    if wanted in newest_first:
        return str(wanted)
    raise MlopsError(
        f"settings.gpu.{what} is {wanted or 'not given'}, and the mirror has {', '.join(newest_first) or 'none'}",
        f"Write one of these into site.yaml, or fetch what Debian has today: ./mlops mirror build --again "
        f"debs-gpu-bookworm. What is replaced there goes from the mirror; a {what} in use stays pinned on its nodes.",
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
