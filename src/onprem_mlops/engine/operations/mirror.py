"""The controller's artifact store, carried to the node that serves it.

On the node lies `trees/<id>-<when>/`, the tree as it is served, where `id` is the digest of the list of all its files
and their checksums, and `current`, a link to it. A push sends only files whose checksum the node does not have, into
`incoming/`, where each is checked against its checksum before it takes its name (which is that checksum). Then a new
tree is made of hard links and `current` moves in one rename: a client sees the old tree or the new, never a mixture.
What is no longer referenced goes last. A push that dies anywhere goes on with the next file.
"""

from __future__ import annotations

import hashlib
import shlex
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyinfra.connectors.util import CommandOutput
from pyinfra.context import host

from onprem_mlops.artifacts.manifest import TreeFile
from onprem_mlops.engine.facts import SHA256, File, FileState, Probe
from onprem_mlops.engine.operation import Command, operation
from onprem_mlops.engine.operations.files import checksums, is_checksum, or_removed
from onprem_mlops.engine.operations.guard import endpoint_of, output
from onprem_mlops.errors import MlopsError
from onprem_mlops.events import Diff
from onprem_mlops.shell import Connection
from onprem_mlops.steps import PublishedFile

if TYPE_CHECKING:
    from pyinfra.api.host import Host
    from pyinfra.api.state import State

BATCH_BYTES = 160 << 20
"""How much is sent before it is checked and kept: what a push that dies loses at most."""

BLOCK_BYTES = 1 << 18
_STAT = "find . -type f -printf '%s %T@ %m %u %P\\n' | LC_ALL=C sort"


class Stream(Command):
    """A command whose standard input is a stream of bytes from the controller, over a connection of its own."""

    def __init__(self, text: str, source: Callable[[], Iterator[bytes]]) -> None:
        super().__init__(text)
        self._source = source

    def carry_out(self, state: State, host: Host, connector_arguments: Any) -> tuple[bool, CommandOutput]:
        """Success, and what the command said."""
        connection = Connection(endpoint_of(host))
        try:
            done = connection.stream(self.get_raw_value(), self._source())
        except MlopsError as error:
            return False, output(str(error), error=True)
        finally:
            connection.close()
        return done.status == 0, output(done.text + done.error_text, error=done.status != 0)


@dataclass(frozen=True, slots=True)
class _OnNode:
    """What the node has. `tree` is the served tree's id, `damaged` paths that are not as they were laid down."""

    tree: str = ""
    damaged: frozenset[str] = frozenset()
    received: frozenset[str] = frozenset()
    """Checksums of files that an earlier push sent and no tree has yet."""
    surplus: bool = False
    """Whether trees are there that nobody serves."""
    free: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    """Path → checksum in the served tree; only read when something is to be done."""

    @property
    def available(self) -> dict[str, str]:
        """Checksum → a path in the served tree where it lies undamaged."""
        return {digest: path for path, digest in self.files.items() if path not in self.damaged}


@operation
def pushed(root: str, files: Sequence[TreeFile]) -> Iterator[Command]:
    """A tree of the artifact store, whole and checked, at `root`/current on the node; nothing else stays there."""
    wanted = _listing(files)
    identity = hashlib.sha256(wanted.encode()).hexdigest()[:16]
    now = _look(root)
    if now.tree == identity and not now.damaged and not now.received and not now.surplus:
        return
    if now.tree != identity or now.damaged:
        if now.received:
            yield _recheck(root)
            now = _look(root)
        now = _with_files(root, now)
        yield from _send(root, files, now)
        yield _assemble(root, identity, files, now, wanted)
    yield _clean(root)


def _listing(files: Iterable[TreeFile]) -> str:
    return "".join(sorted(f"{one.sha256}  {one.path}\n" for one in files))


def _look(root: str) -> _OnNode:
    quoted = shlex.quote(root)
    found = host.get_fact(
        Probe,
        command=f'cd {quoted} || exit 1; t=$(readlink current); echo "tree ${{t#trees/}}"\n'
        f'[ -z "$t" ] || ( cd "$t" && {_STAT} ) | LC_ALL=C comm -3 - "$t.stat" | sed \'s/^\\t*/damaged /\'\n'
        "find incoming -type f ! -name '*.part' -printf 'received %f\\n'\n"
        "find trees -mindepth 1 -maxdepth 1 ! -name \"${t#trees/}*\" -printf 'surplus\\n'\n"
        "df --output=avail -B1 . | sed 1d | sed 's/^ */free /'",
    )
    return _parsed(found.text.splitlines())


def _parsed(lines: Iterable[str]) -> _OnNode:
    told: dict[str, list[str]] = {"tree": [], "damaged": [], "received": [], "surplus": [], "free": []}
    for line in lines:
        word, _, rest = line.partition(" ")
        told[word].append(rest)
    return _OnNode(
        tree="".join(told["tree"]).partition("-")[0],
        damaged=frozenset(line.split(" ", 4)[-1] for line in told["damaged"]),
        received=frozenset(told["received"]),
        surplus=bool(told["surplus"]),
        free=int("".join(told["free"]) or 0),
    )


def _with_files(root: str, now: _OnNode) -> _OnNode:
    if not now.tree:
        return now
    text: str = host.get_fact(Probe, command=f'cd {shlex.quote(root)} && cat "$(readlink current).list"').text
    files = {path: digest for digest, _, path in (line.partition("  ") for line in text.splitlines())}
    return _OnNode(now.tree, now.damaged, now.received, now.surplus, now.free, files)


def _missing(files: Iterable[TreeFile], now: _OnNode) -> list[TreeFile]:
    have = now.available.keys() | now.received
    unique = {one.sha256: one for one in files if one.sha256 not in have}
    return sorted(unique.values(), key=lambda one: one.size)


def _send(root: str, files: Sequence[TreeFile], now: _OnNode) -> Iterator[Command]:
    missing = _missing(files, now)
    needed = sum(one.size for one in missing)
    if now.free and needed > now.free:
        raise MlopsError(
            f"{root} has {now.free / 1e9:.1f} GB free, the artifacts need {needed / 1e9:.1f} GB more",
            f"Make room, or put another file system at {root}.",
        )
    batches = tuple(_batches(missing))
    for number, batch in enumerate(batches, 1):
        size = sum(one.size for one in batch)
        title = f"# {number} of {len(batches)}: {len(batch)} files, {size / 1e6:.0f} MB, as tar on standard input"
        yield Stream(f"{title}\n{_receive(root)}", lambda batch=batch: tar_blocks(batch))  # type: ignore[misc]


def _batches(files: Iterable[TreeFile]) -> Iterator[list[TreeFile]]:
    batch: list[TreeFile] = []
    size = 0
    for one in files:
        if batch and size + one.size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += one.size
    if batch:
        yield batch


def tar_blocks(files: Iterable[TreeFile]) -> Iterator[bytes]:
    """A tar of files, each named `<sha256>.part`, in blocks; never more than one block in memory."""
    for one in files:
        header = tarfile.TarInfo(f"{one.sha256}.part")
        header.size, header.mode = one.size, 0o644
        yield header.tobuf(tarfile.USTAR_FORMAT)
        yield from _blocks_of(one.source, one.size)
    yield b"\0" * 1024


def _blocks_of(path: Path, size: int) -> Iterator[bytes]:
    """Exactly `size` bytes; a file that changes meanwhile is found out by its checksum on the node."""
    left = size
    with path.open("rb", buffering=0) as file:
        while left and (block := file.read(min(BLOCK_BYTES, left))):
            left -= len(block)
            yield block
    yield b"\0" * (left + -size % 512)


_CHECK = (
    'for f; do s=$(sha256sum <"$f"); '
    'if [ "${s%% *}" = "${f%.part}" ]; then [ "$f" = "${f%.part}" ] || mv -f "$f" "${f%.part}"; '
    'else rm -f "$f"; echo "what arrived is not the file that the catalogue pins: ${f%.part}" >&2; exit 1; fi; done'
)


def _checked(which: str, check: str = _CHECK) -> str:
    """Shell: check the received files that `find` selects with `which`; large ones with what is fast for those."""
    each = f"find . -type f {which} %s -printf '%%P\\0' | xargs -0 -r -P 2 -n %d sh -c %s _"
    fast = check.replace("sha256sum", SHA256)
    return f"{each}\n{each}" % ("-size +1M", 1, shlex.quote(fast), "! -size +1M", 16, shlex.quote(check))


def _receive(root: str) -> str:
    """Shell: take a tar of `<sha256>.part` files, keep those whose content is what their name says."""
    incoming = shlex.quote(f"{root}/incoming")
    return (
        f"set -e; umask 022; mkdir -p {incoming}; cd {incoming}; exec 8>../lock; flock 8; rm -f -- *.part\n"
        "tar -x -m --no-same-owner -f -\n" + _checked("-name '*.part'")
    )


def _recheck(root: str) -> Command:
    # Checked when they arrived, but a power cut since then may have kept the name and lost the content.
    check = _checked("! -name '*.part'", _CHECK.replace("exit 1; ", ""))
    return Command(f"cd {shlex.quote(root + '/incoming')} || exit 1\n{check}", timeout=1800)


def _assemble(root: str, identity: str, files: Sequence[TreeFile], now: _OnNode, wanted: str) -> Command:
    old = "".join(sorted(f"{digest}  {path}\n" for path, digest in now.files.items()))
    return Command(
        f'cd {shlex.quote(root)} && t=trees/{identity}-$(date +%s%N) && sh -s -- "$t"',
        stdin=_assembly(files, now.available, wanted),
        diff=Diff(f"{root}/current (sha256 and path of each file)", old, wanted),
        timeout=1800,
    )


def _assembly(files: Sequence[TreeFile], available: Mapping[str, str], wanted: str) -> str:
    """The script that makes the new tree `$1` of hard links and has `current` point to it."""
    folders = sorted({str(one.path.parent) for one in files})
    lines = ['set -e; umask 022; rm -rf "$1"; mkdir -p trees "$1"; old=$PWD/current/; in=$PWD/incoming']
    lines.append('( cd "$1"; mkdir -p ' + " ".join(shlex.quote(folder) for folder in folders) + ")")
    lines += (_link(one, available) for one in files)
    lines.append(f'( cd "$1"; {_STAT} ) >"$1.stat"; cat >"$1.list" <<\'---\'\n{wanted}---')
    # No sync, which would wait for a gigabyte: what a power cut takes is shorter or gone, and the next deploy sees it.
    lines.append('ln -sfnT "$1" current.new; mv -fT current.new current')
    return "\n".join(lines) + "\n"


def _link(file: TreeFile, available: Mapping[str, str]) -> str:
    target = shlex.quote(str(file.path))
    if source := available.get(file.sha256):
        return f'ln "$old"{shlex.quote(source)} "$1"/{target}'
    return f'ln "$in"/{file.sha256} "$1"/{target}'


def _clean(root: str) -> Command:
    return Command(
        f'cd {shlex.quote(root)} && t=$(readlink current) && [ -d "$t" ] && rm -rf incoming && '
        'find trees -mindepth 1 -maxdepth 1 ! -name "${t#trees/}*" -exec rm -rf {} +'
    )


@operation
def installed(path: str, source: PublishedFile, *, root: str, mode: str = "755") -> Iterator[Command]:
    """A file of the pushed tree, copied on the node that has it: what serves the mirror cannot be fetched from it."""
    now: FileState = host.get_fact(File, path=path)
    if now.kind == "file" and now.sha256 == source.sha256 and now.mode == mode:
        return
    temporary, target = shlex.quote(f"{path}.mlops-new"), shlex.quote(path)
    yield Command(
        f"cp --no-preserve=all {shlex.quote(f'{root}/current/{source.path}')} {temporary} "
        f"&& {is_checksum(source.sha256, temporary)} "
        f"&& chmod {mode} {temporary} && sync {temporary} && mv -fT {temporary} {target} {or_removed(temporary)}",
        diff=checksums(path, now, source),
    )
