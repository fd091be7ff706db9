"""Python packages that the site offers to everybody, in Gitea's registry: jobs and people reach no other."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from onprem_mlops.engine.facts import probe
from onprem_mlops.engine.operations import shell
from onprem_mlops.roles import Context, PublishedFile

from .settings import Settings

_UPLOAD = """\
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
offer() {{
    curl -fsS --cacert {authority} --max-time 120 -o "$work/$2" "$5"
    echo "$1  $work/$2" | sha256sum --quiet -c
    curl -sS --fail-with-body --cacert {authority} --max-time 120 --header @{token} -F :action=file_upload \\
        -F "name=$3" -F "version=$4" -F "sha256_digest=$1" -F "content=@$work/$2" {upload} >&2
    rm "$work/$2"
}}
export -f offer; export work
xargs -r -P 4 -L 1 bash -c 'set -euo pipefail; offer "$@"' offer
"""
"""Reads lines: checksum, file, name, version, address. Four at a time, since Gitea waits for its database mostly."""


@dataclass(frozen=True)
class Wheel:
    """A wheel of the artifact store, and what its name says of it."""

    file: PublishedFile

    @property
    def project(self) -> str:
        """Name of the package as an index spells it (PEP 503)."""
        return re.sub(r"[-_.]+", "-", self.file.name.split("-")[0]).lower()

    @property
    def version(self) -> str:
        """Version of the package."""
        return self.file.name.split("-")[1]

    @property
    def link(self) -> str:
        """How the index names it."""
        return f"{self.file.name}#sha256={self.file.sha256}"


def wheels(ctx: Context[Settings]) -> tuple[Wheel, ...]:
    """Everything that roles declare, each file once."""
    found = {one.name: one for name in ctx.site.wheelhouses for one in ctx.files(name) if one.name.endswith(".whl")}
    return tuple(Wheel(one) for one in found.values())


def offered(ctx: Context[Settings]) -> None:
    """Every wheel is in the registry. One that a role no longer declares stays: somebody may have it in a lock."""
    wanted = wheels(ctx)
    there = _there(ctx, wanted)
    missing = [one for one in wanted if one.link not in there]
    lines = (f"{one.file.sha256} {one.file.name} {one.project} {one.version} {one.file.url}\n" for one in missing)
    script = _UPLOAD.format(
        authority=shlex.quote(ctx.settings_of("node").authority_path),
        token=ctx.settings.token_header,
        upload=f"{ctx.settings.endpoint(ctx.site)}/api/packages/{ctx.settings.shared}/pypi",
    )
    shell.run(
        f"Python packages for everybody ({len(missing)} new)" if missing else "Python packages for everybody",
        f"bash -c {shlex.quote(script)}",
        unless=not missing,
        stdin="".join(lines),
    )


def _there(ctx: Context[Settings], wanted: Iterable[Wheel]) -> frozenset[str]:
    """The links of the index's pages of these packages, read over one connection."""
    projects = ",".join(sorted({one.project for one in wanted}))
    if not projects:
        return frozenset()
    pages = f"{ctx.settings.endpoint(ctx.site)}/api/packages/{ctx.settings.shared}/pypi/simple/{{{projects}}}/"
    authority = shlex.quote(ctx.settings_of("node").authority_path)
    asked = f"curl -s --max-time 30 --cacert {authority} '{pages}' | grep -o '[^/]*#sha256=[0-9a-f]*'"
    return frozenset(probe(asked).text.split())
