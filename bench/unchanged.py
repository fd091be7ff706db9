"""Nothing to change: the lab's own deploy, and the same 60 operations a node by us, plain pyinfra and ansible-core.

Needs the lab up (`./mlops lab up`). ansible-core is installed from bench/ansible.lock into the cache folder. Each
contender lays the operations down once before it is timed; the runs that are timed change nothing and prove it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

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


@dataclass(frozen=True)
class Contender:
    """A command that lays the same operations down as the others."""

    command: list[str]
    unchanged: str
    """What a run says that changed nothing."""
    environment: dict[str, str] | None = None

    def run(self) -> Timed:
        """Run it, timed."""
        return timed(self.command, environment=self.environment)

    def run_unchanged(self) -> Timed:
        """Run it, timed, and end the measurement if it changed something."""
        run = self.run()
        if not re.search(self.unchanged, run.output):
            sys.stdout.write(run.output[-3000:])
            raise SystemExit(f"a timed run of {self.command[0]} changed something")
        return run


def in_turns(*contenders: Contender) -> list[tuple[Timed, ...]]:
    """Lay down once with each, then time all of them in every round: what slows the machine meets them all."""
    for one in contenders:
        one.run()
    return [tuple(one.run_unchanged() for one in contenders) for _ in range(RUNS)]


def main() -> None:
    site = load_site(INVENTORY)
    deploy = Contender(["./mlops", "deploy", "infrastructure", "-i", str(INVENTORY)], r"\b0 changed, 0 failed")
    own = sorted((run for (run,) in in_turns(deploy)), key=lambda run: run.seconds)[RUNS // 2]
    figure(
        f"deploy with nothing to change, {len(site.nodes)} nodes",
        f"{own.seconds:.1f} s",
        "at most 10 s",
        own.seconds <= 10,
    )
    figure("  its controller, peak memory", f"{own.peak_mib:.0f} MiB", "at most 300 MiB", own.peak_mib <= 300)

    inventory = str(INVENTORY / "inventory.py")
    pyinfra = [str(Path(sys.executable).with_name("pyinfra")), "-y", inventory, str(FOLDER / "deploy.py")]
    with tempfile.TemporaryDirectory(prefix="mlops-bench-") as folder:
        work = Path(folder)
        rounds = in_turns(
            Contender([sys.executable, str(FOLDER / "ours.py"), str(INVENTORY)], r"\b0 changed, 0 failed"),
            Contender(pyinfra, r"No changes"),
            Contender(ansible(site, work), r"changed=0 ", {"ANSIBLE_CONFIG": str(work / "ansible.cfg")}),
        )
    seconds = [median(run.seconds for run in runs) for runs in zip(*rounds, strict=True)]
    sys.stdout.write(
        "60 operations a node, nothing to change: ours {:.1f} s, plain pyinfra {:.1f} s, ansible-core {:.1f} s ".format(
            *seconds
        )
        + f"(medians of {RUNS}, taken in turns)\n"
    )
    for name, at, times in (("ansible-core", 2, 30), ("plain pyinfra", 1, 5)):
        faster = median(runs[at].seconds / runs[0].seconds for runs in rounds)
        figure(f"  against {name}", f"1/{faster:.1f}", f"at most 1/{times}", faster >= times)
    repeat_with("./mlops bench unchanged")


if __name__ == "__main__":
    main()
