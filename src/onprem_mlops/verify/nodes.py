"""The nodes of a site, each connected when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onprem_mlops.shell import Connection, Endpoint
from onprem_mlops.site import Node, Site
from onprem_mlops.verify.backend import NodeHost
from onprem_mlops.verify.outcomes import NotChecked


class Nodes(Mapping[str, NodeHost]):
    """Nodes by name, in the order of the site file."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._hosts: dict[str, NodeHost] = {}

    def __getitem__(self, name: str) -> NodeHost:
        """The node, connected. NotChecked if it cannot be reached, KeyError if there is none."""
        if name not in self._hosts:
            by_name = {node.name: node for node in self._site.nodes}
            self._hosts[name] = NodeHost(Connection(endpoint(self._site, by_name[name])), by_name[name])
        host = self._hosts[name]
        host.connect()
        return host

    def __iter__(self) -> Iterator[str]:
        return iter(node.name for node in self._site.nodes)

    def __len__(self) -> int:
        return len(self._site.nodes)

    def close(self) -> None:
        """Close all connections; the next use of a node makes a new one."""
        for host in self._hosts.values():
            host.close()
        self._hosts.clear()


def endpoint(site: Site, node: Node) -> Endpoint:
    """Where and as whom a node is reached. NotChecked if its host key is not known yet."""
    if node.host_key is None:
        raise NotChecked(
            f"node {node.name} has no host key yet", "A lab's keys are made by its first `./mlops lab up`."
        )
    return Endpoint(
        name=node.name,
        address=str(node.address),
        port=site.ssh.port,
        user=site.ssh.user,
        key=site.ssh.key,
        host_key=node.host_key,
        sudo=site.ssh.sudo,
    )
