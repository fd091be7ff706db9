"""Lays down what every node needs. `base` needs no package, so that it can run before the mirror serves any."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network
from typing import Any

from onprem_mlops.engine.facts import probe
from onprem_mlops.engine.operations import apt, files, network, server, shell, systemd
from onprem_mlops.errors import MlopsError
from onprem_mlops.roles import ALL, Context, admission, removal, step
from roles.node.settings import KERNEL_PARAMETERS, Settings

KEYRING = "/etc/apt/keyrings/onprem-mlops.asc"
SOURCES = "/etc/apt/sources.list.d/onprem-mlops.sources"
APT_CONF = "/etc/apt/apt.conf.d/50onprem-mlops"
UPGRADES = "/etc/apt/apt.conf.d/90onprem-mlops-upgrades"
FOREIGN_SOURCES = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources")
SYSCTL = "/etc/sysctl.d/90-onprem-mlops.conf"
MODULES = "/etc/modules-load.d/onprem-mlops.conf"
JOURNALD = "/etc/systemd/journald.conf.d/onprem-mlops.conf"
SSHD = "/etc/ssh/sshd_config.d/00-onprem-mlops.conf"
SUDOERS = "/etc/sudoers.d/90-onprem-mlops"
CHRONY = "/etc/chrony/onprem-mlops.conf"
CHRONY_UNIT = "/etc/systemd/system/chrony.service.d/onprem-mlops.conf"
PACKAGES = ("ca-certificates", "chrony", "curl")
UPDATES = "unattended-upgrades"
UPDATE_LOGS = "/var/log/unattended-upgrades"

CLOCK_SECONDS = 300
"""How far a node's clock may be off before it is laid down; the time service mends what is less."""

OUR_DEVICES = ("cali", "vxlan.calico", "tunl0", "wireguard.cali", "kube-ipvs", "nodelocaldns")
"""Beginnings of interfaces whose routes into the pods' network are the cluster's own."""


@admission(on=ALL)
def fit(ctx: Context[Settings]) -> None:
    """Refuse what is no Debian 12 or 13 on x86_64, a wrong clock, and routes into the pods' or Services' network."""
    refuse_wrong_clock(ctx)
    refuse_unless_supported(ctx)
    refuse_overlapping_routes(ctx)


@step(on=ALL)
def base(ctx: Context[Settings]) -> None:
    """Identity, trust, kernel, journal, SSH and sudo: all that needs no package."""
    # Asked again, at no cost: under plain pyinfra nobody has asked before.
    release = refuse_unless_supported(ctx)
    refuse_overlapping_routes(ctx)
    _identity(ctx)
    _kernel(ctx)
    _journal(ctx)
    _access(ctx)
    # Sources that a bare node came with lead out of the site; with the mirror's, apt would wait for them in vain.
    files.set_aside(f"no package sources outside the site ({release})", *FOREIGN_SOURCES)


@step(on=ALL, after=("base",))
def packages(ctx: Context[Settings]) -> None:
    """What needs the mirror and what others need: package sources, trust in the system's bundle, time."""
    codename = refuse_unless_supported(ctx)
    _package_sources(ctx, codename)
    apt.packages("base packages", *PACKAGES)
    # Before anything else runs on the node: what is upgraded restarts.
    versions = ctx.package_versions(codename)
    held = {name: versions[name] for name in ctx.settings.held_packages if name in versions}
    apt.upgraded("held packages as the mirror has them", held)
    apt.held("held packages are still held", *held)
    shell.run(
        "the site's authority in the system's trust store",
        "update-ca-certificates",
        unless=f"cmp -s /etc/ssl/certs/onprem-mlops.pem {ctx.settings.authority_path} && "
        f"[ ! {ctx.settings.authority_path} -nt /etc/ssl/certs/ca-certificates.crt ]",
    )
    _time(ctx)


@step(on=ALL, after=("base",))
def updates(ctx: Context[Settings]) -> None:
    """Security updates by themselves. Nothing waits for them, so they are laid down beside what others wait for."""
    apt.packages("package of automatic updates", UPDATES)
    files.content("automatic security updates", UPGRADES, ctx.render("unattended-upgrades.conf.j2"))
    apt.held("packages that only a deploy may upgrade", *ctx.settings.held_packages)


@removal(on=ALL)
def remove(ctx: Context[Settings]) -> None:
    """Take everything off again. The deploy account keeps its rights if nothing else gives them."""
    apt.unheld("packages may be upgraded again")
    files.absent("no own time configuration", CHRONY, CHRONY_UNIT)
    apt.purged("packages of this role", *(name for name in (*PACKAGES, UPDATES) if name != "ca-certificates"))
    shell.run(
        "no logs of automatic updates, if these came with this role",
        f"rm -rf {UPDATE_LOGS}",
        unless=f"[ ! -d {UPDATE_LOGS} ] || dpkg -s {UPDATES} >/dev/null 2>&1",
    )
    files.absent("no own configuration of apt", UPGRADES, APT_CONF, SOURCES, KEYRING)
    files.brought_back("the package sources that the node had", *FOREIGN_SOURCES)
    _remove_trust(ctx)
    network.no_sshd("the SSH server as it was", SSHD)
    files.absent("no own kernel and journal settings", SYSCTL, MODULES, JOURNALD)
    server.sysctl_restored("kernel parameters as they were")
    systemd.service(
        "the journal as it was", "systemd-journald.service", configuration=(_parent(JOURNALD),), enabled=False
    )
    files.no_empty_folders("folders of this role", _parent(JOURNALD), _parent(CHRONY_UNIT))
    shell.run(
        "swap as it was",
        f"{_edited('/etc/fstab', 's|^# onprem-mlops ||')} && swapon -a",
        unless="! grep -q '^# onprem-mlops ' /etc/fstab",
    )
    files.block("no names of the site", "/etc/hosts", "")
    shell.run(
        "names of the node as they were",
        _edited("/etc/hosts", "s|^# onprem-mlops 127|127|"),
        unless="! grep -q '^# onprem-mlops 127' /etc/hosts",
    )
    shell.run(
        "no own rule of sudo, unless it is the only one", f"rm -f {SUDOERS}", unless=_only_rule(ctx.site.ssh.user)
    )
    # Last: they say what is still to be taken back.
    files.no_empty_folders("records of what roles changed", "/var/lib/onprem-mlops")


def refuse_unless_supported(ctx: Context[Settings]) -> str:
    """The node's Debian code name. Raises MlopsError, before anything is touched, for any other system."""
    system = probe('. /etc/os-release; echo "$ID|$VERSION_ID|$PRETTY_NAME"; uname -m').text.splitlines()
    identity, version, name = (system[0] if system else "||").split("|")
    machine = system[1] if len(system) > 1 else ""
    supported = ctx.settings.supported
    if identity != "debian" or version not in supported:
        raise MlopsError(
            f"{ctx.node.name} runs {name or 'an unknown system'}; nodes run Debian 12 or 13. Nothing was touched there",
            "Install Debian 12 or 13 on it, or take the node out of site.yaml.",
        )
    if machine != "x86_64":
        raise MlopsError(
            f"{ctx.node.name} is a machine of kind {machine}; nodes are x86_64 (amd64). Nothing was touched there",
            "Take the node out of site.yaml.",
        )
    if ctx.node.release not in (None, int(version)):
        raise MlopsError(
            f"{ctx.node.name} runs Debian {version}, site.yaml says {ctx.node.release}. Nothing was touched there",
            "Correct `release` of the node in site.yaml, or install that release.",
        )
    return supported[version]


def refuse_wrong_clock(ctx: Context[Settings]) -> None:
    """Raise MlopsError if the node's clock is so far off this machine's that certificates would be refused."""
    off = int(probe("date +%s").text) - time.time()
    if abs(off) > CLOCK_SECONDS:
        raise MlopsError(
            f"{ctx.node.name}: its clock is {_duration(abs(off))} {'ahead of' if off > 0 else 'behind'} this machine's",
            "Set the one that is wrong (`timedatectl set-time`, or the machine's own clock): with it the node would "
            "refuse the mirror's certificate, and the time service comes from there.",
        )


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 60:.0f} minutes"


def refuse_overlapping_routes(ctx: Context[Settings]) -> None:
    """Raise MlopsError if the node routes to a network of others inside the pods' or Services' network."""
    shown = probe("ip -4 -json route show table all")
    if found := list(overlapping_routes(json.loads(shown.text or "[]"), ctx.site.networks)):
        raise MlopsError(
            f"{ctx.node.name}: " + "; ".join(found) + ". Nothing was touched there",
            "Choose other networks.pods or networks.services in site.yaml: packets for that route would never arrive.",
        )


def overlapping_routes(routes: Iterable[dict[str, Any]], networks: Any) -> Iterator[str]:
    """What is wrong with each route into the pods' or Services' network that the cluster did not make itself."""
    planned = {"pods": networks.pods, "services": networks.services}
    for route in routes:
        if not _is_foreign(route):
            continue
        target = IPv4Network(str(route["dst"]), strict=False)
        device = route.get("dev", "no device")
        for name, planned_network in planned.items():
            if target.overlaps(planned_network):
                yield f"its route to {target} ({device}) overlaps the network of {name}, {planned_network}"


def _is_foreign(route: dict[str, Any]) -> bool:
    """Not the default route, not a local or broadcast entry, and not of the network plugin."""
    if route.get("dst") == "default" or route.get("type", "unicast") != "unicast":
        return False
    return not str(route.get("dev", "")).startswith(OUR_DEVICES)


def _identity(ctx: Context[Settings]) -> None:
    server.hostname("host name", ctx.node.name)
    addresses = ctx.settings.addresses_of_names(ctx.site)
    files.block("names of nodes and services", "/etc/hosts", ctx.render("hosts.j2", addresses=addresses))
    # Debian's installer gives a node's own name to its loopback, and resolvers prefer loopback to our line.
    shell.run(
        "the node's own name is its address",
        _edited("/etc/hosts", r"s|^127\.0\.1\.1\s|# onprem-mlops &|"),
        unless=r"! grep -q '^127\.0\.1\.1[[:space:]]' /etc/hosts",
    )
    files.content("certificate of the site's authority", ctx.settings.authority_path, ctx.authority_pem)


def _kernel(ctx: Context[Settings]) -> None:
    parameters = ctx.settings.kernel_parameters()
    files.content("kernel modules at boot", MODULES, ctx.render("modules.conf.j2"))
    server.modules("kernel modules now", *ctx.settings.modules)
    text = ctx.render("sysctl.conf.j2", values=parameters, reasons=KERNEL_PARAMETERS)
    files.content("kernel parameters at boot", SYSCTL, text)
    server.sysctl("kernel parameters now", parameters)
    if not ctx.settings.swap:
        # Commented out, not deleted, so that a removal can bring it back.
        shell.run(
            "no swap at boot",
            _edited("/etc/fstab", r"s|^[^#].*\sswap\s|# onprem-mlops &|"),
            unless=r"! grep -Eq '^[^#].*\sswap\s' /etc/fstab",
        )
        shell.run("no swap now", "swapoff -a", unless="[ $(wc -l </proc/swaps) -le 1 ]")


def _edited(path: str, expression: str) -> str:
    """Shell: a file with a sed expression done to it, whole at any time, with the mode and owner that it has."""
    new = f"{path}.mlops-new"
    # A group of its own: callers go on with &&.
    edit = f"cp -p {path} {new} && sed -E '{expression}' {path} >{new} && sync {new} && mv -fT {new} {path}"
    return f"{{ {edit} {files.or_removed(new)}; }}"


def _journal(ctx: Context[Settings]) -> None:
    files.content("journal on disk, within limits", JOURNALD, ctx.render("journald.conf.j2"))
    # systemd-journald is started by its sockets; nothing enables it.
    systemd.service("journal with this configuration", "systemd-journald.service", configuration=(JOURNALD,))


def _access(ctx: Context[Settings]) -> None:
    if ctx.site.ssh.user != "root":
        files.content(
            "rights of the deploy account", SUDOERS, ctx.render("sudoers.j2"), mode="440", check="visudo -cqf {}"
        )
    users = (ctx.site.ssh.user, *ctx.settings.admin_users)
    network.sshd("SSH server: keys only, no root, modern algorithms", SSHD, ctx.render("sshd.conf.j2", users=users))


def _package_sources(ctx: Context[Settings], codename: str) -> None:
    files.content("key of the store's package repository", KEYRING, ctx.package_key(codename))
    files.content("apt trusts the mirror and waits for its lock", APT_CONF, ctx.render("apt.conf.j2"))
    files.content(
        "the mirror as package source", SOURCES, ctx.render("apt.sources.j2", codename=codename, keyring=KEYRING)
    )


def _time(ctx: Context[Settings]) -> None:
    clock = ctx.settings.clock(ctx.site)
    files.content("time: who is asked", CHRONY, ctx.render("chrony.conf.j2", clock=clock))
    files.content("time: our configuration", CHRONY_UNIT, ctx.render("chrony.service.j2", configuration=CHRONY))
    systemd.service("time service", "chrony.service", configuration=(CHRONY, CHRONY_UNIT))


def _remove_trust(ctx: Context[Settings]) -> None:
    files.absent("no certificate of the site's authority", ctx.settings.authority_path)
    shell.run(
        "the system's trust store without it",
        "update-ca-certificates --fresh",
        unless="! command -v update-ca-certificates || [ ! -L /etc/ssl/certs/onprem-mlops.pem ]",
    )


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _only_rule(user: str) -> str:
    """Reading command: whether our sudo rule is gone, or is the only one, without which nobody could come back."""
    others = f"/etc/sudoers /etc/sudoers.d --exclude={SUDOERS.rpartition('/')[2]}"
    return f"[ ! -e {SUDOERS} ] || ! grep -rqsE '^{user}\\s.*NOPASSWD' {others}"
