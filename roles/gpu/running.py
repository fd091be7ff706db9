"""What a GPU node runs with, and where that is written: for its steps and for its verification alike. Pure."""

from __future__ import annotations

from dataclasses import dataclass

RUN = "/run/onprem-gpu"
SPECIFICATION = "/run/cdi/k8s.device-plugin.nvidia.com-gpu.yaml"
"""What containers are told of the cards."""
BOOT_DEFAULT = "/etc/default/grub.d/90-onprem-gpu.cfg"
"""Which kernel boots. A node that has it was laid down before."""


@dataclass(frozen=True)
class Running:
    """What a node runs with now; empty where there is none. Simulated: what its last boot would have."""

    kernel: str
    driver: str
    """Version of the loaded kernel module."""
    modules: str
    """Kind of the loaded kernel module."""
    mig: str
    """The profile that cards are cut into."""


def asking(*, simulated: bool) -> str:
    """Shell: says what a node runs with, for `told`."""
    if simulated:
        return (
            f"cat {RUN}/kernel || echo none; cat {RUN}/modules || echo none; "
            f"sed -n 's/^driver\\t\\([^\\t]*\\).*/\\1/p' {RUN}/simulated; echo none; echo none"
        )
    # The kernel marks what is not free: P.
    return (
        "uname -r; if ! [ -e /sys/module/nvidia/version ]; then echo none; "
        "elif grep -q P /sys/module/nvidia/taint; then echo proprietary; else echo open; fi; "
        f"cat /sys/module/nvidia/version || echo none; cat {RUN}/mig || echo none"
    )


def told(said: str) -> Running:
    """What a node said when it was asked."""
    kernel, modules, driver, mig = [*said.split(), *["none"] * 4][:4]
    return Running(*("" if one == "none" else one for one in (kernel, driver, modules, mig)))
