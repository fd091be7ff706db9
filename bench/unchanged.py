"""Nothing to change: the lab's own deploy, and the same 60 operations a node by us, plain pyinfra and ansible-core.

Needs the lab up (`./mlops lab up`). ansible-core is installed from bench/ansible.lock into the cache folder. Each
contender lays the operations down once before it is timed; the runs that are timed change nothing and prove it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench._measure import REPOSITORY, Timed, figure, repeat_with, timed
from onprem_mlops.endpoint import endpoint
from onprem_mlops.paths import cache_dir
from onprem_mlops.site import Site, load_site

RUNS = 3
INVENTORY = Path(os.environ.get("MLOPS_INVENTORY", REPOSITORY / "inventories" / "lab"))
FOLDER = Path(__file__).with_name("sixty")


def ansible(site: Site, work: Path) -> list[str]:
    """Prepare ansible-core as its own documentation advises for speed; returns the command."""
    venv = cache_dir() / "bench" / "ansible"
    if not (venv / "bin" / "ansible-playbook").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        lock = str(REPOSITORY / "bench" / "ansible.lock")
        subprocess.run([str(venv / "bin" / "pip"), "install", "-q", "--require-hashes", "-r", lock], check=True)
    known = work / "known_hosts"
    known.write_text("".join(f"{node.address} {node.host_key}\n" for node in site.nodes))
    hosts = "".join(
        f"{node.name} ansible_host={node.address} ansible_user={site.ssh.user} "
        f"ansible_ssh_private_key_file={endpoint(site, node).key} ansible_python_interpreter=/usr/bin/python3\n"
        for node in site.nodes
    )
    (work / "hosts.ini").write_text(hosts)
    (work / "ansible.cfg").write_text(
        "[defaults]\nforks = 20\ngathering = smart\nfact_caching = jsonfile\n"
        f"fact_caching_connection = {work / 'facts'}\n"
        "[privilege_escalation]\nbecome = true\n"
        "[ssh_connection]\npipelining = true\n"
        f"ssh_args = -o ControlMaster=auto -o ControlPersist=30m -o UserKnownHostsFile={known}\n"
    )
    return [str(venv / "bin" / "ansible-playbook"), "-i", str(work / "hosts.ini"), str(FOLDER / "play.yml")]


def median(command: list[str], unchanged: str, **options: dict[str, str]) -> Timed:
    """Lay down once, then time runs that must say of themselves that they changed nothing."""
    environment = options.get("environment")
    timed(command, environment=environment)
    runs = [timed(command, environment=environment) for _ in range(RUNS)]
    for run in runs:
        if not re.search(unchanged, run.output):
            sys.stdout.write(run.output[-3000:])
            raise SystemExit(f"a timed run of {command[0]} changed something")
    return sorted(runs, key=lambda run: run.seconds)[RUNS // 2]


def main() -> None:
    site = load_site(INVENTORY)
    own = median(["./mlops", "deploy", "infrastructure", "-i", str(INVENTORY)], r"\b0 changed, 0 failed")
    figure(
        f"deploy with nothing to change, {len(site.nodes)} nodes",
        f"{own.seconds:.1f} s",
        "at most 10 s",
        own.seconds <= 10,
    )
    figure("  its controller, peak memory", f"{own.peak_mib:.0f} MiB", "at most 300 MiB", own.peak_mib <= 300)

    work = Path(tempfile.mkdtemp(prefix="mlops-bench-"))
    try:
        ours = median([sys.executable, str(FOLDER / "ours.py"), str(INVENTORY)], r"\b0 changed, 0 failed")
        inventory = str(INVENTORY / "inventory.py")
        pyinfra = [str(Path(sys.executable).with_name("pyinfra")), "-y", inventory, str(FOLDER / "deploy.py")]
        plain = median(pyinfra, r"No changes")
        cold = ansible(site, work)
        slow = median(cold, r"changed=0 ", environment={"ANSIBLE_CONFIG": str(work / "ansible.cfg")})
    finally:
        shutil.rmtree(work)
    sys.stdout.write(
        f"60 operations a node, nothing to change: ours {ours.seconds:.1f} s, plain pyinfra {plain.seconds:.1f} s, "
        f"ansible-core {slow.seconds:.1f} s (medians of {RUNS})\n"
    )
    against_ansible, against_pyinfra = ours.seconds / slow.seconds, ours.seconds / plain.seconds
    figure("  against ansible-core", f"1/{1 / against_ansible:.1f}", "at most 1/30", against_ansible <= 1 / 30)
    figure("  against plain pyinfra", f"1/{1 / against_pyinfra:.1f}", "at most 1/5", against_pyinfra <= 1 / 5)
    repeat_with("./mlops bench unchanged")


if __name__ == "__main__":
    main()
