"""Nodes on this machine, booted as containers and reached over SSH like real ones."""

from onprem_mlops.lab.keys import LabKeys, ensure_keys
from onprem_mlops.lab.lab import (
    Listener,
    NodeStatus,
    clear_netem,
    describe_destruction,
    destroy,
    down,
    is_there,
    netem,
    power_cut,
    reboot,
    shell,
    start,
    status,
    up,
)
from onprem_mlops.lab.readiness import ssh_command
from onprem_mlops.lab.spec import DATA_FOLDERS, LabNode, LabSpec, bridge_name

__all__ = [
    "DATA_FOLDERS",
    "LabKeys",
    "LabNode",
    "LabSpec",
    "Listener",
    "NodeStatus",
    "bridge_name",
    "clear_netem",
    "describe_destruction",
    "destroy",
    "down",
    "ensure_keys",
    "is_there",
    "netem",
    "power_cut",
    "reboot",
    "shell",
    "ssh_command",
    "start",
    "status",
    "up",
]
