"""What decides whether a node can be reached: its packet filter and its SSH server. Both change on trial only."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Iterator

from pyinfra.context import host

from onprem_mlops.engine.facts import File, FileState, FileText, Probe, Unit, UnitState
from onprem_mlops.engine.operation import Command, operation
from onprem_mlops.engine.operations.files import or_removed
from onprem_mlops.engine.operations.guard import FOLDER, on_trial, pending
from onprem_mlops.events import Diff

CONTROLLER = (
    "p=$$; while [ ${p:-0} -gt 1 ]; do tr '\\0' '\\n' </proc/$p/environ | sed -n 's/^SSH_CONNECTION=//p'; "
    "p=$(sed -n 's/^PPid:[[:space:]]*//p' /proc/$p/status); done"
)
"""Reading command: the SSH_CONNECTION of the session that it runs in. sudo hides the variable from the shell itself,
so it is looked for in the processes that the shell descends from."""


def controller_address() -> str | None:
    """The address that the controller comes from, as the node sees it (after any NAT); None without an SSH session."""
    found = host.get_fact(Probe, command=CONTROLLER)
    words: list[str] = found.text.split()
    return words[0].removeprefix("::ffff:") if words else None


def loaded_mark(table: str) -> str:
    """Path of the checksum of a table as it was when it was loaded; gone after a boot, as the table is."""
    return f"{FOLDER}/{table}.loaded"


def mark_loaded(table: str) -> str:
    """Shell: note the checksum of a table as it is loaded now."""
    listed = f"nft -s list table inet {shlex.quote(table)} | sha256sum"
    return f"mkdir -p {FOLDER} && {listed} >{shlex.quote(loaded_mark(table))}"


def _running(table: str) -> str:
    """Reading command: the digest that a loaded table names as its source, if nobody touched it since."""
    quoted = shlex.quote(table)
    return (
        f'[ "$(nft -s list table inet {quoted} | sha256sum)" = "$(cat {shlex.quote(loaded_mark(table))})" ] && '
        f"nft list table inet {quoted} | sed -n 's/.*comment \"source \\([0-9a-f]*\\)\".*/\\1/p'"
    )


def ruleset_text(table: str, body: str) -> str:
    """A file for `nft -f` that replaces one table in a single transaction and touches no other.

    The table's comment holds the digest of `body`, so that what is loaded can be compared with what is wanted.
    """
    digest = hashlib.sha256(body.encode()).hexdigest()
    inner = "".join(f"\t{line}\n" if line else "\n" for line in body.splitlines())
    return (
        f"# Written by onprem-mlops; changes by hand are undone by the next deploy.\n"
        f"table inet {table}\n"
        f"delete table inet {table}\n"
        f'table inet {table} {{\n\tcomment "source {digest}"\n\n{inner}}}\n'
    )


@operation
def ruleset(path: str, table: str, body: str) -> Iterator[Command]:
    """An nftables table (family inet) that is loaded and in its file, changed on trial.

    Args:
        path: the file that is loaded at boot.
        table: the table's name; other tables, such as the network plugin's, are not touched.
        body: what stands inside the table.
    """
    text = ruleset_text(table, body)
    raw = text.encode()
    digest = hashlib.sha256(body.encode()).hexdigest()
    now: FileState = host.get_fact(File, path=path)
    right_file = now == FileState("file", "600", "root", "root", len(raw), hashlib.sha256(raw).hexdigest())
    running: str = host.get_fact(Probe, command=_running(table)).text
    on_trial_now: bool = host.get_fact(Probe, command=pending(table)).ok
    if right_file and running == digest and not on_trial_now:
        return
    new, saved = shlex.quote(f"{path}.mlops-new"), f"{FOLDER}/{table}.previous"
    mark = mark_loaded(table)
    yield from on_trial(
        table,
        "this packet filter",
        prepare=(
            f"mkdir -p {shlex.quote(path.rsplit('/', 1)[0])} && base64 -d >{new} && nft -c -f {new} "
            f"&& printf 'table inet {table}\\ndelete table inet {table}\\n' >{saved} "
            f"&& {{ ! nft list table inet {table} >/dev/null 2>&1 || nft list table inet {table} >>{saved}; }} "
            f"{or_removed(new)}"
        ),
        apply=f"nft -f {new}",
        undo=f"rm -f {new}; nft -f {saved}; {mark}",
        holds=f"nft list table inet {table} | grep -q 'source {digest}'",
        keep=f"{mark} && sync {new} && mv -fT {new} {shlex.quote(path)}",
        stdin=base64.encodebytes(raw).decode(),
        diff=_diff(path, now, text, right_file),
    )


def _diff(path: str, now: FileState, text: str, right_file: bool) -> Diff:
    if right_file:
        return Diff(f"{path} (loaded rules)", None, text)
    return Diff(path, host.get_fact(FileText, path=path) if now.kind == "file" else None, text)


@operation
def no_ruleset(path: str, table: str) -> Iterator[Command]:
    """Neither the file nor the table."""
    present: bool = host.get_fact(Probe, command=f"nft list table inet {shlex.quote(table)}").ok
    if present:
        yield Command(f"nft delete table inet {shlex.quote(table)}; rm -f {shlex.quote(loaded_mark(table))}")
    if host.get_fact(File, path=path).kind != "absent":
        yield Command(f"rm -f {shlex.quote(path)}")


NFTABLES = "nftables.service"

WAS_ENABLED = "/var/lib/onprem-mlops/nftables-was-enabled"
"""There if the node loaded rules of its own at boot before ours."""


@operation
def own_filter_noted(drop_in: str) -> Iterator[Command]:
    """Note whether the node loads rules of its own at boot, before `drop_in` makes its service load ours instead."""
    if host.get_fact(File, path=drop_in).kind == "absent" and host.get_fact(Unit, unit=NFTABLES).enabled == "enabled":
        yield Command(f"mkdir -p {WAS_ENABLED.rpartition('/')[0]} && touch {WAS_ENABLED}")


@operation
def own_filter_back() -> Iterator[Command]:
    """The node's own rules are loaded, now and at boot, if they were before ours. They may let nobody in: on trial."""
    if host.get_fact(File, path=WAS_ENABLED).kind == "absent":
        return
    yield from on_trial(
        "nftables",
        "the node's own packet filter",
        prepare="systemctl daemon-reload",
        apply=f"systemctl enable --quiet {NFTABLES} && systemctl restart {NFTABLES}",
        undo=f"systemctl disable --now --quiet {NFTABLES}",
        holds=f"systemctl -q is-active {NFTABLES}",
        keep=f"rm -f {WAS_ENABLED}",
    )


SSHD = "{ systemctl reset-failed ssh.service; systemctl restart ssh.service; }"
# Not a reload: a restart leaves sessions alone too, and its time shows which configuration the server runs with.
# The reset empties systemd's count of starts: at the sixth within ten seconds (runs that die one after the other, each
# undone by the next) it would leave the server stopped, and the node without a door.

_PREVIOUS = f"{FOLDER}/sshd.previous"


@operation
def sshd(path: str, text: str) -> Iterator[Command]:
    """A configuration file of the SSH server, checked with `sshd -t` and changed on trial."""
    raw = text.encode()
    now: FileState = host.get_fact(File, path=path)
    service: UnitState = host.get_fact(Unit, unit="ssh.service")
    right_file = now == FileState("file", "600", "root", "root", len(raw), hashlib.sha256(raw).hexdigest())
    if right_file and not _older_than(service, path) and not host.get_fact(Probe, command=pending("sshd")).ok:
        return
    new, target = shlex.quote(f"{path}.mlops-new"), shlex.quote(path)
    yield from on_trial(
        "sshd",
        "this configuration of the SSH server",
        prepare=(
            f"mkdir -p {shlex.quote(path.rsplit('/', 1)[0])} /run/sshd && base64 -d >{new} && sync {new} "
            f"&& {_saved(target)} {or_removed(new)}"
        ),
        apply=f"mv -fT {new} {target} && sshd -t && {SSHD}",
        undo=_as_saved(target),
        holds=f"[ \"$(sha256sum <{target})\" = '{hashlib.sha256(raw).hexdigest()}  -' ] && systemctl -q is-active ssh",
        stdin=base64.encodebytes(raw).decode(),
        diff=_diff(path, now, text, right_file),
    )


def _saved(target: str) -> str:
    """Shell: keep what an SSH server's (quoted) configuration file is now, or that there is none."""
    return f"rm -f {_PREVIOUS} && {{ [ ! -e {target} ] || cp -p {target} {_PREVIOUS}; }}"


def _as_saved(target: str) -> str:
    """Shell: the file as it was saved. Beside it and moved: a full disk leaves it whole, if not the old one."""
    back = f"cp -p {_PREVIOUS} {target}.mlops-old && mv -fT {target}.mlops-old {target}"
    return f"if [ -e {_PREVIOUS} ]; then {back}; else rm -f {target}; fi; {SSHD}"


def _older_than(service: UnitState, path: str) -> bool:
    from onprem_mlops.engine.facts import NewestChange

    changed: float = host.get_fact(NewestChange, paths=(path,))
    return service.active == "active" and changed > service.started


@operation
def no_sshd(path: str) -> Iterator[Command]:
    """The SSH server without that configuration file, on trial too: what is left may let nobody in."""
    if host.get_fact(File, path=path).kind == "absent" and not host.get_fact(Probe, command=pending("sshd")).ok:
        return
    target = shlex.quote(path)
    yield from on_trial(
        "sshd",
        "the SSH server without our configuration",
        prepare=f"mkdir -p /run/sshd && {_saved(target)}",
        apply=f"rm -f {target} && sshd -t && {SSHD}",
        undo=_as_saved(target),
        holds=f"[ ! -e {target} ] && systemctl -q is-active ssh",
    )
