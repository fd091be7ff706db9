"""The nodes of a site, each connected when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onprem_mlops.endpoint import endpoint
from onprem_mlops.errors import RequestError
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
            self._hosts[name] = NodeHost(Connection(self._endpoint(by_name[name])), by_name[name])
        host = self._hosts[name]
        host.connect()
        return host

    def _endpoint(self, node: Node) -> Endpoint:
        try:
            return endpoint(self._site, node)
        except RequestError as error:
            raise NotChecked(error.message, error.advice) from None

    def __iter__(self) -> Iterator[str]:
        return iter(node.name for node in self._site.nodes)

    def __len__(self) -> int:
        return len(self._site.nodes)

    def close(self) -> None:
        """Close all connections; the next use of a node makes a new one."""
        for host in self._hosts.values():
            host.close()
        self._hosts.clear()
