"""Gitea as its users find it: Git over HTTPS and SSH, LFS, registries, the web page; and that strangers get nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import secrets
import shlex
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from onprem_mlops import prerequisites
from onprem_mlops.artifacts import Store
from onprem_mlops.artifacts.publish import StorePublisher
from onprem_mlops.artifacts.sources.toolchain import pip
from onprem_mlops.errors import MlopsError, RequestError
from onprem_mlops.site.secrets import Secrets
from onprem_mlops.verify.suite import (
    SYSTEM_STORE,
    Controller,
    DoesNotApply,
    NodeApi,
    NodeHost,
    Nodes,
    NotChecked,
    Response,
    Site,
    assert_certificate,
    assert_old_tls_is_refused,
    browser,
    listeners,
    site_proxy,
    until,
)
from roles.gitea.settings import Settings

KNOWN_HOSTS = "git_known_hosts"
CLIENT_SECONDS = 50


@dataclass(frozen=True)
class Account:
    """Somebody who exists while the checks run, with a token for Git and packages and a key for SSH."""

    name: str
    token: str = field(repr=False)
    key: Path


@dataclass(frozen=True)
class Service:
    """Gitea, asked by its administrator from its own node."""

    host: NodeHost
    settings: Settings
    site: Site

    @property
    def url(self) -> str:
        """Where people find it, without the final slash."""
        return self.settings.root_url(self.site).rstrip("/")

    @property
    def api(self) -> NodeApi:
        """Its API, as its administrator."""
        return NodeApi(self.host, f"{self.settings.endpoint(self.site)}/api/v1", self.settings.token_header)

    def configured(self, section: str, key: str) -> str:
        """A setting that it runs with: the file is made anew at each of its starts. Empty if it has none."""
        script = rf"/^\[{section}\]$/,/^\[/s/^{key} = //p"
        return self.host.check_output(f"sed -n {shlex.quote(script)} {self.settings.configuration}")


@pytest.fixture(scope="module")
def service(site: Site, settings: Settings, nodes: Nodes) -> Service:
    """Gitea with its administrator's token. NotChecked if it does not even answer on its own node."""
    found = Service(nodes[settings.hosts(site)[0].name], settings, site)
    health = f"curl -fsS --max-time 10 --cacert {SYSTEM_STORE} {settings.endpoint(site)}{settings.health}"
    if found.host.run(health).rc != 0:
        raise NotChecked(f"{found.host.name}: Gitea does not answer", "Other checks say why.")
    return found


@pytest.fixture(scope="module")
def account(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """An account of its own, which goes with all that it made."""
    name, password = f"verify-{secrets.token_hex(4)}", secrets.token_urlsafe(24)
    folder = tmp_path_factory.mktemp("account")
    key = Ed25519PrivateKey.generate()
    private = folder / "key"
    private.touch(0o600)
    openssh = serialization.PrivateFormat.OpenSSH
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, openssh, serialization.NoEncryption()))
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    person = {"username": name, "email": f"{name}@{service.site.domain}", "password": password}
    service.api.ask("POST", "/admin/users", {**person, "must_change_password": False})
    try:
        service.api.ask("POST", f"/admin/users/{name}/keys", {"title": "verify", "key": public})
        wanted = {"name": "verify", "scopes": ["write:repository", "write:package", "write:user"]}
        token = service.api.ask("POST", f"/users/{name}/tokens", wanted, login=f"{name}:{password}")["sha1"]
        yield Account(name, token, private)
    finally:
        service.api.ask("DELETE", f"/admin/users/{name}?purge=true")


@pytest.fixture(scope="module")
def environment(controller: Controller, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """What clients on this machine run with: the site's names and its authority, and none of its owner's settings."""
    home = str(tmp_path_factory.mktemp("home"))
    authority = str(controller.authority)
    trust = ("GIT_SSL_CAINFO", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
    with site_proxy(controller) as proxy:
        yield {
            "PATH": os.environ["PATH"],
            "HOME": home,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_AUTHOR_NAME": "verify",
            "GIT_AUTHOR_EMAIL": "verify@example.com",
            "GIT_COMMITTER_NAME": "verify",
            "GIT_COMMITTER_EMAIL": "verify@example.com",
            "PIP_CONFIG_FILE": os.devnull,
            **dict.fromkeys(trust, authority),
            **proxy,
        }


def run(
    environment: Mapping[str, str], *words: str, cwd: Path | None = None, given: str | None = None, well: bool = True
) -> str:
    """All that a client on this machine says. AssertionError if it fails, or, with `well` off, if it does not."""
    done = subprocess.run(
        words, cwd=cwd, env=dict(environment), input=given, capture_output=True, text=True, timeout=CLIENT_SECONDS
    )
    said = (done.stdout + done.stderr).strip()
    shown = " ".join(words[:4])
    assert (done.returncode == 0) == well, f"`{shown} …` ended with {done.returncode}: {said[-400:]}"
    return said


def with_token(environment: Mapping[str, str], account: Account) -> dict[str, str]:
    """The environment of a git that answers with the account's token, which is no argument of a process."""
    helper = '!f() { echo "username=$VERIFY_NAME"; echo "password=$VERIFY_TOKEN"; }; f'
    return {
        **environment,
        "VERIFY_NAME": account.name,
        "VERIFY_TOKEN": account.token,
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "credential.helper",
        "GIT_CONFIG_VALUE_0": helper,
    }


def over_ssh(
    environment: Mapping[str, str], site: Site, settings: Settings, account: Account, known: Path
) -> dict[str, str]:
    """The environment of a git that comes with the account's key and believes one host key."""
    options = {
        "IdentityFile": str(account.key),
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": str(known),
        "GlobalKnownHostsFile": os.devnull,
        "StrictHostKeyChecking": "yes",
        "HostName": str(site.names[settings.name(site)][0]),
        "HostKeyAlias": f"[{settings.name(site)}]:{settings.ssh_port}",
    }
    words = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    return {**environment, "GIT_SSH_COMMAND": shlex.join(["ssh", "-F", os.devnull, *words])}


@pytest.fixture
def repository(service: Service, account: Account) -> Iterator[str]:
    """Path of a private repository of the account, with nothing in it."""
    name = f"r{secrets.token_hex(4)}"
    service.api.ask("POST", f"/admin/users/{account.name}/repos", {"name": name, "private": True})
    yield f"{account.name}/{name}"
    service.api.ask("DELETE", f"/repos/{account.name}/{name}")


def pushed_and_cloned(environment: Mapping[str, str], remote: str, folder: Path) -> None:
    """A commit goes there and comes back with a clone, bit by bit."""
    first, again = folder / "first", folder / "again"
    content = secrets.token_hex(2000)
    run(environment, "git", "init", "-q", "-b", "main", str(first))
    (first / "file").write_text(content)
    run(environment, "git", "add", "file", cwd=first)
    run(environment, "git", "commit", "-q", "-m", "first", cwd=first)
    run(environment, "git", "push", "-q", remote, "main", cwd=first)
    run(environment, "git", "clone", "-q", remote, str(again))
    assert (again / "file").read_text() == content, f"{remote}: what was cloned is not what was pushed"


# --- what is served, and to whom


def test_health(site: Site, settings: Settings, nodes: Nodes) -> None:
    """Gitea answers, and reaches its database.

    `journalctl -u gitea` on its node says why not; a full disk, a database or an object store that is down end it.
    """
    host = nodes[settings.hosts(site)[0].name]
    said = host.run(f"curl -sS --max-time 10 --cacert {SYSTEM_STORE} {settings.endpoint(site)}{settings.health}")
    assert said.rc == 0, f"{host.name}: {said.stderr.strip()}"
    answer = json.loads(said.stdout)
    wrong = sorted(name for name, of in answer["checks"].items() if of[0]["status"] != "pass")
    assert answer["status"] == "pass" and not wrong, f"{host.name}: not well: {', '.join(wrong) or answer}"


def test_certificate(site: Site, settings: Settings, controller: Controller, service: Service) -> None:
    """Gitea's own certificate is signed by the site's authority, has its names, and is good for weeks.

    `./mlops deploy --role gitea` renews a certificate that is due.
    """
    names = (settings.name(site), settings.registry(site), site.full_name(service.host.site_node))
    assert_certificate(controller, service.host, settings.port, *names)


def test_old_tls_is_refused(site: Site, settings: Settings, controller: Controller, service: Service) -> None:
    """TLS 1.1 and older is refused by Gitea itself."""
    assert_old_tls_is_refused(controller, service.host, settings.port, settings.name(site))


def test_nobody_can_register(service: Service, controller: Controller) -> None:
    """A stranger cannot make an account."""
    name = f"verify-{secrets.token_hex(4)}"
    form = f"user_name={name}&email={name}@example.com&password=Verify-12345678&retype=Verify-12345678"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = controller.request("POST", f"{service.url}/user/sign_up", headers=headers, body=form.encode())
    there = service.api.ask("GET", f"/users/search?q={name}")["data"]
    if there:
        service.api.ask("DELETE", f"/admin/users/{name}?purge=true")
    assert not there, f"{service.url}: somebody registered as {name} (HTTP {answer.status})"
    assert answer.status in (403, 404), f"{service.url}/user/sign_up answers HTTP {answer.status}"


def test_private_repository_is_not_there_for_strangers(
    service: Service, controller: Controller, repository: str, account: Account, environment: Mapping[str, str]
) -> None:
    """Without a login a private repository is not found, neither as a page nor by Git nor through the API."""
    # The control: it is there for who may see it.
    run(with_token(environment, account), "git", "ls-remote", f"{service.url}/{repository}.git")
    for path in (f"/{repository}", f"/api/v1/repos/{repository}"):
        answer = controller.get(f"{service.url}{path}")
        assert answer.status == 404, f"{service.url}{path} without a login: HTTP {answer.status}"
    answer = controller.get(f"{service.url}/{repository}.git/info/refs?service=git-upload-pack")
    assert answer.status in (401, 404), f"Git without a login: HTTP {answer.status}"


def test_second_factor_is_asked_for(
    service: Service, settings: Settings, controller: Controller, repository: str, account: Account
) -> None:
    """Somebody without a second factor sees no repository through the API, not even an own one.

    `two_factor: optional` in the site file says that this is wanted otherwise.
    """
    answer = controller.get(f"{service.url}/api/v1/repos/{repository}", authorization=f"token {account.token}")
    wanted = 404 if settings.two_factor == "enforced" else 200
    assert answer.status == wanted, f"{repository} for an account without a second factor: HTTP {answer.status}"


def test_first_passwords_are_not_kept(service: Service, settings: Settings, site: Site, controller: Controller) -> None:
    """Nobody goes on with the first password, which is in the site's secrets: with it one can only choose another."""
    if not settings.people:
        raise DoesNotApply("the site file names no people")
    try:
        shown = Secrets.of(site).show().get("gitea", {})
    except MlopsError as error:
        raise NotChecked(f"the site's secrets cannot be read here: {error.message}", error.advice) from None
    for name in settings.people:
        first = shown[f"first_password_{name}"].reveal()
        basic = base64.b64encode(f"{name}:{first}".encode()).decode()
        answer = controller.get(f"{service.url}/api/v1/user", authorization=f"Basic {basic}")
        assert answer.status in (401, 403), f"{name} still uses the first password: HTTP {answer.status}"


def test_metrics_are_not_for_everybody(service: Service, controller: Controller) -> None:
    """Metrics need the site's token."""
    answer = controller.get(f"{service.url}/metrics")
    assert answer.status in (401, 403), f"{service.url}/metrics without a token: HTTP {answer.status}"


# --- what the site file says


def test_people(service: Service, settings: Settings) -> None:
    """Everybody whom the site file names has an account, with the rights that it names.

    `./mlops deploy --role gitea` gives back what somebody changed.
    """
    if not settings.people:
        raise DoesNotApply("the site file names no people")
    for name, person in settings.people.items():
        found = service.api.ask("GET", f"/users/{name}")
        has = {"admin": found["is_admin"], "active": found["active"] and not found["prohibit_login"]}
        wanted = {"admin": person.admin, "active": person.active}
        assert has == wanted, f"{name} has {has}; in the site file: {wanted}"


def test_organisations(service: Service, settings: Settings, controller: Controller) -> None:
    """Organisations of the site file and the platform's own are there, and strangers see the public ones only.

    `./mlops deploy --role gitea` gives back what somebody changed.
    """
    declared = {name: one.visibility for name, one in settings.organisations.items()}
    for name, visibility in {settings.platform: "private", **declared}.items():
        found = service.api.ask("GET", f"/orgs/{name}")["visibility"]
        assert found == visibility, f"organisation {name} is {found}; in the site file: {visibility}"
        answer = controller.get(f"{service.url}/api/v1/orgs/{name}")
        wanted = 200 if visibility == "public" else 404
        assert answer.status == wanted, f"organisation {name}, {visibility}, without a login: HTTP {answer.status}"


def test_teams(service: Service, settings: Settings) -> None:
    """Teams of the site file may do what it says, and exactly the people whom it names are in them.

    `./mlops deploy --role gitea` gives back what somebody changed.
    """
    if not any(organisation.teams for organisation in settings.organisations.values()):
        raise DoesNotApply("the site file names no teams")
    for owner, organisation in settings.organisations.items():
        there = {team["name"]: team for team in service.api.listed(f"/orgs/{owner}/teams")}
        for name, wanted in organisation.teams.items():
            assert name in there, f"organisation {owner} has no team {name}"
            team = there[name]
            # An external wiki or tracker can only be looked at, whatever the team.
            may = {right for unit, right in team["units_map"].items() if not unit.startswith("repo.ext_")}
            assert may == {wanted.permission}, (
                f"{owner}/{name} may {sorted(may)}; in the site file: {wanted.permission}"
            )
            everywhere = team["includes_all_repositories"]
            assert everywhere, f"{owner}/{name} is not for all of the organisation's repositories"
            creates = team["can_create_org_repo"]
            assert creates == wanted.creates_repositories, f"{owner}/{name} makes repositories: {creates}"
            members = {one["login"] for one in service.api.listed(f"/teams/{team['id']}/members")}
            assert members == set(wanted.members), f"in {owner}/{name} are {sorted(members)}, not {wanted.members}"


def test_approvals(service: Service, settings: Settings, site: Site) -> None:
    """A change of the platform's repositories needs as many approvals as the site file says."""
    for name in settings.repositories(site):
        rule = service.api.ask("GET", f"/repos/{settings.platform}/{name}/branch_protections/main")
        found = rule["required_approvals"]
        assert found == settings.approvals, f"{name} needs {found} approvals; in the site file: {settings.approvals}"


@contextmanager
def with_a_main(service: Service, path: str) -> Iterator[str]:
    """Path of a repository that has a commit and the protections of another: that one, or a copy if it is empty.

    The first branch that is pushed to an empty repository becomes its default one and cannot be taken away again.
    """
    if not service.api.ask("GET", f"/repos/{path}")["empty"]:
        yield path
        return
    owner, name = path.partition("/")[0], f"verify-{secrets.token_hex(4)}"
    wanted = {"name": name, "private": True, "auto_init": True, "default_branch": "main"}
    service.api.ask("POST", f"/orgs/{owner}/repos", wanted)
    try:
        for rule in service.api.ask("GET", f"/repos/{path}/branch_protections"):
            service.api.ask("POST", f"/repos/{owner}/{name}/branch_protections", rule)
        yield f"{owner}/{name}"
    finally:
        service.api.ask("DELETE", f"/repos/{owner}/{name}")


@contextmanager
def writer_of(service: Service, account: Account, path: str) -> Iterator[None]:
    """For a while the account may write to a repository."""
    at = f"/repos/{path}/collaborators/{account.name}"
    service.api.ask("PUT", at, {"permission": "write"})
    try:
        yield
    finally:
        service.api.ask("DELETE", at)


def main_of(environment: Mapping[str, str], remote: str) -> str:
    """The commit that branch `main` is at; empty if there is no such branch."""
    return run(environment, "git", "ls-remote", remote, "refs/heads/main").partition("\t")[0]


def committed(environment: Mapping[str, str], folder: Path, *parents: str) -> str:
    """A commit without files, for which no workflow runs."""
    tree = run(environment, "git", "mktree", cwd=folder, given="")
    after = [word for parent in parents for word in ("-p", parent)]
    return run(environment, "git", "commit-tree", tree, *after, "-m", "verify [skip ci]", cwd=folder)


def past_a_review(environment: Mapping[str, str], remote: str, folder: Path) -> None:
    """Who may push a branch pushes neither a commit nor another history to `main`."""

    def push(*words: str, well: bool = True) -> str:
        return run(environment, "git", "push", *words[:-1], remote, words[-1], cwd=folder, well=well)

    run(environment, "git", "init", "-q", str(folder))
    before = main_of(environment, remote)
    if before:
        run(environment, "git", "fetch", "-q", "--depth", "1", remote, "main", cwd=folder)
    change, other = committed(environment, folder, *([before] if before else [])), committed(environment, folder)
    # The control: it is not that the account may not write.
    branch = f"refs/heads/verify-{secrets.token_hex(4)}"
    push(f"{change}:{branch}")
    push(f":{branch}")
    try:
        for what, words in (("a commit", [change]), ("another history", ["--force", other])):
            try:
                said = push(*words[:-1], f"{words[-1]}:refs/heads/main", well=False)
            except AssertionError:
                raise AssertionError(f"{remote}: {what} gets to main past a review") from None
            assert "protected" in said, f"{remote}: {what} is refused, but not because main is protected: {said[-300:]}"
    finally:
        if main_of(environment, remote) != before:
            push("--force", f"{before}:refs/heads/main")


@pytest.mark.limit(120)
def test_platform_is_changed_by_review_only(
    service: Service,
    settings: Settings,
    site: Site,
    account: Account,
    environment: Mapping[str, str],
    tmp_path: Path,
) -> None:
    """Nobody pushes to `main` of the platform's repositories past a review, neither a commit nor another history.

    `./mlops deploy --role gitea` protects the branch again.
    """
    using = with_token(environment, account)
    for name in settings.repositories(site):
        with (
            with_a_main(service, f"{settings.platform}/{name}") as path,
            writer_of(service, account, path),
        ):
            past_a_review(using, f"{service.url}/{path}.git", tmp_path / name)


def test_package_quota(service: Service, settings: Settings) -> None:
    """The packages of one owner together are held to the site file's quota.

    A restart of Gitea (`systemctl restart gitea`) takes up what a deploy wrote.
    """
    found = service.configured("packages", "LIMIT_TOTAL_OWNER_SIZE")
    wanted = str(int(settings.packages_per_owner))
    assert found == wanted, f"{service.host.name}: Gitea runs with a quota of {found or 'none'}, not {wanted} bytes"


def test_mail(service: Service, settings: Settings) -> None:
    """Gitea sends its mail through the site's relay, with TLS."""
    mail = settings.mail
    if mail is None:
        raise DoesNotApply("the site file names no relay for mail")
    wanted = {
        "ENABLED": "true",
        "PROTOCOL": mail.protocol,
        "SMTP_ADDR": mail.host,
        "SMTP_PORT": str(mail.port),
        "FROM": mail.sender,
        "USER": mail.user,
    }
    found = {key: service.configured("mailer", key) for key in wanted}
    assert found == wanted, f"{service.host.name}: Gitea runs with {found}; in the site file: {wanted}"


def test_requests_are_logged(
    service: Service, settings: Settings, site: Site, nodes: Nodes, account: Account, repository: str
) -> None:
    """The journal says who asked Gitea for what, and from which address, also behind the gateway."""
    gateways: Any = site.settings("gateway").hosts(site) if site.is_on("gateway") else ()  # type: ignore[attr-defined]
    # From a node of its own where there is one: on the gateway's, the gateway's address would be taken for its own.
    others = [node for node in site.nodes if node not in (*settings.hosts(site), *gateways)]
    asker = nodes[others[0].name] if others else service.host
    mark = secrets.token_hex(8)
    url = f"{service.url}/{repository}.git/info/refs?service=git-upload-pack&verify={mark}"
    asked = asker.feed(
        f"curl -sS --fail --max-time 20 --cacert {SYSTEM_STORE} -o /dev/null --config - {shlex.quote(url)}",
        f'user = "{account.name}:{account.token}"\n',
    )
    assert asked.rc == 0, f"{asker.name}: {url}: {asked.stderr.strip()[-200:]}"
    said: list[str] = []

    def logged() -> bool:
        said[:] = service.host.lines(f"journalctl -u gitea -o cat --no-pager --since=-5min | grep -F {mark} || true")
        return bool(said)

    assert until(logged, seconds=10, every=0.5), f"{service.host.name}: nothing in the journal of a request just made"
    wanted = f"{asker.address} - {account.name} "
    assert wanted in said[0], f"{service.host.name}: the journal has {said[0]!r}, without {wanted!r}"


# --- Git


def test_git_over_https(
    service: Service, account: Account, repository: str, environment: Mapping[str, str], tmp_path: Path
) -> None:
    """A commit is pushed over HTTPS with a token, and cloned again."""
    pushed_and_cloned(with_token(environment, account), f"{service.url}/{repository}.git", tmp_path)


def test_git_over_ssh(
    site: Site,
    settings: Settings,
    account: Account,
    repository: str,
    environment: Mapping[str, str],
    tmp_path: Path,
) -> None:
    """A commit is pushed over SSH with a key, and cloned again; the host key is the one that the site pins."""
    known = site.state / KNOWN_HOSTS
    if not known.is_file():
        raise NotChecked(f"{known} does not exist", "`./mlops deploy --role gitea` writes it.")
    remote = f"ssh://{settings.ssh_user}@{settings.name(site)}:{settings.ssh_port}/{repository}.git"
    pushed_and_cloned(over_ssh(environment, site, settings, account, known), remote, tmp_path)


def test_another_host_key_is_noticed(
    site: Site, settings: Settings, account: Account, repository: str, environment: Mapping[str, str], tmp_path: Path
) -> None:
    """A client that pins another host key refuses to speak to the server, and one with a wrong key is refused."""
    remote = f"ssh://{settings.ssh_user}@{settings.name(site)}:{settings.ssh_port}/{repository}.git"
    other = Ed25519PrivateKey.generate()
    public = other.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    known = tmp_path / "known"
    known.write_text(f"[{settings.name(site)}]:{settings.ssh_port} {public.decode()}\n")
    said = run(over_ssh(environment, site, settings, account, known), "git", "ls-remote", remote, well=False)
    assert "Host key verification failed" in said, f"{remote}: {said[-300:]}"
    stranger = tmp_path / "key"
    stranger.touch(0o600)
    openssh = serialization.PrivateFormat.OpenSSH
    stranger.write_bytes(other.private_bytes(serialization.Encoding.PEM, openssh, serialization.NoEncryption()))
    unknown = Account(account.name, "", stranger)
    with_key = over_ssh(environment, site, settings, unknown, site.state / KNOWN_HOSTS)
    said = run(with_key, "git", "ls-remote", remote, well=False)
    assert "Permission denied" in said, f"{remote} with a key that nobody knows: {said[-300:]}"


@pytest.mark.limit(120)
def test_large_files(
    service: Service,
    settings: Settings,
    account: Account,
    repository: str,
    environment: Mapping[str, str],
    tmp_path: Path,
) -> None:
    """A large file goes through LFS into object storage and comes back whole; the node's disk does not hold it."""
    try:
        prerequisites.require("git-lfs")
    except RequestError as error:
        raise NotChecked(error.message, error.advice) from None
    remote, first, again = f"{service.url}/{repository}.git", tmp_path / "first", tmp_path / "again"
    using = with_token(environment, account)
    content = secrets.token_bytes(5 << 20)
    digest = hashlib.sha256(content).hexdigest()
    run(using, "git", "lfs", "install", "--skip-repo")
    run(using, "git", "init", "-q", "-b", "main", str(first))
    run(using, "git", "lfs", "track", "*.bin", cwd=first)
    (first / "model.bin").write_bytes(content)
    run(using, "git", "add", ".", cwd=first)
    run(using, "git", "commit", "-q", "-m", "model", cwd=first)
    run(using, "git", "remote", "add", "origin", remote, cwd=first)
    run(using, "git", "push", "-q", "origin", "main", cwd=first)
    pointer = run(using, "git", "show", "HEAD:model.bin", cwd=first)
    assert digest in pointer, f"{remote}: the file itself is in Git, not in LFS"
    run(using, "git", "clone", "-q", remote, str(again))
    assert (again / "model.bin").read_bytes() == content, f"{remote}: what came back from LFS is not what went in"
    held = service.host.lines("find %s -name %s", settings.data, f"{digest[4:]}*")
    assert not held, f"{service.host.name}: {held} is on the node's disk, not in object storage"


# --- registries


def layer(folder: Path) -> Path:
    """A tar that crane makes an image's layer of."""
    path = folder / "layer.tar"
    with tarfile.open(path, "w") as tar:
        entry = tarfile.TarInfo("hello")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"hello"))
    return path


@pytest.fixture(scope="module")
def image(
    site: Site,
    settings: Settings,
    account: Account,
    environment: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """A private image of the account as clients name it: `<registry>/<account>/image:1`. It goes with the account."""
    crane = str(Store().file("crane", "crane").path)
    folder = tmp_path_factory.mktemp("image")
    registry = settings.registry(site) if site.is_on("gateway") else f"{settings.registry(site)}:{settings.port}"
    using = {**environment, "DOCKER_CONFIG": str(folder)}
    login = (crane, "auth", "login", registry, "-u", account.name, "--password-stdin")
    run(using, *login, given=account.token)
    reference = f"{registry}/{account.name}/image:1"
    run(using, crane, "append", "--oci-empty-base", "-f", str(layer(folder)), "-t", reference)
    return reference


def test_container_image(image: str, controller: Controller, account: Account) -> None:
    """An image is pushed with crane, and another client pulls it as its digests say; without a login nobody does."""
    registry, _, name = image.removesuffix(":1").partition("/")
    path = f"https://{registry}/v2/{name}/manifests/1"
    refused = controller.get(path, accept="application/vnd.oci.image.manifest.v1+json")
    assert refused.status == 401, f"{path} without a login: HTTP {refused.status}"
    manifest = _pulled(controller, registry, name, "manifests/1", account)
    digest = manifest.json["layers"][0]["digest"]
    blob = _pulled(controller, registry, name, f"blobs/{digest}", account)
    found = "sha256:" + hashlib.sha256(blob.body).hexdigest()
    assert found == digest, f"{path}: its layer has {found}, the manifest says {digest}"


def test_nodes_pull_images(site: Site, settings: Settings, nodes: Nodes, image: str, account: Account) -> None:
    """A node of the cluster pulls an image of Gitea's registry, and only with a login."""
    if not site.is_on("containerd"):
        raise DoesNotApply("no node of this site runs containers")
    running = site.in_group(*site.settings("containerd").groups)
    others = [node.name for node in running if node not in settings.hosts(site)]
    host = nodes[(others or [node.name for node in running])[0]]
    refused = host.run("crictl pull %s", image)
    assert refused.rc != 0, f"{host.name}: pulls {image} without a login"
    # crictl takes a login from its environment, too, where no list of processes shows it.
    login = "IFS= read -r CRICTL_CREDS; export CRICTL_CREDS; "
    pull = f"crictl pull {shlex.quote(image)}; rc=$?; crictl rmi {shlex.quote(image)} >/dev/null 2>&1; exit $rc"
    pulled = host.feed(login + pull, f"{account.name}:{account.token}\n")
    assert pulled.rc == 0, f"{host.name}: crictl pull {image}: {pulled.stderr.strip()[-300:]}"


def _pulled(controller: Controller, registry: str, name: str, what: str, account: Account) -> Response:
    basic = base64.b64encode(f"{account.name}:{account.token}".encode()).decode()
    scope = f"scope=repository:{name}:pull&service=container_registry"
    token = controller.get(f"https://{registry}/v2/token?{scope}", authorization=f"Basic {basic}").json["token"]
    accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
    answer = controller.get(f"https://{registry}/v2/{name}/{what}", authorization=f"Bearer {token}", accept=accept)
    assert answer.status == 200, f"{registry}/{name} {what}: HTTP {answer.status} {answer.text[:200]}"
    return answer


def wheel(name: str) -> bytes:
    """A small Python package."""
    files = {
        f"{name}.py": "ANSWER = 42\n",
        f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{name}-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{name}-1.0.dist-info/RECORD"] = "".join(f"{path},,\n" for path in files)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return packed.getvalue()


def upload(content: bytes, name: str) -> tuple[str, bytes]:
    """The form with which twine and uv upload a wheel: its content type and its body."""
    line = secrets.token_hex(16)
    fields = {
        ":action": "file_upload",
        "protocol_version": "1",
        "name": name,
        "version": "1.0",
        "filetype": "bdist_wheel",
        "sha256_digest": hashlib.sha256(content).hexdigest(),
    }
    parts = [
        f'--{line}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n' for key, value in fields.items()
    ]
    file = f'--{line}\r\nContent-Disposition: form-data; name="content"; filename="{name}-1.0-py3-none-any.whl"\r\n\r\n'
    body = "".join(parts).encode() + file.encode() + content + f"\r\n--{line}--\r\n".encode()
    return f"multipart/form-data; boundary={line}", body


@pytest.mark.limit(120)
def test_python_package(
    service: Service, controller: Controller, account: Account, environment: Mapping[str, str], tmp_path: Path
) -> None:
    """A Python package is uploaded, and pip installs it; without a login nobody does."""
    name = "verifypackage"
    at = f"{service.url}/api/packages/{account.name}/pypi"
    kind, body = upload(wheel(name), name)
    basic = base64.b64encode(f"{account.name}:{account.token}".encode()).decode()
    headers = {"Authorization": f"Basic {basic}", "Content-Type": kind}
    done = controller.request("POST", at, headers=headers, body=body)
    assert done.status == 201, f"{at}: HTTP {done.status} {done.text[:200]}"
    refused = controller.get(f"{at}/simple/{name}/")
    assert refused.status in (401, 404), f"{at}/simple/{name}/ without a login: HTTP {refused.status}"
    home = Path(environment["HOME"])
    netrc = home / ".netrc"
    netrc.touch(0o600)
    netrc.write_text(f"default login {account.name} password {account.token}\n")
    options = ("--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--index-url", f"{at}/simple")
    try:
        run(environment, *pip(), "install", *options, "--target", str(tmp_path / "installed"), name)
    finally:
        netrc.unlink()
    assert (tmp_path / "installed" / f"{name}.py").read_text() == "ANSWER = 42\n", "pip installed something else"


@pytest.mark.limit(120)
def test_packages_for_everybody(
    site: Site,
    settings: Settings,
    controller: Controller,
    environment: Mapping[str, str],
    tmp_path: Path,
    record_property: Any,
) -> None:
    """The Python packages that the platform offers are as the artifact store has them, and pip needs no login."""
    published = StorePublisher(site)
    wheels = [one for name in site.wheelhouses for one in published.files(name) if one.name.endswith(".whl")]
    if not wheels:
        raise DoesNotApply("no role of this site offers Python packages")
    index = settings.index(site, settings.shared)
    projects = {one.name: re.sub(r"[-_.]+", "-", one.name.split("-")[0]).lower() for one in wheels}
    missing = []
    for wheel in wheels:
        page = controller.get(f"{index}/{projects[wheel.name]}/")
        if f"{wheel.name}#sha256={wheel.sha256}" not in page.text:
            missing.append(wheel.name)
    assert not missing, f"{index}: {len(missing)} of {len(wheels)} are missing or others: {', '.join(missing[:3])}"
    smallest = min(wheels, key=lambda one: one.size)
    options = ("--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--python-version", "3.11")
    where = ("--index-url", index, "--only-binary", ":all:", "--target", str(tmp_path / "installed"))
    run(environment, *pip(), "install", *options, *where, projects[smallest.name])
    assert any((tmp_path / "installed").iterdir()), f"pip installed nothing of {projects[smallest.name]}"
    record_property("found", f"{len(wheels)} packages at {index}")


# --- the web page


@pytest.mark.limit(240)
def test_web_page(
    site: Site, settings: Settings, controller: Controller, environment: Mapping[str, str], record_property: Any
) -> None:
    """In a browser the page has its styles, its scripts run, and it asks nobody but the site."""
    url = settings.root_url(site)
    port = int(url.rsplit(":", 1)[1].strip("/")) if not site.is_on("gateway") else 443
    name = settings.name(site)
    shown = controller.handshake(controller.addresses_of(name)[0], port, name).certificate
    with browser(environment, shown) as page:
        page.open(f"{url}explore/repos")
        assert page.value("document.title").startswith("Explore"), f"{url}: its title is {page.value('document.title')}"
        assert page.value("getComputedStyle(document.querySelector('#navbar')).display") == "flex", f"{url}: no styles"
        # An element that the page's scripts define.
        ran = until(lambda: bool(page.value("!!customElements.get('overflow-menu')")), seconds=10)
        assert ran, f"{url}: its scripts have not run"
        loaded = page.value(
            "performance.getEntriesByType('resource').map(one => ({name: one.name, status: one.responseStatus, "
            "kind: one.initiatorType}))"
        )
        wrong = [one for one in loaded if one["status"] not in (200, 304)]
        assert not wrong, f"{url}: not loaded: {wrong[:3]}"
        foreign = [one["name"] for one in loaded if not one["name"].startswith((url, "data:"))]
        assert not foreign, f"{url}: asks others: {foreign[:3]}"
        kinds = [one["name"].rsplit("?")[0].rsplit(".", 1)[-1] for one in loaded]
        assert "css" in kinds and "js" in kinds, f"{url}: loads only {sorted(set(kinds))}"
        record_property("found", f"{kinds.count('css')} styles and {kinds.count('js')} scripts from {name}")


# --- the service on its node


def test_service_is_nobody(service: Service, settings: Settings) -> None:
    """Gitea runs as an account of its own, which can write neither its program nor its settings."""
    found = {one.port: one for one in listeners(service.host) if one.port == settings.port and one.protocol == "tcp"}
    assert found, f"{service.host.name}: nobody listens on {settings.port}"
    pid = str(found[settings.port].pid)
    users = set(service.host.lines("ps -o user:32= -p %s | tr -d ' '", pid))
    assert users == {settings.account}, f"{service.host.name}: Gitea runs as {', '.join(users) or 'nobody'}"
    writable = service.host.lines(
        "setpriv --reuid=%s --regid=%s --clear-groups find /usr/local/bin/gitea /usr/local/share/gitea /etc/gitea "
        "-writable ! -type l 2>/dev/null | head -3",
        settings.account,
        settings.account,
    )
    assert not writable, f"{service.host.name}: Gitea can write {', '.join(writable)}"


def test_secrets_are_private(service: Service, settings: Settings) -> None:
    """Gitea's keys, passwords and tokens can be read by Gitea only, the token of deploys by root only."""
    listed = service.host.lines(
        "find /etc/gitea/secrets /etc/gitea/key.pem %s %s -type f -printf '%%p %%m %%u\\n'",
        settings.token_header,
        settings.configuration,
    )
    assert len(listed) >= 8, f"{service.host.name}: only {len(listed)} files of secrets"
    for line in listed:
        path, mode, owner = line.split()
        right = mode in ("600", "400") and owner in ("root", settings.account)
        assert right, f"{service.host.name}: {path} has mode {mode} and belongs to {owner}"
        if path == settings.token_header:
            assert (mode, owner) == ("600", "root"), f"{service.host.name}: {path} has mode {mode} of {owner}"


def test_no_secret_is_an_argument(service: Service, settings: Settings) -> None:
    """No secret of Gitea is in the arguments or the environment of its processes."""
    values = service.host.lines(
        "sed -n 's/^\\(PASSWD\\|TOKEN\\|MINIO_SECRET_ACCESS_KEY\\) = `\\(.*\\)`$/\\2/p' %s", settings.configuration
    )
    assert len(values) >= 3, f"{service.host.name}: {settings.configuration} has only {len(values)} secrets"
    # What it finds counts, not how it ends: there are always processes that end while it looks.
    look = "grep -alsFf - /proc/[0-9]*/cmdline /proc/[0-9]*/environ"
    control = service.host.feed(look, "GITEA_WORK_DIR=\n").stdout
    assert control, f"{service.host.name}: the search does not even find what Gitea's environment holds"
    found = service.host.feed(look, "\n".join(values) + "\n").stdout.split()
    assert not found, f"{service.host.name}: a secret of Gitea is in {', '.join(found)}"
