"""Lays down object storage: MinIO on its nodes, and the site's buckets and users in it."""

from __future__ import annotations

import json
import shlex

from onprem_mlops.engine.facts import probe
from onprem_mlops.engine.operations import apt, files, server, shell, systemd
from onprem_mlops.roles import Context, removal, step
from onprem_mlops.site import Hidden
from roles.object_store import contents as wanted
from roles.object_store.settings import ADMINISTRATOR, METRICS, STRANGER, VERIFIER, Settings, User

CONFIGURATION = "/etc/onprem-minio"
ENVIRONMENT = f"{CONFIGURATION}/environment"
CERTS = f"{CONFIGURATION}/certs"
CHAIN, KEY = f"{CERTS}/public.crt", f"{CERTS}/private.key"
CLIENT = f"{CONFIGURATION}/client"
"""Folder of the client's own configuration; with the secrets of the administrator and of every user in it."""
AUDIT_TOKEN = f"{CONFIGURATION}/audit-token"
BINARY, MC, AUDIT = "/usr/local/bin/minio", "/usr/local/bin/mc", "/usr/local/lib/onprem-minio-audit"
UNIT, AUDIT_UNIT = (f"/etc/systemd/system/onprem-minio{part}.service" for part in ("", "-audit"))
ACCOUNT, AUDIT_ACCOUNT = "onprem-minio", "onprem-minio-audit"
AUDIT_PORT = 9002
"""On the loopback."""
ON = ("services", "storage")


@step(on=ON)
def serve(ctx: Context[Settings]) -> None:
    """MinIO, its own user, over the node's drives; and what writes its audit log."""
    if ctx.node not in ctx.settings.hosts(ctx.site):
        return
    authority = ctx.settings_of("node").authority_path
    files.download("program of the object store", BINARY, ctx.file("minio", "minio"), authority=authority)
    files.download("client of the object store", MC, ctx.file("minio-client", "mc"), authority=authority)
    server.user("user of the object store", ACCOUNT, system=True)
    for folder in (CONFIGURATION, CERTS, f"{CERTS}/CAs"):
        files.directory(f"folder {folder}", folder)
    files.certificate("certificate of the object store", CHAIN, KEY, ctx.certificate("object_store"), owner=ACCOUNT)
    files.content("whom the object store trusts", f"{CERTS}/CAs/authority.crt", ctx.authority_pem)
    files.content("secrets of the object store", ENVIRONMENT, _environment(ctx), mode="600")
    drives = [drive for drive in ctx.settings.drives if not _away(ctx, drive)]
    for drive in drives:
        files.directory(f"objects in {drive}", drive, mode="700", owner=ACCOUNT, group=ACCOUNT)
    _audit(ctx)
    unit = ctx.render(
        "minio.service.j2", environment=ENVIRONMENT, binary=BINARY, certs=CERTS, endpoints=_endpoints(ctx)
    )
    files.content("unit of the object store", UNIT, unit)
    _client(ctx)
    systemd.service(
        "object store with this configuration",
        "onprem-minio.service",
        configuration=(BINARY, ENVIRONMENT, UNIT, CHAIN, KEY),
    )
    # A running server takes no notice of an empty drive in the place of one that it knew; as it starts it does.
    formatted = " && ".join(f"[ -e {shlex.quote(drive)}/.minio.sys/format.json ]" for drive in drives)
    shell.run(
        "drives that were replaced take part, and are filled from the others",
        "systemctl restart onprem-minio.service",
        unless=f"! systemctl -q is-active onprem-minio.service || {{ {formatted or 'true'}; }}",
    )


@step(on=ON, after=("serve",))
def contents(ctx: Context[Settings]) -> None:
    """The site's buckets and users in the object store, each user with its own rights and no others."""
    if ctx.node not in ctx.settings.hosts(ctx.site)[:1]:
        return
    users, rights = _users(ctx), ctx.settings.all_users(ctx.site)
    buckets = ctx.settings.all_buckets(ctx.site)
    mc = f"{MC} --config-dir {CLIENT} --json"
    state = wanted.state(mc, tuple(buckets), tuple(users))
    for name, bucket in buckets.items():
        kept = ctx.settings.classes[bucket.data_class]
        wanted.bucket(mc, name, bucket, kept, state)
    for name, secret in users.items():
        wanted.user(mc, name, secret, wanted.rights(name, rights.get(name, User())), state)
    wanted.no_others(mc, tuple(users), state)


def _away(ctx: Context[Settings], drive: str) -> bool:
    """Whether a drive of a store that was laid down is not there: what failed and waits for its replacement.

    The store goes on without it, and nothing is made in its place on the system's own disk.
    """
    if ctx.settings.drives_on_system_disk or len(_endpoints(ctx)) == 1:
        return False
    path = shlex.quote(drive)
    return probe(f'[ -e {UNIT} ] && {{ [ ! -d {path} ] || [ "$(stat -c %d {path})" = "$(stat -c %d /)" ]; }}').ok


@removal(on=ON)
def remove(ctx: Context[Settings]) -> None:
    """Take the service off. Objects are data: they, and whom they belong to, go only if the person agreed."""
    for unit in ("onprem-minio.service", "onprem-minio-audit.service"):
        systemd.gone(f"no {unit}", unit)
    files.absent("no units", UNIT, AUDIT_UNIT)
    files.absent("no configuration", CONFIGURATION, recursive=True)
    files.absent("no programs", BINARY, MC, AUDIT)
    apt.purged("python3, if it came with this role", "python3")
    if ctx.remove_data:
        for drive in ctx.settings.drives:
            _emptied(shlex.quote(drive))
        # Else somebody else would get its number, and with that the objects.
        server.no_user(f"no user {ACCOUNT}", ACCOUNT)
    server.no_user(f"no user {AUDIT_ACCOUNT}", AUDIT_ACCOUNT)


def _emptied(drive: str) -> None:
    """No objects on a drive, whose path is quoted. A folder goes itself, too; where a disk is mounted it stays."""
    shell.run(
        f"no objects in {drive}",
        f"find {drive} -xdev -mindepth 1 -delete && {{ mountpoint -q {drive} || rmdir {drive}; }}",
        unless=f'[ ! -e {drive} ] || {{ mountpoint -q {drive} && [ -z "$(ls -A {drive})" ]; }}',
        timeout=None,
    )


def _environment(ctx: Context[Settings]) -> Hidden:
    return Hidden(
        ctx.render(
            "minio.env.j2",
            administrator=ADMINISTRATOR,
            root_password=ctx.secret("root_password").reveal(),
            encryption_key=ctx.secret("encryption_key").reveal(),
            audit_token=ctx.secret("audit_token").reveal(),
            audit_port=AUDIT_PORT,
        )
    )


def _endpoints(ctx: Context[Settings]) -> list[str]:
    """What the server is told of drives: folders, or with several nodes those of all."""
    hosts = ctx.settings.hosts(ctx.site)
    if len(hosts) == 1:
        return list(ctx.settings.drives)
    names = [f"https://{ctx.site.full_name(host)}:{ctx.settings.port}" for host in hosts]
    return [f"{name}{drive}" for name in names for drive in ctx.settings.drives]


def _audit(ctx: Context[Settings]) -> None:
    """The server can only send its audit log over HTTP; this takes it in on the loopback, for the journal."""
    apt.packages("python3, for the audit log", "python3")
    server.user("user of the audit log", AUDIT_ACCOUNT, system=True)
    files.content("program of the audit log", AUDIT, ctx.render("audit.py.j2", port=AUDIT_PORT), mode="755")
    files.content("token of the audit log", AUDIT_TOKEN, ctx.secret("audit_token"), mode="600")
    unit = ctx.render("audit.service.j2", program=AUDIT, token=AUDIT_TOKEN, account=AUDIT_ACCOUNT)
    files.content("unit of the audit log", AUDIT_UNIT, unit)
    systemd.service(
        "audit log with this configuration",
        "onprem-minio-audit.service",
        configuration=(AUDIT, AUDIT_TOKEN, AUDIT_UNIT),
    )


def _client(ctx: Context[Settings]) -> None:
    files.directory("configuration of the client", CLIENT, mode="700")
    for folder in (f"{CLIENT}/certs", f"{CLIENT}/certs/CAs"):
        files.directory(f"folder {folder}", folder)
    files.content("whom the client trusts", f"{CLIENT}/certs/CAs/authority.crt", ctx.authority_pem)
    url = f"https://{ctx.site.full_name(ctx.node)}:{ctx.settings.port}"
    accounts = {"site": (ADMINISTRATOR, ctx.secret("root_password"))}
    accounts |= {user: (user, secret) for user, secret in _users(ctx).items()}
    aliases = {
        alias: {"url": url, "accessKey": user, "secretKey": secret.reveal(), "api": "s3v4", "path": "on"}
        for alias, (user, secret) in accounts.items()
    }
    access = json.dumps({"version": "10", "aliases": aliases}, indent=1) + "\n"
    files.content("access of the administrator and of users", f"{CLIENT}/config.json", Hidden(access), mode="600")


def _users(ctx: Context[Settings]) -> dict[str, Hidden]:
    """Every user and its secret key."""
    names = (*ctx.settings.all_users(ctx.site), VERIFIER, STRANGER, METRICS)
    return {name: ctx.secret_of(*ctx.settings.secret_of_user(ctx.site, name)) for name in names}
