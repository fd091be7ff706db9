"""The services beside the cluster: their memory, their speed against the same programs started by hand, and ours.

Needs the lab up (`./mlops lab up`) with all services on one node. Beside each service the same program is started by
hand (bench/by_hand): over TLS with logins, on a PostgreSQL of its own, objects encrypted, teams apart, else bare. A
client on the node works at both, taking turns from one small piece of work to the next; the median of the rounds'
ratios counts. What was started is stopped and removed at the end, and the repository, the bucket and the experiment of
the client, too.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from bench._measure import REPOSITORY, figure, repeat_with, timed
from onprem_mlops.endpoint import endpoint
from onprem_mlops.shell import Connection
from onprem_mlops.site import Node, Secrets, Site, load_site

INVENTORY = Path(os.environ.get("MLOPS_INVENTORY", REPOSITORY / "inventories" / "lab"))
BY_HAND = Path(__file__).with_name("by_hand")
ROUNDS = 7
FOLDER = "/var/lib/postgresql/bench-by-hand"
"""On the node, on the disk that the services' data is on."""
SERVICES = ("postgresql", "object_store", "gitea", "mlflow")
UNITS = "postgresql|onprem-minio|gitea|onprem-gitea|onprem-mlflow|onprem-gateway"
"""What the units of the services beside the cluster begin with."""

LIMIT_PSS_GB = 1.6
LIMIT_RATIO = 0.95
LIMIT_DEPLOY = 15
LIMIT_VERIFY = 120


def services_node(site: Site) -> Node:
    """The one node that all services run on."""
    off = [role for role in (*SERVICES, "gateway") if not site.is_on(role)]
    if off:
        raise SystemExit(f"these roles are off in site {site.name}: {', '.join(off)}")
    hosts = {site.settings(role).hosts(site)[0].name for role in SERVICES}  # type: ignore[attr-defined]
    if len(hosts) > 1:
        raise SystemExit(f"the services run on several nodes ({', '.join(sorted(hosts))}); this needs them on one")
    return site.node(hosts.pop())


def must(node: Connection, command: str, *, stdin: str | None = None, seconds: float = 600) -> str:
    """What a command prints on the node; a failure ends the measurement with what it said."""
    done = node.run(command, stdin=stdin, timeout=seconds)
    if done.status != 0:
        raise SystemExit(f"measurement ended: {command[:100]}\n{done.text[-2000:]}{done.error_text[-3000:]}")
    return done.text


def idle_memory(node: Connection) -> dict[str, float]:
    """Proportional set size of each unit, in MB."""
    listed = must(
        node,
        f"ps -eo pid=,unit= | awk '$2 ~ /^({UNITS})/' | while read -r pid unit; do "
        "echo \"$unit $(awk '/^Pss:/ {print $2}' /proc/$pid/smaps_rollup 2>/dev/null)\"; done",
    )
    found: dict[str, float] = {}
    for line in listed.splitlines():
        unit, _, kilobytes = line.partition(" ")
        found[unit] = found.get(unit, 0.0) + float(kilobytes or 0) * 1024 / 1e6
    return found


def ours(site: Site, node: Node, on: Connection) -> dict[str, dict[str, str]]:
    """Addresses and logins of the platform's own services."""
    secrets, name = Secrets.of(site), site.full_name(node)
    root = must(on, "sed -n 's/^MINIO_ROOT_USER=//p' /etc/onprem-minio/environment").strip()
    token = must(on, "cat /etc/gitea/token").split()[-1]
    administrator = must(on, "sed -n 's/^MLFLOW_AUTH_ADMIN_USERNAME=//p' /etc/onprem-mlflow/environment").strip()
    return {
        "minio": {
            "url": f"https://{name}:9000",
            "user": root,
            "secret": secrets.get("object_store", "root_password").reveal(),
        },
        "gitea": {"url": f"https://{name}:3000", "secret": token},
        "mlflow": {
            "url": f"https://{name}:5000",
            "user": administrator,
            "secret": secrets.get("mlflow", "admin_password").reveal(),
        },
    }


@contextmanager
def by_hand(site: Site, node: Node, on: Connection, python: str) -> Iterator[dict[str, dict[str, str]]]:
    """The same programs started by hand, with addresses and logins; gone at the end."""
    stop = f"sh -s {FOLDER}"
    must(on, stop, stdin=(BY_HAND / "stop.sh").read_text())
    workers = site.settings("mlflow").workers  # type: ignore[attr-defined]
    name = site.full_name(node)
    try:
        said = must(on, f"sh -s {FOLDER} {name} {python} {workers}", stdin=(BY_HAND / "start.sh").read_text())
        secret = json.loads(said.splitlines()[-1])
        yield {
            "minio": {"url": f"https://{name}:19000", "user": "bench", "secret": secret["minio"]},
            "gitea": {"url": f"https://{name}:13000", "secret": secret["gitea"]},
            "mlflow": {"url": f"https://{name}:15000", "user": "bench", "secret": secret["mlflow"]},
        }
    finally:
        must(on, stop, stdin=(BY_HAND / "stop.sh").read_text())


def rates(site: Site, node: Node, on: Connection) -> dict[str, list[tuple[float, float]]]:
    """Ours and by hand, in each round of each kind of work."""
    python = must(
        on, "systemctl show -p ExecStart --value onprem-mlflow.service | sed 's/.*path=\\([^ ;]*\\).*/\\1/'"
    ).strip()
    with by_hand(site, node, on, python) as other:
        given: dict[str, Any] = {"rounds": ROUNDS, "ours": ours(site, node, on), "by_hand": other}
        program = (BY_HAND / "rounds.py").read_text()
        must(on, f"cat >{FOLDER}/rounds.py", stdin=program)
        said = must(on, f"{python} -W ignore {FOLDER}/rounds.py", stdin=json.dumps(given), seconds=900)
    found: dict[str, list[tuple[float, float]]] = json.loads(said)
    return found


def report_rates(found: dict[str, list[tuple[float, float]]]) -> None:
    """Print the ratios."""
    for name, pairs in found.items():
        ratio = median(ours / hand for ours, hand in pairs)
        rate, other = (median(pair[at] for pair in pairs) for at in (0, 1))
        sys.stdout.write(f"{name}: {rate:.1f}, by hand {other:.1f} (medians of {len(pairs)}, taken in turns)\n")
        figure("  against by hand", f"{ratio:.2f} times", f"at least {LIMIT_RATIO}", ratio >= LIMIT_RATIO)


def commands() -> None:
    """A deploy that changes nothing, and a verification of the whole phase."""
    runs = []
    for _ in range(3):
        run = timed(["./mlops", "deploy", "infrastructure", "-i", str(INVENTORY)])
        if "\n0 changed, 0 failed" not in run.output:
            sys.stdout.write(run.output[-3000:])
            raise SystemExit("a timed deploy changed something")
        runs.append(run.seconds)
    seconds = median(runs)
    figure(
        "deploy of the whole phase with nothing to change",
        f"{seconds:.1f} s",
        f"at most {LIMIT_DEPLOY} s",
        seconds <= LIMIT_DEPLOY,
    )
    verified = timed(["./mlops", "verify", "infrastructure", "-i", str(INVENTORY)]).seconds
    figure("verify infrastructure", f"{verified:.0f} s", f"at most {LIMIT_VERIFY} s", verified <= LIMIT_VERIFY)


def main() -> None:
    site = load_site(INVENTORY)
    node = services_node(site)
    on = Connection(endpoint(site, node))
    on.connect()
    try:
        used = idle_memory(on)
        for unit, megabytes in sorted(used.items()):
            sys.stdout.write(f"  {unit:<40} {megabytes:6.0f} MB\n")
        total = sum(used.values()) / 1000
        figure(
            "memory of all services, idle (PSS)", f"{total:.2f} GB", f"at most {LIMIT_PSS_GB} GB", total <= LIMIT_PSS_GB
        )
        report_rates(rates(site, node, on))
    finally:
        on.close()
    commands()
    sys.stdout.write(f"load average {os.getloadavg()[0]:.1f}\n")
    repeat_with("./mlops bench services")


if __name__ == "__main__":
    main()
