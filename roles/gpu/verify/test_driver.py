"""What each GPU node shows: driver, kernel and libraries that belong together, today and after the next boot."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from onprem_mlops.artifacts.publish import StorePublisher
from onprem_mlops.roles import package_offers
from onprem_mlops.verify.suite import Cluster, DoesNotApply, NodeHost, Site
from roles.gpu import cards
from roles.gpu.pins import Pins, resolved
from roles.gpu.settings import Settings

LIBRARIES = "/usr/lib/x86_64-linux-gnu/nvidia/current"
ENVIRONMENTS = "/opt/onprem-gpu"
BOOT_DEFAULT = "/etc/default/grub.d/90-onprem-gpu.cfg"
SPECIFICATION = "/run/cdi/k8s.device-plugin.nvidia.com-gpu.yaml"

ASK = """
import json, pynvml
pynvml.nvmlInit()
cards = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
print(json.dumps([
    [pynvml.nvmlDeviceGetName(card), pynvml.nvmlDeviceGetMemoryInfo(card).total >> 20,
     pynvml.nvmlDeviceGetTemperature(card, 0), pynvml.nvmlDeviceGetPersistenceMode(card)] for card in cards
]))
"""


@pytest.fixture(scope="module")
def pins(site: Site, settings: Settings) -> Pins:
    """Driver and kernel of the site file, or the newest of the artifact store."""
    tree = StorePublisher(site).tree(settings.artifacts())
    return resolved(package_offers(tree, "bookworm-gpu"), settings.driver, settings.kernel)


def said_of(node: NodeHost, settings: Settings) -> str:
    """What a finding adds where cards are not real."""
    return " (SIMULATED cards)" if settings.simulated(node.site_node) else ""


def running(node: NodeHost, settings: Settings) -> list[str]:
    """Kernel and loaded driver. Simulated: what the node's last boot would have made of its packages."""
    if settings.simulated(node.site_node):
        command = "cat /run/onprem-gpu/kernel; sed -n 's/^driver\\t\\([^\\t]*\\).*/\\1/p' /run/onprem-gpu/simulated"
    else:
        command = "uname -r; cat /sys/module/nvidia/version"
    said: list[str] = node.run(command).stdout.split()
    return said


@pytest.mark.on("gpu")
def test_driver_is_of_one_version(
    node: NodeHost, settings: Settings, pins: Pins, record_property: Callable[[str, object], None]
) -> None:
    """Kernel module and libraries of the driver are both of the pinned version.

    If only the libraries differ, somebody upgraded them: programs fail with "driver/library version mismatch" until
    `./mlops deploy --role gpu` brings both together again.
    """
    loaded = [*running(node, settings), "", ""][1]
    installed = dict(
        line.split(" ", 1) for line in node.lines("dpkg-query -W -f '${Package} ${Version}\\n' '*nvidia*' 'libcuda1'")
    )
    wrong = {
        name: installed.get(name, "none")
        for name, version in pins.driver_packages.items()
        if installed.get(name) != version
    }
    libraries = node.run(f"readlink {LIBRARIES}/libnvidia-ml.so.1").stdout.strip().removeprefix("libnvidia-ml.so.")
    assert loaded == pins.driver, f"{node.name}: driver {loaded or 'none'} is loaded, not {pins.driver}"
    assert not wrong, f"{node.name}: packages of another version than {pins.driver}: {wrong}"
    assert libraries == pins.driver, f"{node.name}: libraries of driver {libraries or 'none'}, not {pins.driver}"
    record_property("found", f"{pins.driver}{said_of(node, settings)}")


@pytest.mark.on("gpu")
def test_kernel(node: NodeHost, settings: Settings, pins: Pins, record_property: Callable[[str, object], None]) -> None:
    """The node runs the kernel that the driver was built for, and its headers are there."""
    found = [*running(node, settings), ""][0]
    assert found == pins.kernel, f"{node.name}: kernel {found or 'unknown'} runs, not {pins.kernel}"
    assert node.file(f"/lib/modules/{pins.kernel}/build/Makefile").exists, (
        f"{node.name}: no headers of kernel {pins.kernel}; no module could be built for it"
    )
    record_property("found", f"{pins.kernel}{' (SIMULATED boot)' if settings.simulated(node.site_node) else ''}")


@pytest.mark.on("gpu")
def test_held(node: NodeHost, pins: Pins) -> None:
    """Kernel and driver are held together: no upgrade changes one without the other."""
    held = set(node.lines("apt-mark showhold"))
    installed = set(node.lines("dpkg-query -W -f '${Package}\\n'"))
    wanted = {*pins.driver_packages, *pins.kernel_packages, *({"linux-image-amd64", "linux-headers-amd64"} & installed)}
    assert wanted <= held, f"{node.name}: not held: {', '.join(sorted(wanted - held))}"


@pytest.mark.on("gpu")
def test_upgrade_would_not_break_it(node: NodeHost) -> None:
    """An upgrade of everything would change neither the kernel nor the driver."""
    simulated = node.run("apt-get -s -o Debug::NoLocking=true dist-upgrade")
    assert simulated.rc == 0, f"{node.name}: apt cannot say what an upgrade would do: {simulated.stderr[-300:]}"
    acts = [line.split()[1] for line in simulated.stdout.splitlines() if line.startswith(("Inst ", "Remv "))]
    wrong = [
        name for name in acts if name.startswith(("linux-image", "linux-headers", "nvidia", "libnvidia", "libcuda"))
    ]
    assert not wrong, f"{node.name}: an upgrade would change {', '.join(wrong)}"


@pytest.mark.on("gpu")
def test_next_boot(node: NodeHost, pins: Pins) -> None:
    """The kernel that boots next has the driver's module, whatever other kernels are there.

    A kernel that slipped in is not booted; `./mlops deploy --role gpu` makes the pinned one the default again.
    """
    chosen = node.run(f"sed -n 's/.*>gnulinux-\\(.*\\)-advanced-.*/\\1/p' {BOOT_DEFAULT}").stdout.strip()
    others = [Path(line).name.removeprefix("vmlinuz-") for line in node.lines("find /boot -name 'vmlinuz-*'")]
    assert chosen == pins.kernel, (
        f"{node.name}: kernel {chosen or 'none'} is chosen for the next boot, not {pins.kernel}; "
        f"installed: {', '.join(sorted(others))}"
    )
    assert pins.kernel in others, f"{node.name}: kernel {pins.kernel} is not in /boot"
    module = f"/lib/modules/{pins.kernel}/updates/dkms/nvidia-current.ko"
    found = node.run(f"modinfo -F version {module}").stdout.strip()
    assert found == pins.driver, f"{node.name}: the module for kernel {pins.kernel} is {found or 'missing'}"
    if node.exists("update-grub"):
        chosen = f"grep -q 'set default=\"[^\"]*>gnulinux-{pins.kernel}-advanced-' /boot/grub/grub.cfg"
        assert node.run(chosen).rc == 0, f"{node.name}: GRUB's menu does not boot kernel {pins.kernel}"


@pytest.mark.on("gpu")
def test_nouveau(node: NodeHost) -> None:
    """The free driver nouveau is not loaded and never will be."""
    assert not node.file("/sys/module/nouveau").exists, f"{node.name}: nouveau is loaded"
    assert "blacklist nouveau" in node.lines("modprobe --showconfig"), f"{node.name}: nouveau is not kept off"


@pytest.mark.on("gpu")
def test_cards_answer(node: NodeHost, settings: Settings, record_property: Callable[[str, object], None]) -> None:
    """All cards of the site file answer, with the names and the memory that they should have."""
    found = asked(node, settings)
    wanted = [gpu.model for gpu in node.site_node.facts.gpus for _ in range(gpu.count)]
    assert len(found) == len(wanted), f"{node.name}: {len(found)} cards answer, and site.yaml names {len(wanted)}"
    simulated = settings.simulated(node.site_node)
    for name, memory, temperature, _ in found:
        assert ("SIMULATED" in name) is simulated, (
            f"{node.name}: a card called {name}; site.yaml says simulated: {simulated}"
        )
        assert memory > 1024, f"{node.name}: {name} has {memory} MiB"
        assert temperature < 90, f"{node.name}: {name} has {temperature} °C"
    record_property("found", ", ".join(f"{card.name} {card.mebibytes} MiB" for card in found))


@pytest.mark.on("gpu")
def test_cards_are_those_of_the_bus(node: NodeHost, settings: Settings) -> None:
    """The PCI bus shows as many of NVIDIA's cards as the site file names."""
    if settings.simulated(node.site_node):
        raise DoesNotApply(f"the cards of {node.name} are SIMULATED: no bus has them")
    found = cards.cards(node.run(cards.LISTED).stdout)
    wanted = settings.cards(node.site_node)
    assert len(found) == wanted, f"{node.name}: {len(found)} cards on the bus, and site.yaml names {wanted}"


@pytest.mark.on("gpu")
def test_persistence(node: NodeHost, settings: Settings) -> None:
    """The driver stays loaded between jobs (persistence mode)."""
    if settings.simulated(node.site_node):
        raise DoesNotApply(f"the cards of {node.name} are SIMULATED: they have no persistence mode")
    service = node.service("nvidia-persistenced")
    assert service.is_running, f"{node.name}: nvidia-persistenced does not run"
    assert service.is_enabled, f"{node.name}: nvidia-persistenced would not start at boot"
    off = [card.name for card in asked(node, settings) if card.persistence != 1]
    assert not off, f"{node.name}: persistence mode is off: {', '.join(off)}"


@pytest.mark.on("gpu")
def test_nvidia_smi(node: NodeHost, settings: Settings, pins: Pins) -> None:
    """`nvidia-smi` names the driver and every card."""
    if settings.simulated(node.site_node):
        raise DoesNotApply(f"the cards of {node.name} are SIMULATED: nvidia-smi asks the kernel, which has none")
    lines = node.lines("nvidia-smi --query-gpu=driver_version,name --format=csv,noheader")
    assert len(lines) == settings.cards(node.site_node), f"{node.name}: nvidia-smi shows {lines}"
    wrong = [line for line in lines if not line.startswith(f"{pins.driver},")]
    assert not wrong, f"{node.name}: nvidia-smi shows {wrong}, not driver {pins.driver}"


@pytest.mark.on("gpu")
def test_specification_is_current(node: NodeHost) -> None:
    """What containers are told of the cards (CDI) is what the driver says today."""
    command = (
        node.run("grep -o 'cdi generate .*--output' /usr/local/sbin/onprem-gpu").stdout.strip().removesuffix("--output")
    )
    fresh = node.run(f"/usr/local/bin/nvidia-ctk --quiet {command}")
    assert fresh.rc == 0, f"{node.name}: nvidia-ctk cannot say what the cards are: {fresh.stderr[-300:]}"
    written = node.run(f"cat {SPECIFICATION}").stdout
    assert written == fresh.stdout, f"{node.name}: {SPECIFICATION} is old; `systemctl restart onprem-gpu` makes it anew"


@pytest.mark.on("gpu")
def test_services(node: NodeHost) -> None:
    """The driver is loaded at boot, its metrics are served, and somebody looks whether all cards answer."""
    for name in ("onprem-gpu.service", "onprem-gpu-exporter.service", "onprem-gpu-watch.timer"):
        service = node.service(name)
        assert service.is_running, f"{node.name}: {name} does not run"
        assert service.is_enabled, f"{node.name}: {name} would not start at boot"
    result = node.run("systemctl show -P Result onprem-gpu-watch.service").stdout.strip()
    assert result == "success", f"{node.name}: the look at the cards failed: journalctl -u onprem-gpu-watch"


@pytest.mark.on("gpu")
def test_metrics(node: NodeHost, settings: Settings) -> None:
    """Metrics of every card are served."""
    text = node.run(f"curl -fsS --max-time 10 http://{node.address}:{settings.exporter_port}/metrics").stdout
    found = {line for line in text.splitlines() if line.startswith("gpu_memory_total")}
    wanted = settings.cards(node.site_node)
    assert len(found) >= wanted, f"{node.name}: metrics of {len(found)} cards, and site.yaml names {wanted}"


@pytest.mark.on("gpu")
def test_condition(node: NodeHost, cluster: Cluster) -> None:
    """The cluster knows that all cards of the node answer."""
    found = {one["type"]: one for one in cluster.get(f"/api/v1/nodes/{node.name}")["status"]["conditions"]}
    one = found.get("GpusHealthy", {"status": "unknown", "message": "nobody has said so yet"})
    assert one["status"] == "True", f"{node.name}: GpusHealthy is {one['status']}: {one['message']}"


class Card(NamedTuple):
    """What the driver says of a card."""

    name: str
    mebibytes: int
    celsius: int
    persistence: int
    """1: on."""


def asked(node: NodeHost, settings: Settings) -> list[Card]:
    """The cards that answer."""
    library = f"{settings.folder}/simulated/usr/lib/x86_64-linux-gnu"
    where = f"LD_LIBRARY_PATH={library} " if settings.simulated(node.site_node) else ""
    done = node.run(f"{where}$(echo {ENVIRONMENTS}/*/bin/python) -I -B -c {shlex.quote(ASK)}")
    assert done.rc == 0, f"{node.name}: the driver does not answer: {done.stderr.strip().splitlines()[-1:]}"
    return [Card(*one) for one in json.loads(done.stdout)]
