"""Lays down the packet filter from what all roles declare."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import PurePosixPath

from onprem_mlops.engine.operations import apt, files, network, shell, systemd
from onprem_mlops.errors import MlopsError
from onprem_mlops.roles import ALL, Context, removal, step
from roles.firewall.settings import Settings, rule

UNIT = "/etc/systemd/system/nftables.service.d/onprem-mlops.conf"


@step(on=ALL)
def rules(ctx: Context[Settings]) -> None:
    """The table, changed on trial, and its place in the boot."""
    apt.packages("nftables", "nftables")
    settings = ctx.settings
    network.ruleset("packet filter", settings.path, settings.table, body(ctx, network.controller_address()))
    mark = network.mark_loaded(settings.table)
    network.own_filter_noted("whether the node has rules of its own", UNIT)
    files.content("packet filter at boot", UNIT, ctx.render("nftables.service.j2", mark=mark))
    # Its file is no reason to restart: the rules are loaded and proven already.
    systemd.service("packet filter at boot, enabled", "nftables.service")


@removal(on=ALL)
def remove(ctx: Context[Settings]) -> None:
    """No table, no file; nftables as the node had it, or gone if this role brought it."""
    systemd.gone("no packet filter at boot", "nftables.service")
    network.no_ruleset("no packet filter", ctx.settings.path, ctx.settings.table)
    files.absent("nftables' own start and stop", UNIT)
    files.no_empty_folders(
        "folders of this role", *(str(PurePosixPath(one).parent) for one in (UNIT, ctx.settings.path))
    )
    shell.run(
        "nftables' own start and stop are known again",
        "systemctl daemon-reload",
        unless='[ "$(systemctl show -P NeedDaemonReload nftables.service)" != yes ]',
    )
    network.own_filter_back("the rules that the node had of its own")
    apt.purged("nftables, if it came with this role", "nftables")


def body(ctx: Context[Settings], controller: str | None) -> str:
    """What stands inside the table. `controller` is the address that this deploy comes from.

    Raises MlopsError rather than write rules that let nobody in.
    """
    address = IPv4Address(controller) if controller and ":" not in controller else None
    if address is None and not ctx.settings.admin_networks:
        raise MlopsError(
            f"{ctx.node.name}: cannot tell from which IPv4 address this deploy comes, so the rules would lock it out",
            "Name the controllers' networks in site.yaml: settings.firewall.admin_networks.",
        )
    opened = ((one, ctx.settings.sources(ctx.site, one, address)) for one in ctx.settings.merged(ctx.openings))
    return ctx.render("input.nft.j2", rules=[rule(one, sources) for one, sources in opened if sources])
