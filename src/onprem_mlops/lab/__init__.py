"""Nodes on this machine, booted as containers and reached over SSH like real ones."""

from onprem_mlops.lab.keys import DEPLOY_USER, LabKeys, ensure_keys
from onprem_mlops.lab.lab import (
    Listener,
    NodeStatus,
    describe_destruction,
    destroy,
    down,
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
    "DEPLOY_USER",
    "LabKeys",
    "LabNode",
    "LabSpec",
    "Listener",
    "NodeStatus",
    "bridge_name",
    "describe_destruction",
    "destroy",
    "down",
    "ensure_keys",
    "power_cut",
    "reboot",
    "shell",
    "ssh_command",
    "start",
    "status",
    "up",
]
