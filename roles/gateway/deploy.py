"""Lays down the gateway: HAProxy as a unit of our own, beside whatever else HAProxy does on the node."""

from __future__ import annotations

import hashlib

from onprem_mlops.engine.operations import apt, files, server, shell, systemd
from onprem_mlops.roles import Context, removal, step
from roles.gateway.settings import Settings

ON = ("services", "gateway")
USER = "onprem-gateway"
UNIT_NAME = "onprem-gateway.service"
UNIT = f"/etc/systemd/system/{UNIT_NAME}"
CONFIGURATION = "/etc/onprem-gateway"
HAPROXY = f"{CONFIGURATION}/haproxy.cfg"
CHAIN = f"{CONFIGURATION}/gateway.pem"
KEY = f"{CHAIN}.key"
"""HAProxy finds a chain's key beside it, under its name with `.key`."""
BINARY = "/usr/sbin/haproxy"
PROCESS = "/run/onprem-gateway/haproxy.pid"
"""Written anew whenever the configuration is read."""
PACKAGES_MASK = "/etc/systemd/system/haproxy.service"


@step(on=ON)
def gateway(ctx: Context[Settings]) -> None:
    """HAProxy with the names of all services."""
    if ctx.node not in ctx.settings.hosts(ctx.site):
        return
    if not _shares_haproxy(ctx):
        # The package's own service would start at once, with nothing to do.
        files.link("HAProxy's own service never starts", PACKAGES_MASK, "/dev/null")
    apt.packages("HAProxy and curl", "haproxy", "curl")
    server.user("user of the gateway", USER, system=True)
    digest = _configuration(ctx)
    systemd.service("gateway", UNIT_NAME, configuration=(UNIT, BINARY))
    health = f"http://127.0.0.1:{ctx.settings.metrics_port}/healthz"
    # It says itself what it runs with: a reload that failed, or never came to be, is made by the next deploy. And what
    # somebody changed and loaded is older than the file that this deploy has put back.
    unchanged = f'[ -z "$(find {HAPROXY} {CHAIN} {KEY} -newercm {PROCESS})" ]'
    current = f"curl -fsS {health} | grep -qx {digest} && {unchanged}"
    shell.run(
        "gateway with these names and certificates",
        f"systemctl reload {UNIT_NAME}",
        unless=f"! systemctl -q is-active {UNIT_NAME} || {current}",
    )
    shell.wait(
        "the gateway answers with them",
        current,
        seconds=30,
        otherwise=f"systemctl status --no-pager --lines=10 {UNIT_NAME}; curl -sS {health}",
    )


@removal(on=ON)
def remove(ctx: Context[Settings]) -> None:
    """Take the gateway off. It holds no data."""
    systemd.gone("no gateway", UNIT_NAME)
    files.absent("no unit of the gateway", UNIT)
    files.absent("no configuration of the gateway", CONFIGURATION, recursive=True)
    server.no_user("no user of the gateway", USER)
    if not _shares_haproxy(ctx):
        apt.purged("HAProxy, if it came with this role", "haproxy")
        files.absent("no folders of HAProxy", "/etc/haproxy", "/var/lib/haproxy", recursive=True)
        files.absent("HAProxy's own service is no longer masked", PACKAGES_MASK)


def _shares_haproxy(ctx: Context[Settings]) -> bool:
    """Whether the package's own service is a control plane's API endpoint: then it is not ours to mask or purge."""
    return ctx.site.is_on("kubernetes") and "control_plane" in ctx.node.groups


def _configuration(ctx: Context[Settings]) -> str:
    """All files of the gateway; a digest of what it reads, which it then tells as its health."""
    certificate = ctx.certificate("gateway")
    files.directory("configuration of the gateway", CONFIGURATION)
    files.certificate("certificate of the gateway", CHAIN, KEY, certificate, owner=USER)
    values = {
        "chain": CHAIN,
        "authority": ctx.settings_of("node").authority_path,
        "web": ctx.settings.web(ctx.site),
        "passed_through": ctx.settings.passed_through(ctx.site),
        "nodes": {node.name: node for node in ctx.site.nodes},
    }
    plain = ctx.render("haproxy.cfg.j2", digest="", **values)
    digest = hashlib.sha256(f"{plain}{certificate.chain_pem}{ctx.authority_pem}".encode()).hexdigest()
    text = ctx.render("haproxy.cfg.j2", digest=digest, **values)
    files.content("names and services of the gateway", HAPROXY, text, check=f"{BINARY} -c -q -f {{}}")
    unit = ctx.render("onprem-gateway.service.j2", binary=BINARY, configuration=HAPROXY, user=USER)
    files.content("unit of the gateway", UNIT, unit)
    return digest
