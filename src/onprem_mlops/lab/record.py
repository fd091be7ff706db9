"""The lab as it was last brought up, so that taking it down does not depend on a site file changed since."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from onprem_mlops.atomic import write_atomically
from onprem_mlops.errors import RequestError
from onprem_mlops.lab.folders import LabFolders
from onprem_mlops.lab.spec import LabNode, LabSpec


def check_and_write(spec: LabSpec) -> None:
    """Record the lab. Raises RequestError if it exists with another network or bridge, or other data folders."""
    known = read(spec)
    for what in ("network", "bridge", "user", "controller", "data_folders"):
        before, now = getattr(known, what), getattr(spec, what)
        if before != now:
            raise RequestError(
                f"lab {spec.site} was made with {what} {before}, not {now}",
                f"Destroy the lab {spec.site} and bring it up again, or undo the change.",
            )
    write_atomically(LabFolders(spec.site).spec, json.dumps(_plain(_joined(known, spec)), indent=1).encode())


def read(spec: LabSpec) -> LabSpec:
    """The lab as it is on this machine, with nodes that the site file no longer has; `spec` itself if it is new."""
    file = LabFolders(spec.site).spec
    if not file.exists():
        return spec
    known = json.loads(file.read_text())
    return LabSpec(
        site=spec.site,
        nodes=tuple(
            LabNode(one["name"], IPv4Address(one["address"]), one["release"], one["memory_mib"])
            for one in known["nodes"]
        ),
        network=IPv4Network(known["network"]),
        bridge=known["bridge"],
        user=known["user"],
        host_address=IPv4Address(known["host_address"]),
        data_folders=tuple(known["data_folders"]),
    )


def _joined(known: LabSpec, spec: LabSpec) -> LabSpec:
    names = {node.name for node in spec.nodes}
    gone = tuple(node for node in known.nodes if node.name not in names)
    return replace(spec, nodes=spec.nodes + gone)


def _plain(spec: LabSpec) -> dict[str, object]:
    return {
        "network": str(spec.network),
        "bridge": spec.bridge,
        "user": spec.user,
        "host_address": str(spec.controller.ip),
        "data_folders": list(spec.data_folders),
        "nodes": [
            {
                "name": node.name,
                "address": str(node.address),
                "release": node.release,
                "memory_mib": node.memory_mib,
            }
            for node in spec.nodes
        ],
    }
