"""systemd units. A service restarts because its start is older than its configuration, not because we wrote it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from pyinfra.context import host

from onprem_mlops.engine.facts import NewestChange, Probe, Unit, UnitState
from onprem_mlops.engine.operation import Command, operation


@operation
def service(
    unit: str,
    *,
    configuration: tuple[str, ...] = (),
    reloads: tuple[str, ...] = (),
    enabled: bool = True,
    running: bool = True,
) -> Iterator[Command]:
    """A service that is enabled and runs with the configuration that is on disk.

    Args:
        unit: its name, with suffix, e.g. `containerd.service`.
        configuration: files that it reads when it starts. If one of them, or its unit file, is newer than the
            service's start, it is restarted. A run that died between a file and its restart thus heals in the next.
        reloads: files that it reads again when it is reloaded, which keeps its connections.
        enabled: whether it starts at boot.
        running: whether it runs now; False stops it.
    """
    now: UnitState = host.get_fact(Unit, unit=unit)
    name = shlex.quote(unit)
    if now.stale or now.load == "not-found":
        yield Command("systemctl daemon-reload")
    if enabled and now.enabled in ("disabled", "enabled-runtime", ""):
        yield Command(f"systemctl enable --quiet {name}")
    if not enabled and now.enabled == "enabled":
        yield Command(f"systemctl disable --quiet {name}")
    yield from _run_state(unit, now, configuration, reloads, running)


def _run_state(
    unit: str, now: UnitState, configuration: tuple[str, ...], reloads: tuple[str, ...], running: bool
) -> Iterator[Command]:
    name = shlex.quote(unit)
    # The status leaves out what a service said whose restart is due: its journal holds why it ended.
    said = f"journalctl --quiet --no-pager --output=cat --lines=12 --unit={name}"
    show = f"{{ systemctl status --no-pager --lines=0 {name}; {said}; }} >&2; exit 1"
    # Deploys that follow each other closely must not run into systemd's limit of starts; its count begins anew.
    anew = f"systemctl reset-failed {name} 2>/dev/null"
    if not running:
        if now.active in ("active", "activating", "reloading"):
            yield Command(f"systemctl stop {name}", timeout=300)
        return
    if now.active != "active":
        yield Command(f"{anew}; {_begun('start', name, show)}", timeout=300)
        return
    if now.stale or _newest(configuration) > now.started:
        yield Command(f"{anew}; {_begun('restart', name, show)}", timeout=300)
    elif _newest(reloads) > max(now.started, now.reloaded):
        yield Command(f"systemctl reload {name} || {{ {show}; }}", timeout=300)


def _begun(verb: str, name: str, show: str) -> str:
    """Shell: a unit started or restarted; `show` once it has failed, or has begun anew by itself for the third time.

    systemd's own start of a unit that is restarted when it fails never ends: each new try belongs to it. One or two may
    be right, for a service whose database is still on its way up. So may a start that had begun before this one, with a
    setting that is mended now, and that ours was told to wait for.
    """
    return (
        # Counted from now: what failed again and again with a wrong setting does not fail with the right one.
        f"tries=$(systemctl show -P NRestarts {name}); "
        f"few() {{ [ $(($(systemctl show -P NRestarts {name}) - tries)) -lt 3 ]; }}; "
        f"begun() {{ while kill -0 $1 2>/dev/null; do few || {{ kill $1; {show}; }}; sleep 0.1; done; wait $1; }}; "
        f"systemctl {verb} {name} & begun $! || "
        f'until {{ [ "$(systemctl is-active {name})" = activating ] && few; }} || {{ {show}; }}; '
        f"systemctl start {name} & begun $!; do :; done"
    )


def _newest(paths: tuple[str, ...]) -> float:
    """When the newest of some files changed; 0 if there are none."""
    return float(host.get_fact(NewestChange, paths=paths)) if paths else 0.0


@operation
def gone(unit: str) -> Iterator[Command]:
    """A unit that neither runs nor starts at boot. Its file is removed by whoever wrote it."""
    now: UnitState = host.get_fact(Unit, unit=unit)
    if now.load == "not-found":
        return
    if now.active in ("active", "activating", "reloading", "failed") or now.enabled == "enabled":
        yield Command(
            f"systemctl disable --now --quiet {shlex.quote(unit)}; systemctl reset-failed {shlex.quote(unit)} "
            "2>/dev/null; true",
            timeout=300,
        )


@operation
def reloaded() -> Iterator[Command]:
    """systemd knows no unit whose file is gone or has changed."""
    if host.get_fact(Probe, command="! systemctl show '*' -p NeedDaemonReload --value | grep -q yes").status == 1:
        yield Command("systemctl daemon-reload")
