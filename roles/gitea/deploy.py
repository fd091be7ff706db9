"""Lays down Gitea, and the accounts, organisations and repositories that the site file names."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from urllib.parse import urlsplit

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from onprem_mlops.atomic import write_atomically
from onprem_mlops.engine.facts import probe
from onprem_mlops.engine.operations import apt, files, server, shell, systemd
from onprem_mlops.errors import MlopsError
from onprem_mlops.roles import Context, admission, removal, step
from onprem_mlops.site import Hidden
from onprem_mlops.versions import is_older

from . import accounts, packages
from .settings import Settings

ON = ("services", "git")
UNIT = "gitea.service"
VERSION = "/var/lib/gitea/version"
"""What the data was last served by. Gitea's database only ever goes forward."""
KNOWN_HOSTS = "git_known_hosts"
"""In the site's state folder: what `ssh` compares Gitea's host key with."""


@dataclass(frozen=True)
class Paths:
    """Where things lie on the node."""

    program: str = "/usr/local/bin/gitea"
    assets: str = "/usr/local/share/gitea"
    configuration: str = "/etc/gitea"
    settings: str = "/etc/gitea/app.ini"
    secrets: str = "/etc/gitea/secrets"
    secret_settings: str = "/etc/gitea/secrets/secrets.ini"  # noqa: S105 - a path
    host_key: str = "/etc/gitea/secrets/ssh_host_ed25519_key"
    chain: str = "/etc/gitea/chain.pem"
    key: str = "/etc/gitea/key.pem"
    unit: str = f"/etc/systemd/system/{UNIT}"


PATHS = Paths()


@admission(on=ON)
def admit(ctx: Context[Settings]) -> None:
    """Refuse a version that is older than what the data was served by: it could not read its database."""
    if ctx.node not in ctx.settings.hosts(ctx.site):
        return
    served, offered = probe(f"cat {VERSION}").text.strip(), _version(ctx)
    if is_older(offered, served):
        raise MlopsError(
            f"{ctx.node.name}: its data was served by Gitea {served}, and the catalogue has {offered}; a database that "
            "a newer version has changed cannot be served by an older one",
            f"Put gitea {served} or newer into artifacts/catalogue.yaml, or restore a backup made before the upgrade.",
        )


@step(on=ON)
def install(ctx: Context[Settings]) -> None:
    """The program, its web interface and Git; not yet what it reads when it starts."""
    if ctx.node not in ctx.settings.hosts(ctx.site):
        return
    server.user("account of Gitea", ctx.settings.account, system=True, home=f"{ctx.settings.data}/home")
    apt.packages("Git", "git")
    authority = ctx.settings_of("node").authority_path
    files.download("program", PATHS.program, ctx.file("gitea", "gitea"), authority=authority)
    files.unpacked(
        "files of the web interface", PATHS.assets, ctx.file("gitea-assets", "assets.tar"), authority=authority
    )


@step(on=ON, after=("install",))
def serve(ctx: Context[Settings]) -> None:
    """The service, over its database and its bucket, with the site's certificate and host key."""
    if ctx.node not in ctx.settings.hosts(ctx.site):
        return
    authority = ctx.settings_of("node").authority_path
    files.directory("configuration of Gitea", PATHS.configuration)
    files.directory("secrets of Gitea", PATHS.secrets, mode="750", group=ctx.settings.account)
    read = (*_secrets(ctx), *_configuration(ctx), authority, PATHS.program, f"{PATHS.assets}/{files.MARKER}")
    systemd.service("Gitea with this configuration", UNIT, configuration=read)
    trust = f"--cacert {authority}"
    shell.wait(
        "Gitea answers",
        f"curl -fsS {trust} -o /dev/null {ctx.settings.endpoint(ctx.site)}{ctx.settings.health}",
        seconds=60,
        otherwise=f"systemctl status --no-pager --lines=20 {UNIT}",
    )
    files.content("version that the data is of", VERSION, f"{_version(ctx)}\n")


@step(on=ON, after=("serve",))
def people(ctx: Context[Settings]) -> None:
    """Accounts, organisations, teams and the platform's own repositories, as the site file has them."""
    if ctx.node not in ctx.settings.hosts(ctx.site):
        return
    accounts.laid_down(ctx)
    if not ctx.planning:
        known = f"[{ctx.settings.name(ctx.site)}]:{ctx.settings.ssh_port} {_public_host_key(ctx)}\n"
        write_atomically(ctx.state / KNOWN_HOSTS, known.encode())


@step(on=ON, after=("people",))
def offer(ctx: Context[Settings]) -> None:
    """Python packages that people and jobs install: what roles declare, from the artifact store."""
    if ctx.node in ctx.settings.hosts(ctx.site):
        packages.offered(ctx)


@removal(on=ON)
def remove(ctx: Context[Settings]) -> None:
    """Take Gitea off. Repositories stay unless the person agreed; the database and the bucket are other roles'."""
    systemd.gone("no Gitea", UNIT)
    files.absent("no unit", PATHS.unit)
    files.absent("no program", PATHS.program)
    files.absent("no files of the web interface", PATHS.assets, recursive=True)
    files.absent("no configuration", PATHS.configuration, recursive=True)
    files.absent(
        "no configuration of a service that ran", ctx.settings.configuration.rpartition("/")[0], recursive=True
    )
    apt.purged("Git, if it came with this role", "git")
    if ctx.remove_data:
        files.absent("no repositories", ctx.settings.data, recursive=True)
        server.no_user("no account of Gitea", ctx.settings.account)
    systemd.reloaded("systemd forgets the unit")
    (ctx.state / KNOWN_HOSTS).unlink(missing_ok=True)


def _version(ctx: Context[Settings]) -> str:
    return ctx.file("gitea", "gitea").version


def _secrets(ctx: Context[Settings]) -> tuple[str, ...]:
    """Files that only Gitea's account may read, and the paths of those that it reads when it starts."""
    account = ctx.settings.account
    wanted = {
        "secret_key": ctx.secret("secret_key"),
        "internal_token": ctx.secret("internal_token"),
        "lfs_key": _unpadded(ctx.secret("lfs_key")),
        "session_key": _unpadded(ctx.secret("session_key")),
        PATHS.host_key.rpartition("/")[2]: _host_key(ctx),
        PATHS.secret_settings.rpartition("/")[2]: _secret_settings(ctx),
    }
    if ctx.site.is_on("gitea_runner"):
        wanted["runner_token"] = ctx.secret_of("gitea_runner", "registration_token")
    for name, text in wanted.items():
        files.content(f"secret {name}", f"{PATHS.secrets}/{name}", text, mode="400", owner=account)
    files.certificate("certificate of Gitea", PATHS.chain, PATHS.key, ctx.certificate("gitea"), owner=account)
    return (*(f"{PATHS.secrets}/{name}" for name in wanted), PATHS.chain, PATHS.key)


def _unpadded(key: Hidden) -> Hidden:
    """A key of 32 bytes as Gitea wants keys of tokens: base64 for URLs without padding."""
    return Hidden(base64.urlsafe_b64encode(base64.b64decode(key.reveal())).decode().rstrip("="))


def _secret_settings(ctx: Context[Settings]) -> Hidden:
    mail = ctx.settings.mail is not None and ctx.settings.mail.user
    return Hidden(
        ctx.render(
            "secrets.ini.j2",
            database=ctx.secret("database_password").reveal(),
            storage=ctx.secret("storage_key").reveal(),
            metrics=ctx.secret("metrics_token").reveal(),
            mail=ctx.secret("mail_password").reveal() if mail else "",
        )
    )


def _ssh_key(ctx: Context[Settings]) -> Ed25519PrivateKey:
    """The site's host key for Git. An Ed25519 key is 32 random bytes, which is what the secret is."""
    return Ed25519PrivateKey.from_private_bytes(base64.b64decode(ctx.secret("ssh_host_key").reveal()))


def _host_key(ctx: Context[Settings]) -> Hidden:
    pem = _ssh_key(ctx).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Hidden(pem.decode())


def _public_host_key(ctx: Context[Settings]) -> str:
    key = _ssh_key(ctx).public_key()
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def _configuration(ctx: Context[Settings]) -> tuple[str, str]:
    gateways = ctx.settings_of("gateway").hosts(ctx.site) if ctx.site.is_on("gateway") else ()
    values = {
        "paths": PATHS,
        "database": ctx.settings_of("postgresql"),
        "storage": urlsplit(ctx.settings_of("object_store").internal_endpoint(ctx.site)).netloc,
        "proxies": [str(node.address) for node in gateways],
        "page": accounts.PAGE,
    }
    files.content("settings of Gitea", PATHS.settings, ctx.render("app.ini.j2", **values))
    files.content("unit of Gitea", PATHS.unit, ctx.render("gitea.service.j2", paths=PATHS))
    return PATHS.settings, PATHS.unit
