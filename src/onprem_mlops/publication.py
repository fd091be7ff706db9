"""This program and a site's own folder, pushed to the Git that the site itself serves.

Plain git over HTTPS with the site's authority. The credentials are read from the node over the pinned connection and
are never an argument of a process. History is never rewritten: if somebody else pushed, git says so and nothing is
changed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from onprem_mlops import prerequisites
from onprem_mlops.endpoint import endpoint
from onprem_mlops.errors import MlopsError, RequestError
from onprem_mlops.paths import REPOSITORY
from onprem_mlops.shell import Connection
from onprem_mlops.site import Site
from onprem_mlops.site.material import authority_file
from onprem_mlops.site.role import Forge
from onprem_mlops.site.secrets import material_folder

BRANCH = "main"
ENCRYPTED = ("secrets.yaml.age", "recipients.txt", "ca.pem")
"""Files of a site that a lab keeps in its state folder: encrypted, or public."""

_LEFT_OUT = {".git", "__pycache__"}
_PLAIN_SECRET = re.compile(rb"AGE-SECRET-KEY-1[0-9A-Z]|-----BEGIN [A-Z ]*PRIVATE KEY-----")
_HEADER = re.compile(r"Authorization: [\x21-\x7e]+ [\x21-\x7e]+")


@dataclass(frozen=True)
class Pushed:
    """One repository: its address, the commit that its branch is at, and whether that is new."""

    what: str
    url: str
    commit: str
    changed: bool


def push(site: Site) -> tuple[Pushed, ...]:
    """Push both. RequestError if the site serves no Git, MlopsError with git's own words if it refuses."""
    prerequisites.require("git")
    forge = site.forge
    if forge is None:
        raise RequestError(f"no role that is on in site {site.name} serves Git", "Put one on in `roles:` of site.yaml.")
    remote = Remote(site, forge, _environment(site, forge))
    return remote.push_program(), remote.push_folder()


class Remote:
    """The site's Git, and what git must know to reach it."""

    def __init__(self, site: Site, forge: Forge, environment: Mapping[str, str]) -> None:
        self._site, self._forge, self._environment = site, forge, environment

    def push_program(self) -> Pushed:
        """What is committed here, as it is checked out."""
        url = f"{self._forge.url}{self._forge.program}.git"
        try:
            commit = self._git(REPOSITORY, "rev-parse", "--verify", "HEAD")
        except MlopsError as error:
            raise RequestError(f"{REPOSITORY} is no Git repository with a commit: {error.message}") from None
        changed = commit != self._there(url)
        if changed:
            self._git(REPOSITORY, "push", "--quiet", url, f"{commit}:refs/heads/{BRANCH}")
        return Pushed("program", url, commit, changed)

    def push_folder(self) -> Pushed:
        """The site's folder as it is on the disk, as one commit on top of what is there."""
        url = f"{self._forge.url}{self._forge.inventory}.git"
        with tempfile.TemporaryDirectory(prefix="onprem-mlops-push-") as name:
            work = Path(name)
            self._git(work, "init", "--quiet", f"--initial-branch={BRANCH}")
            if before := self._there(url):
                self._git(work, "fetch", "--quiet", "--depth=1", url, BRANCH)
                self._git(work, "reset", "--quiet", "--soft", "FETCH_HEAD")
            for source, target in _files(self._site):
                (work / target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, work / target)
            self._git(work, "add", "--all", "--force", ".")
            if before and not self._git(work, "status", "--porcelain"):
                return Pushed("site", url, before, changed=False)
            self._git(work, "commit", "--quiet", "--message", f"Describe site {self._site.name} as it is")
            self._git(work, "push", "--quiet", url, f"HEAD:refs/heads/{BRANCH}")
            return Pushed("site", url, self._git(work, "rev-parse", "HEAD"), changed=True)

    def _there(self, url: str) -> str:
        """The commit that the branch is at; empty if there is no such branch yet."""
        return self._git(Path("/"), "ls-remote", url, f"refs/heads/{BRANCH}").partition("\t")[0]

    def _git(self, folder: Path, *words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=folder, env=dict(self._environment), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            advice = "See that the last deploy ended well and that nobody else pushed there; then run it again."
            raise MlopsError(f"`git {' '.join(words[:2])} …`: {said[-600:]}", advice)
        return done.stdout.strip()


def _environment(site: Site, forge: Forge) -> dict[str, str]:
    """What git runs with: this person's own settings, the site's name and authority, and the credentials."""
    at = urlsplit(forge.url)
    port = at.port or 443
    settings = {
        "http.sslCAInfo": str(authority_file(site)),
        "http.curloptResolve": f"{at.hostname}:{port}:{','.join(map(str, site.names[at.hostname or '']))}",
        "http.extraHeader": _credentials(site, forge),
        "http.proxy": "",
        "credential.helper": "",
        # Nothing of this machine's repositories may run while their commits are pushed.
        "core.hooksPath": os.devnull,
    }
    given = {key: value for number, pair in enumerate(settings.items()) for key, value in _setting(number, *pair)}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    # Somebody who has told git no name still can push.
    name, email = _person(site)
    who = {
        f"GIT_{role}_{what}": text
        for role in ("AUTHOR", "COMMITTER")
        for what, text in (("NAME", name), ("EMAIL", email))
    }
    return {**environment, **who, **given, "GIT_CONFIG_COUNT": str(len(settings)), "GIT_TERMINAL_PROMPT": "0"}


def _setting(number: int, key: str, value: str) -> Iterator[tuple[str, str]]:
    yield f"GIT_CONFIG_KEY_{number}", key
    yield f"GIT_CONFIG_VALUE_{number}", value


def _person(site: Site) -> tuple[str, str]:
    def told(key: str) -> str:
        done = subprocess.run(["git", "config", "--global", key], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return told("user.name") or "onprem-mlops", told("user.email") or f"onprem-mlops@{site.domain}"


def _credentials(site: Site, forge: Forge) -> str:
    """The header that may push, from the node. MlopsError if it has none."""
    connection = Connection(endpoint(site, site.node(forge.node)))
    try:
        header = connection.run(f"cat {shlex.quote(forge.header)}", timeout=30).text.strip()
    finally:
        connection.close()
    if not _HEADER.fullmatch(header):
        raise MlopsError(
            f"{forge.node}: {forge.header} holds no credentials, so nothing can be pushed",
            "A deploy of the role that serves Git makes them.",
        )
    return header


def _files(site: Site) -> Iterator[tuple[Path, Path]]:
    """Files of the site's folder and where they go. RequestError if one of them holds a secret in plain text."""
    found = dict(_below(site.folder))
    for name in ENCRYPTED:
        if (material_folder(site) / name).is_file():
            found[Path(name)] = material_folder(site) / name
    for target, source in sorted(found.items()):
        if match := _PLAIN_SECRET.search(source.read_bytes()):
            raise RequestError(
                f"{source} holds a private key ({match[0].decode()[:24]}…), so nothing was pushed",
                "Keep it outside of the site's folder; what roles need is in secrets.yaml.age.",
            )
        yield source, target


def _below(folder: Path) -> Iterator[tuple[Path, Path]]:
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if path.is_file() and not path.is_symlink() and _LEFT_OUT.isdisjoint(inside.parts):
            yield inside, path


def record(pushed: tuple[Pushed, ...]) -> list[Mapping[str, object]]:
    """What was pushed, as plain data."""
    return [{"what": one.what, "url": one.url, "commit": one.commit, "changed": one.changed} for one in pushed]
