"""What listens on the nodes beside the cluster: whose certificate it shows, and as whom it runs."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest

from onprem_mlops.verify.suite import DoesNotApply, Listener, NodeHost, Site, listeners, until

CLUSTER = {"control_plane", "worker"}
"""Groups whose nodes serve with the cluster's own authority; role kubernetes looks at those."""

LASTS_SECONDS = 30
_GREETING = """
exec 3<>/dev/tcp/{address}/{port} && timeout 1 head -c 4 <&3
"""
"""What a server says first: only SSH speaks before it is asked."""


@pytest.fixture
def reachable(node: NodeHost) -> list[Listener]:
    """Sockets that others than the node itself could reach, one a port."""
    if CLUSTER & set(node.site_node.groups):
        raise DoesNotApply("a node of the cluster, whose listeners role kubernetes looks at")
    found = {one.port: one for one in listeners(node) if one.protocol == "tcp" and not one.loopback}
    return list(found.values())


def _chain(node: NodeHost, port: int, name: str, *options: str) -> str:
    """What openssl says of the certificate at a port of the node under a name; empty if all is well."""
    said: str = node.run(
        "openssl s_client -connect %s:%s -servername %s -verify_hostname %s -verify_return_error "
        f"-CAfile /etc/ssl/certs/ca-certificates.crt {' '.join(options)} </dev/null 2>&1",
        node.address,
        str(port),
        name,
        name,
    ).stdout
    if re.search(r"^Verif(y return code|ication): ?(0 \(ok\)|OK)", said, re.MULTILINE):
        return ""
    lines = [line for line in said.splitlines() if "error" in line.lower()]
    return lines[0] if lines else said.strip()[-200:]


def _wrong(node: NodeHost, port: int, names: Iterable[str]) -> str:
    """What is wrong with what a port serves; empty for SSH, and for a certificate that is good for one of the names."""
    said = ""
    for name in names:
        for options in ((), ("-starttls", "postgres")):
            said = _chain(node, port, name, *options)
            if not said:
                return ""
    greeting = node.run("bash -c %s", _GREETING.format(address=node.address, port=port).strip())
    return "" if greeting.stdout.startswith("SSH-") else said


def _lasting(node: NodeHost, found: Iterable[Listener]) -> set[Listener]:
    """Those that are still there after a while: the firewall's suite has some for a moment, beside this one."""
    lasting = set(found)

    def is_gone() -> bool:
        lasting.intersection_update(listeners(node))
        return not lasting

    until(is_gone, LASTS_SECONDS, 1)
    return lasting


@pytest.mark.limit(120)
def test_every_listener_shows_a_certificate_of_the_site(node: NodeHost, site: Site, reachable: list[Listener]) -> None:
    """Whatever a node serves to others is SSH, or TLS with a certificate that the site's authority signed for it.

    `./mlops deploy` renews what is due; a listener that no role laid down is not the platform's.
    """
    own = [name for name, addresses in site.names.items() if node.address in map(str, addresses)]
    wrong = {one: said for one in reachable if (said := _wrong(node, one.port, own))}
    wrong = {one: wrong[one] for one in _lasting(node, wrong)}
    assert not wrong, f"{node.name}: " + "; ".join(f"{one}: {said}" for one, said in wrong.items())


def test_every_service_is_a_user_of_its_own(node: NodeHost, reachable: list[Listener]) -> None:
    """Nothing that a node serves to others runs as root but sshd, and no two services share an account."""
    users: dict[str, set[str]] = {}
    for one in reachable:
        unit, user = node.check_output("ps -o unit:128=,user:32= -p %s", str(one.pid)).split()
        if unit != "ssh.service":
            users.setdefault(user, set()).add(unit)
    assert "root" not in users, f"{node.name}: as root: {', '.join(sorted(users['root']))}"
    shared = {user: units for user, units in users.items() if len(units) > 1}
    assert not shared, f"{node.name}: " + "; ".join(f"{user}: {', '.join(sorted(by))}" for user, by in shared.items())
