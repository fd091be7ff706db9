"""Files, directories and links on a node. Every write is atomic and has its mode before it has its name."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Iterator

from pyinfra.context import host

from onprem_mlops.engine.facts import SHA256, File, FileState, FileText, Probe
from onprem_mlops.engine.operation import Command, operation
from onprem_mlops.errors import MlopsError
from onprem_mlops.events import Diff
from onprem_mlops.site import Hidden, IssuedCertificate
from onprem_mlops.steps import PublishedFile

SAVED = ".onprem-mlops-saved"
"""What the name of a file that was set aside ends with."""

DIFF_LIMIT = 64_000
"""Bytes above which a file's content is not shown in a diff."""


@operation
def content(
    path: str,
    text: str | bytes | Hidden,
    *,
    mode: str = "644",
    owner: str = "root",
    group: str = "root",
    secret: bool = False,
    check: str | None = None,
) -> Iterator[Command]:
    """A file with exactly this content. A `Hidden` text, or `secret`, is never shown in a diff.

    The content travels over standard input, into a file beside the final one that nobody else may read until it has
    its owner and mode; then it takes its name. `check` is a command that must find the new file right before that,
    such as "visudo -cqf {}"; `{}` is where its name goes.
    """
    hidden = secret or isinstance(text, Hidden)
    data = text.reveal() if isinstance(text, Hidden) else text
    raw = data.encode() if isinstance(data, str) else data
    now: FileState = host.get_fact(File, path=path)
    wanted = FileState("file", mode.lstrip("0"), owner, group, len(raw), hashlib.sha256(raw).hexdigest())
    if now == wanted:
        return
    yield from _out_of_the_way(path, now)
    if now.kind == "file" and now.sha256 == wanted.sha256:
        yield from _attributes(path, now, mode, owner, group)
        return
    target, temporary = shlex.quote(path), shlex.quote(f"{path}.mlops-new")
    yield Command(
        f"{_with_parents(path)} && umask 077 && base64 -d >{temporary} "
        f"&& chown {shlex.quote(f'{owner}:{group}')} {temporary} && chmod {mode} {temporary} "
        f"{_checked(check, temporary)}&& sync {temporary} && mv -fT {temporary} {target} "
        f"{or_removed(temporary)}",
        stdin=base64.encodebytes(raw).decode() or "\n",
        diff=_diff(path, now, raw, hidden),
    )


@operation
def certificate(chain: str, key: str, issued: IssuedCertificate, *, owner: str) -> Iterator[Command]:
    """A certificate with its chain, for everybody to read, and its key, for `owner` alone.

    They change in one command, at its very end: with one of them only, a service that restarts would not come up.
    """
    parts = ((chain, issued.chain_pem, "644", "root"), (key, issued.key_pem.reveal(), "400", owner))
    found: dict[str, FileState] = {path: host.get_fact(File, path=path) for path, *_ in parts}
    if all(found[path] == _state(text, mode, who) for path, text, mode, who in parts):
        return
    new = [shlex.quote(f"{path}.mlops-new") for path in (chain, key)]
    yield Command(
        f"{_with_parents(chain)} && {_with_parents(key)} && umask 077 && read -r chain && read -r key "
        f'&& printf %s "$chain" | base64 -d >{new[0]} && printf %s "$key" | base64 -d >{new[1]} && chmod 644 {new[0]} '
        f"&& chown {shlex.quote(f'{owner}:root')} {new[1]} && chmod 400 {new[1]} && sync {' '.join(new)} "
        f"&& mv -fT {new[1]} {shlex.quote(key)} && mv -fT {new[0]} {shlex.quote(chain)} {or_removed(' '.join(new))}",
        stdin="".join(f"{base64.b64encode(text.encode()).decode()}\n" for _, text, *_ in parts),
        diff=_diff(chain, found[chain], issued.chain_pem.encode(), hidden=False),
    )


def _state(text: str, mode: str, owner: str) -> FileState:
    raw = text.encode()
    return FileState("file", mode, owner, "root", len(raw), hashlib.sha256(raw).hexdigest())


def or_removed(temporary: str) -> str:
    """Shell: the end of an && list that writes (quoted) files; if it fails, nothing takes the last of a full disk."""
    return f"|| {{ rm -f {temporary}; exit 1; }}"


def _checked(check: str | None, temporary: str) -> str:
    if check is None:
        return ""
    return f"&& {{ {check.replace('{}', temporary)} >&2; }} "


def _parent(path: str) -> str:
    return path.rsplit("/", 1)[0] or "/"


def _with_parents(path: str) -> str:
    # Whatever the umask of the node's shell is: a parent with mode 700 would hide what others must read.
    return f"umask 022 && mkdir -p {shlex.quote(_parent(path))}"


def _diff(path: str, now: FileState, raw: bytes, hidden: bool) -> Diff:
    if hidden:
        return Diff(path, None, None, secret=True)
    readable = now.kind == "file" and now.size <= DIFF_LIMIT and len(raw) <= DIFF_LIMIT
    before = host.get_fact(FileText, path=path) if readable else None
    try:
        after = raw.decode() if len(raw) <= DIFF_LIMIT else None
    except UnicodeDecodeError:
        after = None
    return Diff(path, before, after)


def _out_of_the_way(path: str, now: FileState) -> Iterator[Command]:
    if now.kind == "directory":
        # A directory where a file belongs is somebody's data: rmdir fails unless it is empty.
        yield Command(f"rmdir {shlex.quote(path)}")


def _attributes(path: str, now: FileState, mode: str, owner: str, group: str) -> Iterator[Command]:
    quoted = shlex.quote(path)
    if (now.owner, now.group) != (owner, group):
        yield Command(f"chown -h {shlex.quote(f'{owner}:{group}')} {quoted}")
    if now.mode != mode.lstrip("0"):
        yield Command(f"chmod {mode} {quoted}")


@operation
def block(path: str, text: str, *, owner: str = "onprem-mlops") -> Iterator[Command]:
    """Lines in a text file that others write too, between two marker lines; at its top, so that they come first.

    Args:
        path: a file that is there, or will be with mode 644.
        text: the lines; empty takes the block away, markers included.
        owner: names the block in its markers.
    """
    before = _text(path)
    begin, end = f"# begin {owner}\n", f"# end {owner}\n"
    head, found, rest = before.partition(begin)
    others = head + rest.partition(end)[2] if found else before
    after = f"{begin}{text.removesuffix(chr(10))}\n{end}{others}" if text else others
    if after == before:
        return
    temporary, target = shlex.quote(f"{path}.mlops-new"), shlex.quote(path)
    yield Command(
        f"{{ cp -p {target} {temporary} 2>/dev/null || install -m 644 /dev/null {temporary}; }} "
        f"&& base64 -d >{temporary} && sync {temporary} && mv -fT {temporary} {target} {or_removed(temporary)}",
        stdin=base64.encodebytes(after.encode()).decode() or "\n",
        diff=Diff(path, before, after),
    )


def _text(path: str) -> str:
    """A text file that others write too; empty if there is none. Raises MlopsError if it is there and no text."""
    text: str | None = host.get_fact(FileText, path=path)
    if text is None and host.get_fact(File, path=path).kind != "absent":
        raise MlopsError(
            f"{host.name}: {path} is no text in UTF-8, so its other lines could not be kept; it was left as it is",
            f"Convert it on the node (iconv -f latin1 -t utf-8 {path}), then run the same command again.",
        )
    return text or ""


@operation
def set_aside(*paths: str) -> Iterator[Command]:
    """Files that must not act while a role is there: renamed to `<path>.onprem-mlops-saved`, for `brought_back`.

    One that somebody made anew since is deleted: what is brought back is what was there first.
    """
    for path in paths:
        if host.get_fact(File, path=path).kind != "absent":
            before: str | None = host.get_fact(FileText, path=path)
            quoted = shlex.quote(path)
            away = f"if [ -e {quoted}{SAVED} ]; then rm -f {quoted}; else mv -T {quoted} {quoted}{SAVED}; fi"
            yield Command(away, diff=Diff(path, before, None))


@operation
def brought_back(*paths: str) -> Iterator[Command]:
    """What `set_aside` put aside is in its place again."""
    for path in paths:
        if host.get_fact(File, path=f"{path}{SAVED}").kind != "absent":
            quoted = shlex.quote(path)
            yield Command(f"mv -fT {quoted}{SAVED} {quoted}")


@operation
def directory(path: str, *, mode: str = "755", owner: str = "root", group: str = "root") -> Iterator[Command]:
    """A directory with this owner and mode; its parents are made with mode 755."""
    now: FileState = host.get_fact(File, path=path)
    if now.kind != "directory":
        who, quoted = f"-o {shlex.quote(owner)} -g {shlex.quote(group)}", shlex.quote(path)
        yield Command(f"install -d -m {mode} {who} {quoted}")
        return
    yield from _attributes(path, now, mode, owner, group)


@operation
def link(path: str, target: str) -> Iterator[Command]:
    """A symbolic link to `target`."""
    now: FileState = host.get_fact(File, path=path)
    if now.kind != "link" or now.target != target:
        yield Command(
            f"ln -sfnT {shlex.quote(target)} {shlex.quote(path)}", diff=Diff(path, now.target or None, target)
        )


@operation
def absent(*paths: str, recursive: bool = False) -> Iterator[Command]:
    """Nothing at these paths. A directory that holds something needs `recursive`."""
    for path in paths:
        now: FileState = host.get_fact(File, path=path)
        if now.kind == "absent":
            continue
        tool = "rm -rf" if recursive else ("rmdir" if now.kind == "directory" else "rm -f")
        yield Command(f"{tool} -- {shlex.quote(path)}")


@operation
def no_empty_folders(*folders: str) -> Iterator[Command]:
    """These folders are gone, in this order, unless somebody else's files are in them."""
    for folder in folders:
        quoted = shlex.quote(folder)
        if host.get_fact(Probe, command=f'[ -d {quoted} ] && [ -z "$(ls -A {quoted})" ]').ok:
            yield Command(f"rmdir {quoted}")


@operation
def download(path: str, source: PublishedFile, *, authority: str, mode: str = "755") -> Iterator[Command]:
    """A file of the artifact store, fetched by the node from the mirror and checked before it takes its name.

    Args:
        path: where it goes.
        source: what the store publishes (`ctx.file(...)`).
        authority: path on the node of the site authority's certificate, which the mirror must be signed by.
        mode: its mode; it belongs to root.
    """
    now: FileState = host.get_fact(File, path=path)
    if now.kind == "file" and now.sha256 == source.sha256:
        yield from _attributes(path, now, mode, "root", "root")
        return
    target, temporary = shlex.quote(path), shlex.quote(f"{path}.mlops-new")
    yield Command(
        f"{_with_parents(path)} && {_fetched(temporary, source, authority)} "
        f"&& chmod {mode} {temporary} && sync {temporary} && mv -fT {temporary} {target} "
        f"{or_removed(temporary)}",
        diff=checksums(path, now, source),
    )


MARKER = ".onprem-mlops"
"""File in an unpacked folder: the checksum of the archive that it came from."""

_LISTING = f"find . -mindepth 1 ! -path './{MARKER}*' -printf '%y %s %T@ %m %u %P %l\\n' | LC_ALL=C sort"
"""Shell: what an unpacked folder holds, by kind, size, time, mode and owner; reading all of it would take seconds."""


@operation
def unpacked(path: str, source: PublishedFile, *, authority: str) -> Iterator[Command]:
    """A folder that holds what a tar of the artifact store holds and nothing else, fetched and checked like `download`.

    It belongs to root and everybody may read it. The old folder gives way once the new one is whole. One in which
    something was changed, added or removed since is laid down anew.

    Args:
        path: the folder.
        source: the tar that the store publishes (`ctx.file(...)`).
        authority: path on the node of the site authority's certificate, which the mirror must be signed by.
    """
    whole = (
        f'cd {shlex.quote(path)} && [ "$(cat {MARKER})" = {source.sha256} ] && {_LISTING} | cmp -s - {MARKER}.listing'
    )
    if host.get_fact(Probe, command=whole).ok:
        return
    now: str | None = host.get_fact(FileText, path=f"{path}/{MARKER}")
    target, new, old = shlex.quote(path), shlex.quote(f"{path}.mlops-new"), shlex.quote(f"{path}.mlops-old")
    archive = shlex.quote(f"{path}.mlops-new.tar")
    yield Command(
        f"{_with_parents(path)} && rm -rf {new} {old} && mkdir {new} && {_fetched(archive, source, authority)} "
        f"&& tar -xf {archive} -C {new} --no-same-owner && rm -f {archive} "
        f"&& ( cd {new} && {_LISTING} >{MARKER}.listing && echo {source.sha256} >{MARKER} ) && sync -f {new} "
        f"&& {{ [ ! -e {target} ] || mv -T {target} {old}; }} && mv -T {new} {target} && rm -rf {old} "
        f"|| {{ rm -rf {new} {archive}; exit 1; }}",
        diff=Diff(path, now, f"{source.sha256}\n"),
        timeout=1000,
    )


def _fetched(temporary: str, source: PublishedFile, authority: str) -> str:
    """Shell: a file of the store at a (quoted) path, with the checksum that it must have."""
    return (
        f"rm -f {temporary} "
        f"&& curl --fail --silent --show-error --retry 3 --retry-connrefused --connect-timeout 10 --max-time 900 "
        f"--proto =https --cacert {shlex.quote(authority)} -o {temporary} {shlex.quote(source.url)} "
        f"&& {{ {is_checksum(source.sha256, temporary)} "
        f"|| {{ echo 'not the file that the catalogue pins: {source.sha256}' >&2; false; }}; }}"
    )


def is_checksum(wanted: str, path: str) -> str:
    """Shell: whether the file at a (quoted) path has this checksum."""
    return f'sum=$({SHA256} <{path}) && [ "${{sum%% *}}" = {wanted} ]'


def checksums(path: str, now: FileState, source: PublishedFile) -> Diff:
    """What changes when a file of the store replaces another: its checksum."""
    return Diff(path, f"sha256 {now.sha256}\n" if now.sha256 else None, f"sha256 {source.sha256}\n")
