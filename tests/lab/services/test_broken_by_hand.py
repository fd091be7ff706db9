"""Proof that the services' checks can fail: each service is broken by hand, and its checks must name every breakage.

All breakages of a role are made at once. What is named is mended by one deploy. That everything holds again is seen by
test_changes, which comes next and verifies all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.lab.sites import TestSite

pytestmark = pytest.mark.lab


@dataclass(frozen=True)
class Breakage:
    """One thing that is broken on the node of the services, and the checks that must notice."""

    how: str
    checks: tuple[str, ...]
    mend: str = ""
    """What a deploy does not restore, because it never laid it down."""


def _unit(name: str, change: str) -> str:
    """Change the file of a unit, and run it as it then says."""
    return f"sed -i '{change}' /etc/systemd/system/{name}.service; systemctl daemon-reload; systemctl restart {name}"


def _sql(statements: str) -> str:
    return f'cd /; for one in {statements}; do runuser -u postgres -- psql -qXc "$one"; done'


MC = "mc --config-dir /etc/onprem-minio/client"
PRIVILEGE = "s/^CapabilityBoundingSet=$/CapabilityBoundingSet=CAP_NET_RAW\\nAmbientCapabilities=CAP_NET_RAW/"

BREAKAGES = {
    "postgresql": (
        Breakage(
            "rm /etc/systemd/system/postgresql@*-main.service.d/*onprem*; systemctl daemon-reload; "
            "systemctl restart 'postgresql@*'",
            ("The database server runs as postgres, without privileges, and sees a node that it cannot write to",),
        ),
        Breakage(
            "echo 'hostnossl all all 0.0.0.0/0 trust' >>$(echo /etc/postgresql/*/main/pg_hba.conf)",
            (
                "A client without TLS is refused, whatever its password",
                "Only accounts of roles that are on can log in, each to one database, and only with TLS and SCRAM",
            ),
        ),
        Breakage(
            _sql("'alter role gitea createdb'"),
            (
                "No account can do what only an administrator of the database server may",
                "Every account owns its database, belongs to no other account, and may hold as many connections as "
                "declared",
            ),
        ),
        Breakage(
            _sql("'alter system set fsync = off' 'select pg_reload_conf()'"),
            (
                "The database server runs with what its files say, and nothing was set past them",
                "What the database server said yes to is on the disk, and a page that the disk changed is found out",
            ),
            _sql("'alter system reset fsync' 'select pg_reload_conf()'"),
        ),
        Breakage(
            "chmod 644 $(echo /etc/postgresql/*/main/*key*)",
            (
                "Databases, key and rules can be read by the database server's account only, and the rules not changed "
                "by it",
            ),
        ),
    ),
    "object_store": (
        Breakage(f"{MC} anonymous set public site/datasets", ("No bucket answers somebody who has no key",)),
        Breakage(
            f"{MC} version suspend site/datasets",
            ("Every bucket is there with the versions, the lock and the rules of its class",),
        ),
        Breakage(
            f"{MC} admin policy attach site readwrite --user team-vision",
            ("Every user lists and writes the buckets that the site file gives, and no others",),
        ),
        Breakage(
            "chmod 644 /etc/onprem-minio/environment",
            ("Every file that holds a secret of the object store is read by root or by one service's account only",),
        ),
        Breakage(
            _unit("onprem-minio", PRIVILEGE),
            ("The object store runs as an account of its own that holds no privileges and cannot become another one",),
        ),
    ),
    "gitea": (
        Breakage(
            "sed -i 's/^DISABLE_REGISTRATION = true/DISABLE_REGISTRATION = false/; /^TWO_FACTOR_AUTH/d' "
            "/etc/gitea/app.ini; systemctl restart gitea",
            (
                "A stranger cannot make an account",
                "Somebody without a second factor sees no repository through the API, not even an own one",
            ),
        ),
        Breakage(
            "chmod 644 /etc/gitea/secrets/secrets.ini /etc/gitea/token",
            ("Gitea's keys, passwords and tokens can be read by Gitea only, the token of deploys by root only",),
        ),
        Breakage(
            "chown gitea /etc/gitea/app.ini",
            ("Gitea runs as an account of its own, which can write neither its program nor its settings",),
        ),
    ),
    "gitea_runner": (
        Breakage("nft flush chain inet onprem_jobs output", ("A job reaches Gitea, and no other service of the node",)),
        Breakage(
            "chmod 644 /etc/onprem-gitea-runner/registration-token",
            (
                "What holds a secret of the runner can be read by root only, the cache's configuration by the cache "
                "only",
            ),
        ),
        Breakage(
            "sed -i '/^InaccessiblePaths=/d; /^ProtectProc=/d' /etc/systemd/system/onprem-gitea-runner@.service; "
            "systemctl daemon-reload; systemctl restart 'onprem-gitea-runner@*'",
            (
                "A job cannot read secrets or the runner's credentials, see others' processes, become root, or write "
                "elsewhere",
            ),
        ),
    ),
    "mlflow": (
        Breakage(
            "sed -i 's/^default_permission = .*/default_permission = READ/; "
            "s/^grant_default_workspace_access = .*/grant_default_workspace_access = true/' "
            "/etc/onprem-mlflow/authentication.ini",
            (
                "Who was given nothing sees nothing of the workspace `default`, not even that experiment which MLflow "
                "makes",
            ),
        ),
        Breakage(
            "sed -i 's/^MLFLOW_SERVER_ALLOWED_HOSTS=.*/MLFLOW_SERVER_ALLOWED_HOSTS=*/' /etc/onprem-mlflow/environment",
            (
                "A request that names another host is refused, so that no web page can reach MLflow under a name of "
                "its own",
            ),
        ),
        Breakage(
            _unit("onprem-mlflow", PRIVILEGE),
            (
                "MLflow runs as an account of its own, without privileges, which can change neither programs nor "
                "settings",
            ),
        ),
        Breakage(
            "chmod 644 /etc/onprem-mlflow/environment",
            (
                "MLflow's passwords and keys can be read by root, and what it needs itself by its own account; by "
                "nobody else",
            ),
        ),
    ),
    "gateway": (
        Breakage(
            "sed -i '/Strict-Transport-Security/d; /return status 421/d; "
            "/^ *ssl-default-bind-options/s/TLSv1.2/TLSv1.0/; /^ *ssl-default-bind-ciphers/s/ E.*/ ALL:@SECLEVEL=0/' "
            "/etc/onprem-gateway/haproxy.cfg; systemctl reload onprem-gateway",
            (
                "TLS 1.1 and older is refused",
                "Browsers are told to use no name of the gateway without TLS, whatever the answer is",
                "A request for another host over a connection to one of the names is refused with 421",
            ),
        ),
        Breakage(
            "chmod 644 /etc/onprem-gateway/gateway.pem.key",
            ("The gateway's private key can be read by its own account only",),
        ),
    ),
}
"""By role, in the order in which a role's are made."""

WRONG_SECRETS = {
    "mlflow": Breakage(
        "sed -i 's/:mlflow:.*/:mlflow:wrong/' /etc/onprem-mlflow/databases; systemctl --no-block restart onprem-mlflow",
        ("Without a login MLflow shows nobody anything but that it is well",),
    ),
    "gitea": Breakage(
        "sed -i 's/^\\(MINIO_SECRET_ACCESS_KEY\\) = .*/\\1 = wrong-wrong-wrong/' /etc/gitea/secrets/secrets.ini; "
        "systemctl kill -s KILL gitea; systemctl --no-block restart gitea",
        ("Gitea answers, and reaches its database",),
    ),
}
"""Of the database, and of the object store: services do not start with them."""


def failed(site: TestSite, role: str, code: int = 1) -> set[str]:
    """What does not hold now of a role, in its checks' words."""
    found = site.json("verify", "infrastructure", "--role", role, code=code)
    return {one["name"].partition(" [")[0] for one in found["checks"] if one["outcome"] == "failed"}


CASES = [
    *(pytest.param(role, breakages, id=role) for role, breakages in BREAKAGES.items()),
    *(pytest.param(role, (one,), id=f"{role}-with-a-wrong-secret") for role, one in WRONG_SECRETS.items()),
]


@pytest.mark.parametrize("role, breakages", CASES)
def test_each_breakage_is_caught_and_mended(site: TestSite, role: str, breakages: tuple[Breakage, ...]) -> None:
    for one in breakages:
        site.on("s1", one.how)
    found = failed(site, role)
    for one in breakages:
        if one.mend:
            site.on("s1", one.mend)
    site.run("deploy", "infrastructure", "--role", role).must()
    # Other checks may notice as well: what is broken here, services behind it feel.
    expected = {check for one in breakages for check in one.checks}
    assert expected - found == set(), f"broken and not noticed: {expected - found}; noticed: {found}"


def test_nothing_is_left_to_do(site: TestSite) -> None:
    assert site.json("plan", "infrastructure")["changed"] == 0
