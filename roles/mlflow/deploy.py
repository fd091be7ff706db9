"""Lays down MLflow: its environment, its service, its accounts."""

from __future__ import annotations

import json
import re

from onprem_mlops import wheelhouse
from onprem_mlops.engine.facts import probe
from onprem_mlops.engine.operations import apt, files, python, server, shell, systemd
from onprem_mlops.errors import MlopsError
from onprem_mlops.roles import Context, admission, removal, step
from onprem_mlops.site import Hidden
from onprem_mlops.versions import is_older

from .settings import ADMINISTRATOR, DEBIAN, Settings

ON = ("services", "tracking")
USER = "onprem-mlflow"
ENVIRONMENTS = "/opt/mlflow"
PROGRAMS = "/usr/local/lib/onprem-mlflow"
CONFIGURATION = "/etc/onprem-mlflow"
ENVIRONMENT = f"{CONFIGURATION}/environment"
AUTHENTICATION = f"{CONFIGURATION}/authentication.ini"
PASSWORDS = f"{CONFIGURATION}/databases"
ACCOUNTS = f"{CONFIGURATION}/accounts.json"
CHAIN = f"{CONFIGURATION}/chain.pem"
KEY = f"{CONFIGURATION}/key.pem"
STORAGE_AUTHORITY = f"{CONFIGURATION}/storage-authority.pem"
STATE = "/var/lib/onprem-mlflow"
UNIT = "onprem-mlflow.service"
COLLECTION = "onprem-mlflow-gc.service"
TIMER = "onprem-mlflow-gc.timer"
STAMP = f"/var/lib/systemd/timers/stamp-{TIMER}"
UNITS = "/etc/systemd/system"
CLIENT = "/var/cache/onprem-mlflow-client"
"""Where verification keeps the environment that it is a client from."""
PG_DUMP = "postgresql-client-15"
PLUGIN = f"{PROGRAMS}/onprem_mlflow-1.dist-info"

WARM = (
    "import mlflow.server.auth, mlflow.cli, uvicorn.main, uvicorn.logging, psycopg2, boto3.session, s3transfer.manager"
)
"""What the service's start imports."""

USER_ROLE = "onprem-user"
MEMBER_ROLE = "onprem-member"
"""Roles inside MLflow: of each user of the site file, and of a team's members in its workspace."""


@admission(on=ON)
def admit(ctx: Context[Settings]) -> None:
    """Refuse a node with another Python than the wheels are for, and a version older than the databases have seen."""
    if ctx.node not in ctx.settings.hosts(ctx.site):
        return
    said = probe(f'. /etc/os-release; echo "$ID $VERSION_ID"; cat {STATE}/version 2>/dev/null; true').text.splitlines()
    if said[0] != f"debian {DEBIAN}":
        raise MlopsError(
            f"{ctx.node.name} runs {said[0]}, and MLflow's wheels are for the Python of Debian {DEBIAN}",
            "Give group `tracking` to a node that runs it.",
        )
    wanted = ctx.artifacts.version("mlflow")
    if len(said) > 1 and is_older(wanted, said[1]):
        raise MlopsError(
            f"{ctx.node.name}: MLflow {said[1]} has used the databases, and {wanted} is older: it would not start",
            f"Pin {said[1]} or later in the catalogue, or bring back databases from before (see the role's README).",
        )


@step(on=ON)
def prepare(ctx: Context[Settings]) -> None:
    """Everything that needs no other service: packages, account, the Python environment."""
    if ctx.node not in ctx.settings.hosts(ctx.site):
        return
    apt.packages("Python, and pg_dump for the backup before a schema changes", "python3", "curl", PG_DUMP)
    server.user("user of MLflow", USER, system=True, home=STATE)
    python.environment(
        "MLflow and its libraries",
        _environment(ctx),
        ctx.files("mlflow"),
        ctx.files("uv"),
        authority=ctx.settings_of("node").authority_path,
        warm=WARM,
    )


@step(on=ON, after=("prepare",))
def serve(ctx: Context[Settings]) -> None:
    """The tracking server, on databases that have its version's schema."""
    if ctx.node not in ctx.settings.hosts(ctx.site):
        return
    programs = _programs(ctx)
    read = _configuration(ctx)
    _units(ctx)
    systemd.service(
        "MLflow with this configuration",
        UNIT,
        configuration=(*read, *programs),
    )
    systemd.service("deleted runs go for good every night", TIMER)
    python.alone("no environment of an earlier version", _environment(ctx))


@step(on=ON, after=("serve",))
def accounts(ctx: Context[Settings]) -> None:
    """The users and teams of the site file, with their passwords; all replicas have the same."""
    if ctx.node != ctx.settings.hosts(ctx.site)[0]:
        return
    files.content("users and teams, with their passwords", ACCOUNTS, _accounts(ctx), mode="600")
    program = f"/usr/bin/python3 -I {PROGRAMS}/accounts.py"
    shell.run("users and teams at MLflow", f"{program} apply", unless=f"{program} check")


@removal(on=ON)
def remove(ctx: Context[Settings]) -> None:
    """Take MLflow off. What it logged is PostgreSQL's and the object store's, and stays there; so do backups here, with
    the account that they belong to, unless the person agreed.
    """
    for unit in (TIMER, COLLECTION, UNIT):
        systemd.gone(f"no {unit}", unit)
        files.absent(f"no file of {unit}", f"{UNITS}/{unit}")
    files.absent("no configuration, no programs", CONFIGURATION, PROGRAMS, ENVIRONMENTS, CLIENT, recursive=True)
    if ctx.node not in ctx.settings_of("postgresql").hosts(ctx.site):
        apt.purged("pg_dump, if it came with this role", PG_DUMP)
    files.absent("no note of when the timer last ran", STAMP)
    if ctx.remove_data:
        files.absent("no backups of schemas", STATE, recursive=True)
        server.no_user(f"no user {USER}", USER)
    systemd.reloaded("systemd forgets the units")


def _environment(ctx: Context[Settings]) -> str:
    return wheelhouse.environment_path(ENVIRONMENTS, ctx.files("mlflow"))


def _programs(ctx: Context[Settings]) -> tuple[str, ...]:
    """Our own few files of Python; gives those that the service reads."""
    version = ctx.artifacts.version("mlflow")
    roles = {"user_role": USER_ROLE, "member_role": MEMBER_ROLE}
    files.content("what starts MLflow", f"{PROGRAMS}/server.py", ctx.render("server.py.j2", version=version))
    files.content(
        "artifacts go through the server", f"{PROGRAMS}/onprem_storage.py", ctx.render("onprem_storage.py.j2")
    )
    files.content("what collects deleted runs", f"{PROGRAMS}/collect.py", ctx.render("collect.py.j2"))
    files.content("name of that plugin", f"{PLUGIN}/METADATA", ctx.render("METADATA.j2"))
    files.content("where MLflow finds it", f"{PLUGIN}/entry_points.txt", ctx.render("entry_points.txt.j2"))
    files.content(
        "what lays down accounts", f"{PROGRAMS}/accounts.py", ctx.render("accounts.py.j2", wanted=ACCOUNTS, **roles)
    )
    return (f"{PROGRAMS}/server.py", f"{PROGRAMS}/onprem_storage.py", f"{PLUGIN}/entry_points.txt")


def _escaped(password: Hidden) -> str:
    """A password as libpq's file of passwords wants it."""
    return re.sub(r"([:\\])", r"\\\1", password.reveal())


def _configuration(ctx: Context[Settings]) -> tuple[str, ...]:
    """Gives the paths of what the server reads."""
    authority = ctx.settings_of("node").authority_path
    database = ctx.settings_of("postgresql")
    where = {
        "database": f"{database.name(ctx.site)}:{database.port}",
        "tls": f"sslmode=verify-full&sslrootcert={authority}",
    }
    files.directory("configuration of MLflow", CONFIGURATION, mode="750", group=USER)
    files.certificate("certificate of MLflow", CHAIN, KEY, ctx.certificate("mlflow"), owner=USER)
    authentication = ctx.render("authentication.ini.j2", **where)
    files.content("who may do what by default", AUTHENTICATION, authentication, mode="400", owner=USER)
    passwords = ctx.render(
        "passwords.j2",
        **{name: _escaped(ctx.secret(name)) for name in ("database_password", "auth_database_password")},
        **where,
    )
    files.content("passwords of its databases", PASSWORDS, Hidden(passwords), mode="400", owner=USER)
    own, storage_authority = ctx.settings.internal_endpoint(ctx.site, ctx.node), _storage_authority(ctx)
    environment = ctx.render(
        "environment.j2",
        passwords=PASSWORDS,
        storage_key=ctx.secret("storage_key").reveal(),
        admin_password=ctx.secret("admin_password").reveal(),
        session_key=ctx.secret("session_key").reveal(),
        storage=ctx.settings_of("object_store").internal_endpoint(ctx.site),
        storage_authority=storage_authority,
        administrator=ADMINISTRATOR,
        allowed_hosts=_allowed_hosts(ctx),
        authentication=AUTHENTICATION,
        authority=authority,
        chain=CHAIN,
        key=KEY,
        endpoint=own,
        version=ctx.artifacts.version("mlflow"),
        **where,
    )
    files.content("settings of MLflow, with its secrets", ENVIRONMENT, Hidden(environment), mode="600")
    return ENVIRONMENT, AUTHENTICATION, PASSWORDS, CHAIN, KEY, storage_authority


def _accounts(ctx: Context[Settings]) -> Hidden:
    """What `accounts.py` reads."""
    users = {
        name: {
            "password": ctx.secret(f"user_{name}").reveal(),
            "administrator": user.administrator,
            "teams": list(user.teams),
        }
        for name, user in ctx.settings.users.items()
    }
    wanted = {
        "endpoint": ctx.settings.internal_endpoint(ctx.site, ctx.node),
        "authority": ctx.settings_of("node").authority_path,
        "administrator": ADMINISTRATOR,
        "password": ctx.secret("admin_password").reveal(),
        "users": users,
        "teams": list(ctx.settings.teams),
    }
    return Hidden(json.dumps(wanted, indent=1) + "\n")


def _storage_authority(ctx: Context[Settings]) -> str:
    """The file with the authority that the object store's certificate is signed by."""
    store = ctx.settings_of("object_store")
    if store.engine != "external":
        return str(ctx.settings_of("node").authority_path)
    if store.authority is None:
        return "/etc/ssl/certs/ca-certificates.crt"
    files.content("authority of the company's object store", STORAGE_AUTHORITY, store.authority)
    return STORAGE_AUTHORITY


def _allowed_hosts(ctx: Context[Settings]) -> list[str]:
    """What a request may name as its host: the gateway's name, and the nodes' own."""
    own = [f"{ctx.site.full_name(node)}:{ctx.settings.port}" for node in ctx.settings.hosts(ctx.site)]
    return [ctx.settings.name(ctx.site), *own]


def _units(ctx: Context[Settings]) -> None:
    values = {
        "user": USER,
        "environment": ENVIRONMENT,
        "programs": PROGRAMS,
        "python": f"{_environment(ctx)}/bin/python",
        "authority": ctx.settings_of("node").authority_path,
        "endpoint": ctx.settings.internal_endpoint(ctx.site, ctx.node),
    }
    for unit in (UNIT, COLLECTION, TIMER):
        files.content(f"unit {unit}", f"{UNITS}/{unit}", ctx.render(f"{unit}.j2", **values))
