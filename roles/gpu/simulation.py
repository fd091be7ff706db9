"""What stands in for cards where a site file says that they are simulated, and says so wherever it shows."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from onprem_mlops.engine.operations import files, shell
from onprem_mlops.roles import Context

from . import cards
from .running import BOOT_DEFAULT, RUN
from .settings import Settings

PROGRAM = "/usr/local/sbin/onprem-gpu-simulated"
CARDS = "/etc/onprem-gpu/cards"
QUIET = "/etc/modprobe.d/00-onprem-gpu-simulated.conf"


def root(ctx: Context[Settings]) -> str:
    """Where the libraries of a simulated driver lie."""
    return f"{ctx.settings.folder}/simulated"


def configuration(ctx: Context[Settings]) -> tuple[str, ...]:
    """Files that the service which loads the driver reads."""
    return PROGRAM, CARDS, _library(ctx)


def _library(ctx: Context[Settings]) -> str:
    """What answers for the cards."""
    return f"{ctx.settings.folder}/simulated-nvml/libnvidia-ml.so.1"


def laid_down(ctx: Context[Settings], authority: str) -> None:
    """The library, which cards there are, and what stands in for the boot."""
    library = _library(ctx)
    files.download("SIMULATED cards", library, ctx.file("simulated-gpu", "libnvidia-ml.so.1"), authority=authority)
    files.content("SIMULATED cards: which", CARDS, ctx.render("cards.j2", simulated_cards=_cards(ctx)))
    text = ctx.render(
        "onprem-gpu-simulated.j2", root=root(ctx), boot_default=BOOT_DEFAULT, library=library, cards=CARDS, run=RUN
    )
    files.content("SIMULATED cards: boot and driver", PROGRAM, text, mode="755")
    # The packages have systemd load the driver, into a kernel that it was not built for.
    files.content("SIMULATED cards: no kernel loads the driver", QUIET, "install nvidia-drm /bin/true\n")


def gone() -> None:
    """Nothing that only a boot would take away."""
    shell.run("SIMULATED cards: no devices", "rm -f /dev/nvidia*", unless="! ls /dev/nvidia* >/dev/null 2>&1")


def _cards(ctx: Context[Settings]) -> Iterable[tuple[str, int, int, int, str, str]]:
    index = 0
    for gpu in ctx.node.facts.gpus:
        model = cards.simulated(gpu.model)
        for _ in range(gpu.count):
            name = uuid.uuid5(uuid.NAMESPACE_DNS, f"{index}.{ctx.site.full_name(ctx.node)}")
            yield gpu.model, model.mebibytes, *model.capability, f"GPU-{name}", f"00000000:{index + 1:02X}:00.0"
            index += 1
