"""A site as pyinfra sees it."""

from __future__ import annotations

import logging
import resource
from pathlib import Path
from typing import Any

from pyinfra.api.config import Config
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State, StateStage
from pyinfra.connectors.base import BaseConnector

from onprem_mlops.endpoint import endpoint
from onprem_mlops.engine.connector import ENDPOINT, FramedConnector
from onprem_mlops.errors import RequestError
from onprem_mlops.site import Node, Site, load_site

FILES_PER_NODE = 6
"""A socket, and two pipes that wake a waiting command."""


def immediate_state(
    site: Site, nodes: tuple[Node, ...], connector: type[BaseConnector] = FramedConnector, **data: Any
) -> State:
    """A pyinfra state in immediate mode: an operation that is called is an operation that is done."""
    if not nodes:
        raise RequestError("the run covers no node")
    # Failures reach people as our events; pyinfra's own lines about them would say everything twice.
    logging.getLogger("pyinfra").addHandler(logging.NullHandler())
    logging.getLogger("pyinfra").propagate = False
    _allow_files(len(nodes) * FILES_PER_NODE + 200)
    inventory = Inventory(([(node.name, data) for node in nodes], {}))
    for node in nodes:
        host = inventory.get_host(node.name)
        host.connector_cls = connector
        if connector is FramedConnector:
            host.connector_data[ENDPOINT] = endpoint(site, node)
    state = State(inventory, Config(), check_for_changes=False)
    for stage in (StateStage.Connect, StateStage.Prepare, StateStage.Execute):
        state.set_stage(stage)
    state.is_executing = True
    return state


def _allow_files(wanted: int) -> None:
    """Raise this process's limit of open files, as far as it may, for runs on many nodes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def groups(inventory_file: str) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """The site beside an `inventory.py` as plain pyinfra wants it: group name → nodes with their connection data.

    The pinned host keys go into a known_hosts file in the site's state folder; pyinfra is told to be strict.
    """
    site = load_site(Path(inventory_file).resolve().parent)
    known_hosts = site.state / "known_hosts"
    known_hosts.parent.mkdir(parents=True, exist_ok=True)
    port = site.ssh.port
    lines = [
        f"{node.address if port == 22 else f'[{node.address}]:{port}'} {endpoint(site, node).host_key}\n"
        for node in site.nodes
    ]
    known_hosts.write_text("".join(lines))
    shared = {
        "ssh_user": site.ssh.user,
        "ssh_port": port,
        "ssh_key": str(site.ssh.key),
        "ssh_known_hosts_file": str(known_hosts),
        "ssh_strict_host_key_checking": "yes",
        "ssh_allow_agent": False,
        "ssh_look_for_keys": False,
        "_sudo": site.ssh.sudo,
        "mlops_inventory": str(site.folder),
    }
    named = {node.name: (node.name, {"ssh_hostname": str(node.address), **shared}) for node in site.nodes}
    return {group: [named[node.name] for node in site.in_group(group)] for group in site.groups}
