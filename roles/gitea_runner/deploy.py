"""Lays down the runner: slots that each run one job and begin anew, their cache, and the site's own actions."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from onprem_mlops.engine.facts import probe
from onprem_mlops.engine.operations import apt, files, network, rest, server, shell, systemd
from onprem_mlops.engine.operations.rest import Answer, Api
from onprem_mlops.roles import Context, removal, step

from .repository import Repository, repositories
from .settings import LOOPBACK_PORTS, Settings

ON = ("services", "runner")
CACHE_USER = "onprem-gitea-cache"
SLOTS = "onprem-gitea-runner@"
SYSTEM_STORE = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class Paths:
    """Where things lie on the node, and what units are called."""

    program: str = "/usr/local/bin/gitea-runner"
    programs: str = "/usr/local/lib/onprem-gitea-runner"
    slot: str = "/usr/local/lib/onprem-gitea-runner/slot"
    node: str = "/usr/local/lib/onprem-gitea-runner/bin/node"
    configuration: str = "/etc/onprem-gitea-runner"
    token: str = "/etc/onprem-gitea-runner/registration-token"  # noqa: S105 - a path
    runner_configuration: str = "/etc/onprem-gitea-runner/runner.yaml"
    cache_configuration: str = "/etc/onprem-gitea-runner/cache.yaml"
    rules: str = "/etc/onprem-gitea-runner/network.nft"
    table: str = "onprem_jobs"
    network_unit: str = "onprem-gitea-runner-network.service"
    cache_unit: str = "onprem-gitea-cache.service"
    proxy_socket: str = "onprem-gitea-cache-proxy.socket"
    proxy_unit: str = "onprem-gitea-cache-proxy.service"
    watch_unit: str = "onprem-gitea-runner-watch.service"
    watch_timer: str = "onprem-gitea-runner-watch.timer"

    def unit(self, name: str) -> str:
        """The file of a unit."""
        return f"/etc/systemd/system/{name}"


PATHS = Paths()
SLOT_UNIT = PATHS.unit(f"{SLOTS}.service")


@step(on=("services", "git"))
def actions(ctx: Context[Settings]) -> None:
    """The site's own actions, on Gitea itself: `actions/checkout` and the others, under the tag that workflows name."""
    gitea = ctx.settings_of("gitea")
    if ctx.node not in gitea.hosts(ctx.site):
        return
    api = Api(f"{gitea.endpoint(ctx.site)}/api/v1", gitea.token_header, ctx.settings_of("node").authority_path)
    owner = f"/orgs/{ctx.settings.organisation}"
    wanted = [Repository.read(folder) for folder in repositories(ctx.folder / "actions")]
    found = rest.read(api, owner, *(path for one in wanted for path in _paths(ctx, one)))
    # Never changed: the site file may name it, and what it says is role gitea's.
    rest.present(
        f"organisation {ctx.settings.organisation}",
        api,
        found[owner].body,
        {"visibility": "public"},
        what=f"organisation {ctx.settings.organisation}",
        create=("POST", "/orgs"),
        at_first={"username": ctx.settings.organisation},
    )
    for one in wanted:
        _published(ctx, api, one, found)


def _paths(ctx: Context[Settings], one: Repository) -> tuple[str, str]:
    """Where the API has an action's repository, and its tag."""
    at = f"/repos/{ctx.settings.organisation}/{one.name}"
    return at, f"{at}/tags/{one.tag}"


def _published(ctx: Context[Settings], api: Api, one: Repository, found: Mapping[str, Answer]) -> None:
    """One action's repository, whose tag is at the commit that its files make."""
    gitea, owner = ctx.settings_of("gitea"), ctx.settings.organisation
    at, tag = _paths(ctx, one)
    rest.present(
        f"repository of action {owner}/{one.name}",
        api,
        found[at].body,
        {"private": False},
        what=f"repository {owner}/{one.name}",
        create=("POST", f"/orgs/{owner}/repos"),
        update=("PATCH", at),
        at_first={"name": one.name, "default_branch": "main"},
    )
    push = (
        'set -e; work=$(mktemp -d); trap \'rm -rf "$work"\' EXIT; base64 -d >"$work/import"; '
        'git init -q --bare "$work/git"; git -C "$work/git" fast-import --quiet <"$work/import"; '
        # The administrator's token, in the environment of this command alone.
        f'GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=http.extraHeader GIT_CONFIG_VALUE_0="$(cat {gitea.token_header})" '
        f'git -C "$work/git" push -q --force {gitea.endpoint(ctx.site)}/{owner}/{one.name}.git main {one.tag}'
    )
    tagged = found[tag].found and found[tag].body["commit"]["sha"] == one.commit
    stdin = base64.encodebytes(one.import_stream()).decode()
    shell.run(f"action {owner}/{one.name}@{one.tag}", push, unless=tagged, stdin=stdin)


@step(on=ON)
def install(ctx: Context[Settings]) -> None:
    """The program, what jobs find beside it, and the accounts."""
    if ctx.node not in ctx.settings.hosts(ctx.site):
        return
    apt.packages("what jobs work with", *ctx.settings.packages, "curl", "jq", "nftables")
    for slot in ctx.settings.slots:
        server.user(f"account of jobs in slot {slot}", ctx.settings.user(slot), system=True)
    server.user("account of the cache", CACHE_USER, system=True)
    # Nobody but root may read the program: the kernel then keeps a job out of the memory of the runner that runs it,
    # which holds the secret of the cache.
    files.download(
        "program of the runner",
        PATHS.program,
        ctx.file("gitea-runner", "gitea-runner"),
        authority=ctx.settings_of("node").authority_path,
        mode="711",
    )
    files.content("what stands in for Node", PATHS.node, ctx.render("node.sh.j2"), mode="755")


@step(on=ON, after=("install", "actions"))
def serve(ctx: Context[Settings]) -> None:
    """The cache, the packet filter of jobs, and the slots, which register as soon as they start."""
    if ctx.node not in ctx.settings.hosts(ctx.site):
        return
    files.directory("configuration of the runner", PATHS.configuration, mode="711")
    _cache(ctx)
    _network(ctx)
    labels = _labels(ctx)
    gitea = ctx.settings_of("gitea")
    secret = ctx.secret("cache_secret").reveal()
    values = {"paths": PATHS, "labels": labels, "url": gitea.root_url(ctx.site).rstrip("/")}
    index = gitea.index(ctx.site, gitea.shared) if ctx.site.wheelhouses else ""
    files.content("registration token", PATHS.token, ctx.secret("registration_token"), mode="600")
    files.content(
        "configuration of the runner",
        PATHS.runner_configuration,
        ctx.render("runner.yaml.j2", secret=secret, index=index, system_store=SYSTEM_STORE, **values),
        mode="600",
        secret=True,
    )
    version = "v" + ctx.file("gitea-runner", "gitea-runner").version
    files.content(
        "what goes on around a job",
        PATHS.slot,
        ctx.render("slot.sh.j2", version=version, slots=SLOTS, mark=network.mark_loaded(PATHS.table), **values),
        mode="755",
    )
    files.content("unit of the slots", SLOT_UNIT, ctx.render("onprem-gitea-runner@.service.j2", **values))
    # A runner that waits for its job goes on with the authorities that it knew when it began.
    authority = ctx.settings_of("node").authority_path
    read = (PATHS.program, PATHS.slot, SLOT_UNIT, PATHS.runner_configuration, PATHS.token, authority)
    for slot in ctx.settings.slots:
        systemd.service(f"slot {slot}", f"{SLOTS}{slot}.service", configuration=read)
    _fewer(ctx)
    for unit in (PATHS.watch_unit, PATHS.watch_timer):
        files.content(f"unit {unit}", PATHS.unit(unit), ctx.render(f"{unit}.j2", **values))
    systemd.reloaded("systemd knows the units")
    systemd.service("watch of the slots", PATHS.watch_timer, configuration=(PATHS.unit(PATHS.watch_timer),))


def _cache(ctx: Context[Settings]) -> None:
    secret = ctx.secret("cache_secret").reveal()
    text = ctx.render("cache.yaml.j2", secret=secret)
    files.content(
        "configuration of the cache", PATHS.cache_configuration, text, mode="400", owner=CACHE_USER, secret=True
    )
    for unit in (PATHS.cache_unit, PATHS.proxy_socket, PATHS.proxy_unit):
        files.content(f"unit {unit}", PATHS.unit(unit), ctx.render(f"{unit}.j2", paths=PATHS))
    read = (PATHS.cache_configuration, PATHS.program, PATHS.unit(PATHS.cache_unit))
    systemd.service("cache with this configuration", PATHS.cache_unit, configuration=read)
    systemd.service("way to the cache", PATHS.proxy_socket, configuration=(PATHS.unit(PATHS.proxy_socket),))


def _network(ctx: Context[Settings]) -> None:
    body = ctx.render(
        "network.nft.j2",
        users=[ctx.settings.user(slot) for slot in ctx.settings.slots],
        targets=_targets(ctx),
        loopback=LOOPBACK_PORTS,
    )
    network.ruleset("what jobs may reach", PATHS.rules, PATHS.table, body)
    unit, mark = PATHS.unit(PATHS.network_unit), network.mark_loaded(PATHS.table)
    files.content("packet filter of jobs at boot", unit, ctx.render(f"{PATHS.network_unit}.j2", paths=PATHS, mark=mark))
    # Its file is no reason to restart: the rules are loaded and proven already.
    systemd.service("packet filter of jobs at boot, enabled", PATHS.network_unit)


def _targets(ctx: Context[Settings]) -> list[tuple[str, int]]:
    """Addresses and ports that every job may reach: Gitea, the mirror, and what the gateway serves."""
    gitea = ctx.settings_of("gitea")
    mirror, root = urlsplit(ctx.site.mirror_url), urlsplit(gitea.root_url(ctx.site))
    found = {(str(gitea.hosts(ctx.site)[0].address), int(gitea.port))}
    for url in (mirror, root):
        found |= {(str(address), url.port or 443) for address in ctx.names[str(url.hostname)]}
    return sorted(found)


def _labels(ctx: Context[Settings]) -> list[str]:
    """What workflows may ask for with `runs-on`: what the node is, and what the site file adds."""
    lines = probe('. /etc/os-release; echo "$ID-$VERSION_ID"; nproc').text.split()
    release, cpus = lines if len(lines) == 2 else ("debian", "1")
    found = [release, "linux-amd64", f"cpus-{cpus}", ctx.node.name]
    models = {re.sub(r"[^a-z0-9._-]+", "-", gpu.model.lower()): gpu.simulated for gpu in ctx.node.facts.gpus}
    found += (f"gpu-{model}{'-simulated' if simulated else ''}" for model, simulated in models.items())
    return list(dict.fromkeys([*found, *ctx.settings.labels]))


def _fewer(ctx: Context[Settings]) -> None:
    """Slots beyond the capacity are gone, with their accounts."""
    beyond = f"systemctl list-units --all --plain --no-legend '{SLOTS}*' | sed 's/.*@\\([0-9]*\\).*/\\1/'"
    for slot in probe(beyond).text.split():
        if slot.isdigit() and int(slot) > ctx.settings.capacity:
            systemd.gone(f"no slot {slot}", f"{SLOTS}{slot}.service")
            server.no_user(f"no account of slot {slot}", ctx.settings.user(int(slot)))


@removal(on=ON)
def remove(ctx: Context[Settings]) -> None:
    """Take the runner off. The cache can be filled again, and goes; actions and artifacts are Gitea's."""
    for slot in range(1, 33):
        if ctx.settings.capacity >= slot or probe(f"getent passwd {ctx.settings.user(slot)}").ok:
            systemd.gone(f"no slot {slot}", f"{SLOTS}{slot}.service")
            server.no_user(f"no account of slot {slot}", ctx.settings.user(slot))
    watch = (PATHS.watch_timer, PATHS.watch_unit)
    units = (*watch, PATHS.proxy_socket, PATHS.proxy_unit, PATHS.cache_unit, PATHS.network_unit)
    for unit in units:
        systemd.gone(f"no {unit}", unit)
    network.no_ruleset("no packet filter of jobs", PATHS.rules, PATHS.table)
    files.absent("no units", SLOT_UNIT, *(PATHS.unit(unit) for unit in units))
    for path in (PATHS.configuration, PATHS.programs, ctx.settings.data, ctx.settings.cache):
        files.absent(f"no {PurePosixPath(path).name}", path, recursive=True)
    files.absent("no folders of slots", "/run/onprem-gitea-runner", recursive=True)
    files.absent("no program", PATHS.program)
    server.no_user("no account of the cache", CACHE_USER)
    others = {"nftables"} if ctx.site.is_on("firewall") else set()
    if ctx.node in ctx.settings_of("gitea").hosts(ctx.site):
        others.add("git")
    ours = [name for name in (*ctx.settings.packages, "jq", "nftables") if name not in others]
    apt.purged("what jobs worked with, if it came with this role", *dict.fromkeys(ours))
    systemd.reloaded("systemd forgets the units")
