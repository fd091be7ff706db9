"""Who gets in: SSH as it really answers, and sudo."""

from __future__ import annotations

import contextlib

import paramiko
import pytest

from onprem_mlops.verify.suite import DoesNotApply, NodeHost, Site

EFFECTIVE = {
    "permitrootlogin": "no",
    "passwordauthentication": "no",
    "kbdinteractiveauthentication": "no",
    "pubkeyauthentication": "yes",
    "permitemptypasswords": "no",
    "hostbasedauthentication": "no",
    "permituserenvironment": "no",
    "x11forwarding": "no",
    "allowagentforwarding": "no",
    "permittunnel": "no",
}


@pytest.mark.controls("CIS Debian 5.1")
def test_effective_configuration(node: NodeHost, site: Site) -> None:
    """The SSH server's effective configuration takes keys only, and nobody as root."""
    wanted = EFFECTIVE | ({"permitrootlogin": "without-password"} if site.ssh.user == "root" else {})
    said = dict(line.split(" ", 1) for line in node.lines("sshd -T") if " " in line)
    wrong = [f"{key} {said.get(key)} (not {value})" for key, value in wanted.items() if said.get(key) != value]
    assert not wrong, f"{node.name}: {'; '.join(wrong)}"


def _offered(node: NodeHost, site: Site, user: str) -> list[str]:
    """The ways to prove who one is that the running server offers a user."""
    with contextlib.closing(paramiko.Transport((node.address, site.ssh.port))) as transport:
        transport.start_client(timeout=10)
        try:
            transport.auth_none(user)
        except paramiko.BadAuthenticationType as refusal:
            return list(refusal.allowed_types)
    raise AssertionError(f"{node.name}: {user} was let in without any proof")


def test_password_is_refused(node: NodeHost, site: Site) -> None:
    """A login with a password is refused, whatever the password."""
    offered = _offered(node, site, site.ssh.user)
    assert offered == ["publickey"], f"{node.name}: the SSH server offers {site.ssh.user}: {', '.join(offered)}"
    with contextlib.closing(paramiko.Transport((node.address, site.ssh.port))) as transport:
        transport.start_client(timeout=10)
        with contextlib.suppress(paramiko.AuthenticationException):
            transport.auth_password(site.ssh.user, "verify: not a password", fallback=False)
            raise AssertionError(f"{node.name}: a made-up password let {site.ssh.user} in")


def test_root_is_refused(node: NodeHost, site: Site) -> None:
    """A login as root is refused, even with the key that opens the deploy account."""
    if site.ssh.user == "root":
        raise DoesNotApply("the site file makes root the deploy account")
    key = paramiko.Ed25519Key.from_private_key_file(str(site.ssh.key))
    with contextlib.closing(paramiko.Transport((node.address, site.ssh.port))) as transport:
        transport.start_client(timeout=10)
        with contextlib.suppress(paramiko.AuthenticationException):
            transport.auth_publickey("root", key)
            raise AssertionError(f"{node.name}: the deploy account's key let root in")


def test_sudo_files(node: NodeHost) -> None:
    """The rules of sudo are sound, and only root can read or change them."""
    said = node.run("visudo -c")
    assert said.rc == 0, f"{node.name}: visudo says {said.stdout.strip() or said.stderr.strip()}"
    wrong = node.lines(
        "find /etc/sudoers /etc/sudoers.d -type f ! -name README "
        "\\( ! -perm 440 -o ! -user root -o ! -group root \\) -printf '%p is %m %u:%g\\n'"
    )
    assert not wrong, f"{node.name}: {'; '.join(wrong)} (not 440 root:root)"


def test_no_account_without_password(node: NodeHost) -> None:
    """No account has an empty password, and root is the only one with its rights."""
    empty = node.lines("awk -F: '$2 == \"\" {print $1}' /etc/shadow")
    assert not empty, f"{node.name}: accounts with an empty password: {', '.join(empty)}"
    roots = node.lines("awk -F: '$3 == 0 {print $1}' /etc/passwd")
    assert roots == ["root"], f"{node.name}: accounts with uid 0: {', '.join(roots)}"
