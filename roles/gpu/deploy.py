"""Lays down NVIDIA's driver with the kernel that it is built for: built first, then switched, one node at a time."""

from __future__ import annotations

import shlex

from onprem_mlops.endpoint import endpoint
from onprem_mlops.engine.facts import probe
from onprem_mlops.engine.operations import apt, files, rolling, shell
from onprem_mlops.errors import MlopsError
from onprem_mlops.roles import Context, admission, step

from . import cards
from .pins import Pins, resolved
from .settings import Settings

ON = "gpu"
ARCHIVE = "bookworm-gpu"
SOURCES = "/etc/apt/sources.list.d/onprem-mlops-gpu.sources"
TOOLS = ("dkms", "gcc-12", "mokutil", "pciutils")
NOUVEAU = "/etc/modprobe.d/onprem-mlops-nouveau.conf"
DEBIANS = "/usr/share/nvidia-current-dkms"
"""Where Debian's package looks for modules that are built already."""


@admission(on=ON)
def fit(ctx: Context[Settings]) -> None:
    """Refuse a pin that the mirror does not have, a release that it has no driver for, and cards that it does not fit."""
    codename = probe('. /etc/os-release; echo "$VERSION_CODENAME"').text.strip()
    if codename != "bookworm":
        raise MlopsError(
            f"{ctx.node.name} runs Debian {codename}, and the mirror has drivers for bookworm (12) only",
            "Take the node out of group gpu, or install Debian 12 on it.",
        )
    pins = _pins(ctx)
    if ctx.settings.simulated(ctx.node):
        return
    found = cards.cards(probe(cards.LISTED).text)
    modules = ctx.settings.modules if ctx.settings.modules != "auto" else cards.fitting_modules(found)
    if wrong := cards.misfits(pins.driver, modules, found):
        raise MlopsError(
            f"{ctx.node.name}: driver {pins.driver} does not fit: {'; '.join(wrong)}",
            "Pin another driver in settings.gpu.driver, or take the card out.",
        )
    if modules == "open":
        raise MlopsError(
            f"{ctx.node.name} needs NVIDIA's open kernel modules, which Debian 12 has in no version of its driver",
            "Such cards need a driver of NVIDIA's own repository, which this version does not lay down.",
        )


@step(on=ON)
def kernel(ctx: Context[Settings]) -> None:
    """The kernel that the driver is built for, with its headers, and the tools that build; all held."""
    pins = _pins(ctx)
    keyring = "/etc/apt/keyrings/onprem-mlops.asc"
    files.content("the driver's archive on the mirror", SOURCES, ctx.render("apt.sources.j2", keyring=keyring))
    files.content("nouveau keeps off the cards", NOUVEAU, "blacklist nouveau\noptions nouveau modeset=0\n")
    apt.packages("what builds kernel modules", *TOOLS)
    apt.pinned("the kernel that the driver is built for", pins.kernel_packages)


@step(on=ON, after=("kernel",))
def modules(ctx: Context[Settings]) -> None:
    """The driver's modules for that kernel, built beside what runs."""
    pins = _pins(ctx)
    files.directory("modules as they were built", ctx.settings.folder, mode="755")
    archive = _archive(ctx, pins)
    build = ctx.render("build.sh.j2", pins=pins, archive=archive)
    shell.run(
        f"modules of driver {pins.driver} for kernel {pins.kernel}",
        f"bash -c {shlex.quote(build)}",
        unless=f"[ -s {archive} ]",
        timeout=3600,
    )


@step(on=ON, after=("modules",))
def switch(ctx: Context[Settings]) -> None:
    """The node has that driver, in the kernel and in user space: emptied before, booted if it has to, let in again."""
    pins = _pins(ctx)
    if _is_there(ctx, pins):
        apt.pinned("the driver", pins.driver_packages)
        return
    plane = endpoint(ctx.site, ctx.nodes("control_plane")[0])
    with rolling.Turns.take():
        rolling.drained("no pod works on the node", ctx.node.name, plane)
        shell.run(
            "modules where Debian's package takes them from",
            f"mkdir -p {DEBIANS} && cp --remove-destination {_archive(ctx, pins)} "
            f"{DEBIANS}/nvidia-current-{pins.driver}.dkms.tar.gz",
            unless=f"cmp -s {_archive(ctx, pins)} {DEBIANS}/nvidia-current-{pins.driver}.dkms.tar.gz",
        )
        apt.pinned("the driver", pins.driver_packages)
        rolling.booted("the node runs with it", seconds=ctx.settings.boot_minutes * 60)
        if not ctx.planning and not _is_there(ctx, pins):
            raise MlopsError(
                f"{ctx.node.name} booted, and does not run kernel {pins.kernel} with driver {pins.driver}",
                "The way back is the version before: write it into settings.gpu.driver (or kernel) and deploy again.",
            )
        rolling.let_in("pods come to the node again", ctx.node.name, plane)


def _pins(ctx: Context[Settings]) -> Pins:
    return resolved(ctx.package_offers(ARCHIVE), ctx.settings.driver, ctx.settings.kernel)


def _archive(ctx: Context[Settings], pins: Pins) -> str:
    return f"{ctx.settings.folder}/modules/{pins.driver}-{pins.kernel}.tar.gz"


def _is_there(ctx: Context[Settings], pins: Pins) -> bool:
    """Whether the node runs the pinned kernel with the pinned driver loaded. Simulated: what a boot would have loaded."""
    loaded = "/run/onprem-gpu/loaded" if ctx.settings.simulated(ctx.node) else "/sys/module/nvidia/version"
    running = f"cat {ctx.settings.folder}/booted" if ctx.settings.simulated(ctx.node) else "uname -r"
    said = probe(f"cat {loaded}; {running}").text.split()
    return said == [pins.driver, pins.kernel]
