"""What every node is: its names, clock, kernel settings, journal and packages."""

from __future__ import annotations

import re
import time

from onprem_mlops.site import MIRROR_PORT
from onprem_mlops.verify.suite import DoesNotApply, NodeHost, Nodes, Site, until
from roles.node.settings import Settings

LARGEST_OFFSET_SECONDS = 0.5
"""How far two clocks of a site may be apart: far below what etcd's leases and certificates' dates can bear."""

CLOCK_WAIT_SECONDS = 20
"""chrony needs four measurements, about eight seconds, after a start."""


def test_host_name(node: NodeHost) -> None:
    """The host name is the name in the site file."""
    found = node.check_output("hostname")
    assert found == node.name, f"{node.name}: the host name is {found!r}"
    static = node.file("/etc/hostname").content_string.strip()
    assert static == node.name, f"{node.name}: /etc/hostname says {static!r}, so a reboot changes the name"


def test_names_resolve(node: NodeHost, site: Site) -> None:
    """Every name of the site resolves to the address in the site file."""
    wanted = {name: ",".join(sorted(map(str, addresses))) for name, addresses in site.names.items()}
    wanted |= {one.name: str(one.address) for one in site.nodes}
    ask = "getent ahostsv4 $name | awk '{print $1}' | LC_ALL=C sort -u | paste -sd, | grep . || echo -"
    found = node.lines(f"for name in {' '.join(wanted)}; do {ask}; done")
    wrong = [
        f"{name} is {got}, not {wanted[name]}" for name, got in zip(wanted, found, strict=True) if got != wanted[name]
    ]
    assert not wrong, f"{node.name}: {'; '.join(wrong)}"


def test_release(node: NodeHost) -> None:
    """The node runs a Debian release that is supported."""
    found = node.system_info.distribution, node.system_info.release.partition(".")[0]
    assert found in {("debian", release) for release in Settings.supported}, f"{node.name} runs {' '.join(found)}"


def test_time_service(node: NodeHost) -> None:
    """The time service runs, also after a reboot, and is synchronised."""
    chrony = node.service("chrony")
    assert chrony.is_running, f"{node.name}: chrony does not run"
    assert chrony.is_enabled, f"{node.name}: chrony would not start at boot"

    def tracking() -> str:
        return str(node.run("chronyc -n tracking").stdout)

    until(lambda: "Leap status     : Normal" in tracking(), CLOCK_WAIT_SECONDS, every=1)
    said = tracking()
    leap = re.search(r"Leap status\s*: (.*)", said)
    assert leap is not None and leap[1] == "Normal", (
        f"{node.name}: the clock is {leap[1].lower() if leap else 'not tracked by chrony'}; sources: "
        f"{node.run('chronyc -n sources').stdout.strip()[-300:]}"
    )


def test_clocks_agree(nodes: Nodes) -> None:
    """The clocks of all nodes agree within half a second."""
    offsets = {name: _offset(nodes[name]) for name in nodes}
    spread = max(offsets.values()) - min(offsets.values())
    shown = ", ".join(f"{name} {offset:+.3f} s" for name, offset in offsets.items())
    assert spread <= LARGEST_OFFSET_SECONDS, f"clocks are {spread:.3f} s apart (against this machine: {shown})"


def _offset(node: NodeHost) -> float:
    """The node's clock against ours, in seconds, by the quickest of several answers: a slow one blurs it."""
    tries = []
    for _ in range(5):
        before = time.time()
        said = float(node.check_output("date +%s.%N"))
        after = time.time()
        tries.append((after - before, said - (before + after) / 2))
    return min(tries)[1]


def test_swap(node: NodeHost, settings: Settings) -> None:
    """No swap is on, now and after a reboot."""
    if settings.swap:
        raise DoesNotApply("the site file allows swap")
    swaps = node.lines("tail -n +2 /proc/swaps")
    assert not swaps, f"{node.name}: swap is on: {'; '.join(swaps)}"
    planned = [
        line
        for line in node.file("/etc/fstab").content_string.splitlines()
        if re.match(r"[^#]\S*\s+\S+\s+swap\s", line)
    ]
    assert not planned, f"{node.name}: /etc/fstab turns swap on at boot: {'; '.join(planned)}"
    units = node.lines("systemctl list-units --all --plain --no-legend --state=active -t swap | awk '{print $1}'")
    assert not units, f"{node.name}: swap units are active: {', '.join(units)}"


def test_kernel_parameters_now(node: NodeHost, settings: Settings) -> None:
    """The kernel runs with every parameter of the site file."""
    wanted = settings.kernel_parameters()
    found = node.run("sysctl -e " + " ".join(wanted)).stdout.splitlines()
    values = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in found)}
    wrong = [
        f"{key} is {values.get(key, 'absent')}, not {value}"
        for key, value in wanted.items()
        if values.get(key) != value
    ]
    assert not wrong, f"{node.name}: {'; '.join(wrong)}"


def test_kernel_parameters_at_boot(node: NodeHost, settings: Settings) -> None:
    """Every kernel parameter would be the same after a reboot."""
    merged: dict[str, str] = {}
    for line in node.lines("/usr/lib/systemd/systemd-sysctl --cat-config"):
        key, equals, value = line.partition("=")
        if equals and not line.lstrip().startswith(("#", ";")):
            merged[key.strip().removeprefix("-").replace("/", ".")] = value.strip()
    wrong = [
        f"{key} would be {merged.get(key, 'the default')}, not {value}"
        for key, value in settings.kernel_parameters().items()
        if merged.get(key) != value
    ]
    assert not wrong, f"{node.name}: {'; '.join(wrong)}"


def test_kernel_modules(node: NodeHost, settings: Settings) -> None:
    """The kernel can do what its modules are for, now and after a reboot."""
    missing = [name for name in settings.modules if node.run(_evidence(name)).rc != 0]
    assert not missing, f"{node.name}: the kernel lacks {', '.join(missing)}"
    planned = node.check_output(
        "cat /etc/modules-load.d/*.conf /usr/lib/modules-load.d/*.conf 2>/dev/null || true"
    ).split()
    forgotten = [name for name in settings.modules if name not in planned]
    assert not forgotten, f"{node.name}: modules not loaded at boot: {', '.join(forgotten)}"


EVIDENCE = {
    "overlay": "grep -qw overlay /proc/filesystems",
    "nf_conntrack": "test -e /proc/sys/net/netfilter/nf_conntrack_max",
    "br_netfilter": "test -e /proc/sys/net/bridge/bridge-nf-call-iptables",
    "vxlan": "ip link add mlops-probe type vxlan id 16777215 dstport 4790 && ip link delete mlops-probe",
}
"""What shows that the kernel has a module, built in or loaded. Names in lists of modules would show less."""


def _evidence(module: str) -> str:
    return EVIDENCE.get(module, f"test -d /sys/module/{module.replace('-', '_')}")


def test_journal_is_kept(node: NodeHost) -> None:
    """A message that is logged now is in the journal on disk."""
    word = f"verify-{time.time_ns()}"
    node.check_output("logger -t onprem-mlops-verify %s && journalctl --sync", word)
    found = node.run(
        "journalctl --directory=/var/log/journal --since=-2min -t onprem-mlops-verify -o cat | grep -c %s", word
    )
    assert found.stdout.strip() == "1", (
        f"{node.name}: a logged message is not in /var/log/journal; it would be lost at a reboot"
    )


def test_journal_limits(node: NodeHost, settings: Settings) -> None:
    """The journal cannot fill the disk."""
    merged: dict[str, str] = {}
    for line in node.lines("systemd-analyze cat-config systemd/journald.conf"):
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            merged[key] = value
    wanted = {"SystemMaxUse": f"{settings.journal_size >> 20}M", "MaxRetentionSec": f"{settings.journal_days}day"}
    wrong = [
        f"{key} is {merged.get(key, 'not set')}, not {value}"
        for key, value in wanted.items()
        if merged.get(key) != value
    ]
    assert not wrong, f"{node.name}: {'; '.join(wrong)}"
    started = int(node.check_output('date -d "$(systemctl show -P ActiveEnterTimestamp systemd-journald)" +%s'))
    written = int(
        node.check_output(
            "stat -c %Y $(ls -t /etc/systemd/journald.conf /etc/systemd/journald.conf.d/*.conf | head -1)"
        )
    )
    assert started >= written, f"{node.name}: journald was started before its configuration was written"


def test_disks_have_room(node: NodeHost, settings: Settings) -> None:
    """No file system is full, nor out of room for new files.

    `du -xh --max-depth=2 MOUNT | sort -h | tail` says what fills it. Services refuse to write until there is room, and
    then go on by themselves.
    """
    # Containers' own file systems are on the node's disks, or as small as their pods asked for.
    pods = "/(var/lib/kubelet|var/lib/containerd|run/containerd)/"
    table = "df --local -x devtmpfs -x squashfs -x iso9660 --output=target,size,avail,itotal,iavail"
    listed = node.lines(f"{table} | tail -n +2 | grep -vE %s", pods)
    assert listed, f"{node.name}: df lists no file system"
    short = []
    for line in listed:
        path, *numbers = line.rsplit(maxsplit=4)
        size, free, files, files_free = map(int, numbers)
        for total, left, what in ((size, free, "its space"), (files, files_free, "its entries for files")):
            if total and left * 100 < total * settings.disk_free_percent:
                short.append(f"{path} has {left * 100 // total} % of {what} left")
    assert not short, f"{node.name}: {'; '.join(short)}"


def test_held_packages(node: NodeHost, settings: Settings) -> None:
    """Packages that only a deploy may upgrade are held."""
    names = " ".join(settings.held_packages)
    said = node.run(f"dpkg-query -W -f '${{Package}} ${{db:Status-Want}} ${{db:Status-Status}}\\n' {names} 2>/dev/null")
    free = [
        line.split()[0]
        for line in said.stdout.splitlines()
        if line.endswith(" installed") and line.split()[1] != "hold"
    ]
    assert not free, f"{node.name}: installed and not held: {', '.join(free)}"


def test_updates_spare_held_packages(node: NodeHost, settings: Settings) -> None:
    """Automatic updates leave alone what only a deploy may upgrade."""
    patterns = _apt_list(node, "Unattended-Upgrade::Package-Blacklist")
    touched = [
        name
        for name in (*settings.held_packages, "kubelet", "kubeadm")
        if not any(re.match(one, name) for one in patterns)
    ]
    assert not touched, f"{node.name}: automatic updates may upgrade {', '.join(touched)}; they spare {patterns}"


def test_updates_come(node: NodeHost, settings: Settings) -> None:
    """Security updates are installed by themselves, every day."""
    if not settings.automatic_updates:
        raise DoesNotApply("the site file turns automatic updates off")
    assert node.package("unattended-upgrades").is_installed, f"{node.name}: unattended-upgrades is not installed"
    daily = _apt_list(node, "APT::Periodic::Unattended-Upgrade")
    assert daily == ["1"], f"{node.name}: APT::Periodic::Unattended-Upgrade is {daily}"
    for timer in ("apt-daily.timer", "apt-daily-upgrade.timer"):
        assert node.service(timer).is_running, f"{node.name}: {timer} does not run"
        assert node.service(timer).is_enabled, f"{node.name}: {timer} would not start at boot"


def _apt_list(node: NodeHost, key: str) -> list[str]:
    said = node.lines("apt-config dump --format '%%f %%v%%n' %s", key)
    return [line.split(" ", 1)[1] for line in said if " " in line and line.split(" ", 1)[1]]


def test_package_sources(node: NodeHost, site: Site) -> None:
    """Packages come from the site's own mirror and from nowhere else."""
    allowed = [f"{site.mirror_url}/"]
    if site.apt.mirror:
        allowed += [f"{site.apt.mirror.rstrip('/')}/", f"{site.apt.mirror.rstrip('/')}-security/"]
    mirror = site.settings("mirror")
    if node.address in map(str, site.names[site.mirror_name]):
        # The node that serves the mirror installs from its own disk: nothing served it when it was made.
        allowed.append(f"file:{getattr(mirror, 'root', '')}/")
    # What apt would ask now; its list of known indexes leaves out sources that were added since the last update.
    said = node.lines("apt-get update --print-uris")
    found = {match[1] for line in said if (match := re.match("'([^']+)'", line))}
    assert found, f"{node.name}: apt has no package source at all"
    foreign = [uri for uri in found if not uri.startswith(tuple(allowed))]
    assert not foreign, f"{node.name}: apt also asks {', '.join(sorted(foreign))}"


def test_packages_are_signed(node: NodeHost) -> None:
    """apt reads the mirror's package lists over TLS and finds their signature good."""
    said = node.run(
        "d=$(mktemp -d) && mkdir $d/partial && chown -R _apt $d; "
        "apt-get update -q --error-on=any -o Dir::State::Lists=$d -o Acquire::AllowInsecureRepositories=false "
        "-o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= 2>&1; s=$?; rm -rf $d; exit $s"
    )
    assert said.rc == 0, f"{node.name}: apt-get update says: {said.stdout.strip()[-500:]}"


def test_authority_is_trusted(node: NodeHost, site: Site) -> None:
    """Programs on the node trust what the site's authority signed, and refuse what it did not."""
    said = node.run("curl -sS -o /dev/null -w '%%{http_code}' --max-time 10 %s/", site.mirror_url)
    assert said.rc == 0, f"{node.name}: curl does not trust the mirror: {said.stderr.strip()}"
    # The control: the same request under a name that the certificate does not have must be refused.
    address = site.names[site.mirror_name][0]
    refused = node.run(
        "curl -sS -o /dev/null --max-time 10 --resolve wrong.%s:%s:%s https://wrong.%s:%s/",
        site.domain,
        str(MIRROR_PORT),
        str(address),
        site.domain,
        str(MIRROR_PORT),
    )
    assert refused.rc == 60, (
        f"{node.name}: curl accepts the mirror's certificate under a wrong name (status {refused.rc})"
    )


def test_no_failed_unit(node: NodeHost) -> None:
    """No unit of systemd has failed."""
    failed = node.lines("systemctl list-units --failed --plain --no-legend | awk '{print $1}'")
    assert not failed, f"{node.name}: failed units: {', '.join(failed)}"
