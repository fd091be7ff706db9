"""How a site's node is reached. For the engine and for verification, which must not import each other."""

from __future__ import annotations

from onprem_mlops.errors import RequestError
from onprem_mlops.shell import Endpoint
from onprem_mlops.site import Node, Site


def endpoint(site: Site, node: Node) -> Endpoint:
    """Where and as whom a node is reached. Raises RequestError if its host key is not known yet."""
    if node.host_key is None:
        raise RequestError(
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
