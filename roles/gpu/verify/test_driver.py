"""What each GPU node shows: driver, kernel and libraries that belong together, today and after the next boot."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from onprem_mlops.artifacts.publish import StorePublisher
from onprem_mlops.roles import package_offers
from onprem_mlops.verify.suite import Cluster, DoesNotApply, NodeHost, NotChecked, Site
from roles.gpu import cards
from roles.gpu.pins import ARCHIVE, KINDS, PROPRIETARY, Modules, Offers, Pins, resolved
from roles.gpu.running import BOOT_DEFAULT, RUN, SPECIFICATION, Running, asking, told
from roles.gpu.settings import Settings

PYTHON = "$(echo /opt/onprem-gpu/*/bin/python) -I -B"
LOOK_SECONDS = 180
"""Age of the last look at the cards that is too old: there is one every half minute."""

ASK = """
import json, pynvml
pynvml.nvmlInit()
cards = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
print(json.dumps([
    [pynvml.nvmlDeviceGetName(card), pynvml.nvmlDeviceGetMemoryInfo(card).total >> 20,
     pynvml.nvmlDeviceGetTemperature(card, 0), pynvml.nvmlDeviceGetPersistenceMode(card)] for card in cards
]))
"""

CUDA = f"""
import ctypes, json
cuda = ctypes.CDLL("{cards.LIBRARIES}/libcuda.so.1")

def call(name, *arguments):
    status = getattr(cuda, name)(*arguments)
    if status == OUT_OF_MEMORY:
        raise MemoryError
    if status:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(status, ctypes.byref(text))
        raise SystemExit(name + ": " + (text.value or b"error %d" % status).decode())

def use(index):
    device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    call("cuDeviceGet", ctypes.byref(device), index)
    call("cuCtxCreate_v2", ctypes.byref(context), 0, device)
    call("cuMemAlloc_v2", ctypes.byref(memory), size)
    call("cuMemcpyHtoD_v2", memory, written, size)
    call("cuMemcpyDtoH_v2", read, memory, size)
    if read.raw != written:
        raise SystemExit("card %d gives back other bytes than were written" % index)
    call("cuMemFree_v2", memory)
    call("cuCtxDestroy_v2", context)

OUT_OF_MEMORY = 2
size = ctypes.c_size_t(1 << 20)
written = bytes(range(256)) * (size.value // 256)
count, full = ctypes.c_int(), []
call("cuInit", 0)
call("cuDeviceGetCount", ctypes.byref(count))
for index in range(count.value):
    read = ctypes.create_string_buffer(size.value)
    try:
        use(index)
    except MemoryError:
        full.append(index)
print(json.dumps([count.value, full]))
"""
"""Prints how many cards CUDA finds, and which of them have no memory left. On all others it writes and reads 1 MiB."""


@pytest.fixture(scope="module")
def offers(site: Site, settings: Settings) -> Offers:
    """What the artifact store has of drivers and kernels."""
    return package_offers(StorePublisher(site).tree(settings.artifacts()), ARCHIVE)


@pytest.fixture
def pins(node: NodeHost, settings: Settings, offers: Offers) -> Pins:
    """The node's driver and kernel: of the site file, or the newest of the artifact store."""
    nvswitch = not settings.simulated(node.site_node) and cards.has_nvswitch(bus(node))
    return resolved(offers, settings.driver, settings.kernel, fitting(node, settings), nvswitch=nvswitch)


def fitting(node: NodeHost, settings: Settings) -> Modules:
    """The kernel modules of the site file, or those that fit the node's cards."""
    if settings.modules != "auto":
        return KINDS[settings.modules]
    if settings.simulated(node.site_node):
        return PROPRIETARY
    return KINDS[cards.fitting_modules(cards.cards(bus(node)))]


def bus(node: NodeHost) -> str:
    """NVIDIA's devices on the node's PCI bus."""
    return str(node.run(cards.LISTED).stdout)


def said_of(node: NodeHost, settings: Settings) -> str:
    """What a finding adds where cards are not real."""
    return " (SIMULATED cards)" if settings.simulated(node.site_node) else ""


def running(node: NodeHost, settings: Settings) -> Running:
    """What the node runs with. Simulated: what its last boot would have made of its packages."""
    return told(node.run(asking(simulated=settings.simulated(node.site_node))).stdout)


def installed(node: NodeHost, names: Iterable[str]) -> dict[str, str]:
    """Packages that the node knows, with version and state, such as `535.309.01-0+deb12u1 installed`."""
    format_ = "${Package} ${Version} ${db:Status-Status}\\n"
    lines = node.run(f"dpkg-query -W -f '{format_}' {' '.join(names)}").stdout.splitlines()
    return dict(line.split(" ", 1) for line in lines)


@pytest.mark.on("gpu")
def test_driver_is_of_one_version(
    node: NodeHost, settings: Settings, pins: Pins, record_property: Callable[[str, object], None]
) -> None:
    """Kernel module and libraries of the driver are both of the pinned version.

    If only the libraries differ, somebody upgraded them: programs fail with "driver/library version mismatch" until
    `./mlops deploy --role gpu` brings both together again.
    """
    loaded = running(node, settings).driver
    found = installed(node, pins.driver_packages)
    wrong = {
        name: found.get(name, "none")
        for name, version in pins.driver_packages.items()
        if found.get(name) != f"{version} installed"
    }
    libraries = (
        node.run(f"readlink {cards.LIBRARIES}/libnvidia-ml.so.1").stdout.strip().removeprefix("libnvidia-ml.so.")
    )
    assert loaded == pins.driver, f"{node.name}: driver {loaded or 'none'} is loaded, not {pins.driver}"
    assert not wrong, f"{node.name}: packages that are not installed in a version of {pins.driver}: {wrong}"
    assert libraries == pins.driver, f"{node.name}: libraries of driver {libraries or 'none'}, not {pins.driver}"
    record_property("found", f"{pins.driver}{said_of(node, settings)}")


@pytest.mark.on("gpu")
def test_kind_of_modules(
    node: NodeHost, settings: Settings, pins: Pins, record_property: Callable[[str, object], None]
) -> None:
    """The driver's kernel modules, proprietary or open, are the kind that the site file or the node's cards ask for."""
    found = running(node, settings).modules
    assert found == pins.modules.kind, (
        f"{node.name}: {found or 'no'} kernel modules are loaded, not {pins.modules.kind}"
    )
    record_property("found", f"{found}{said_of(node, settings)}")


@pytest.mark.on("gpu")
def test_kernel(node: NodeHost, settings: Settings, pins: Pins, record_property: Callable[[str, object], None]) -> None:
    """The node runs the kernel that the driver was built for, and its headers are there."""
    found = running(node, settings).kernel
    assert found == pins.kernel, f"{node.name}: kernel {found or 'none'} runs, not {pins.kernel}"
    assert node.file(f"/lib/modules/{pins.kernel}/build/Makefile").exists, (
        f"{node.name}: no headers of kernel {pins.kernel}; no module could be built for it"
    )
    record_property("found", f"{pins.kernel}{' (SIMULATED boot)' if settings.simulated(node.site_node) else ''}")


@pytest.mark.on("gpu")
def test_held(node: NodeHost, pins: Pins) -> None:
    """Kernel and driver are held together: no upgrade changes one without the other."""
    held = set(node.lines("apt-mark showhold"))
    found = installed(node, ("linux-image-amd64", "linux-headers-amd64"))
    newest = (name for name, state in found.items() if state.endswith(" installed"))
    wanted = {*pins.driver_packages, *pins.kernel_packages, *newest}
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
    found = node.run(f"modinfo -F version {pins.modules.file(pins.kernel)}").stdout.strip()
    assert found == pins.driver, (
        f"{node.name}: the {pins.modules.kind} module for kernel {pins.kernel} is {found or 'missing'}"
    )
    if node.exists("update-grub"):
        wrong = not_booted(node.run("cat /boot/grub/grub.cfg").stdout, pins.kernel)
        assert not wrong, f"{node.name}: GRUB does not boot kernel {pins.kernel}: {wrong}"


def not_booted(menu: str, kernel: str) -> str:
    """Why GRUB's menu does not boot a kernel: its default is another one, or names what is not in the menu."""
    chosen = re.search(rf'set default="([^">]*)>(gnulinux-{re.escape(kernel)}-advanced-[^"]*)"', menu)
    if not chosen:
        return "the default of /boot/grub/grub.cfg is another entry"
    missing = [one for one in chosen.groups() if f"$menuentry_id_option '{one}'" not in menu]
    return f"/boot/grub/grub.cfg has no entry {' and no '.join(missing)}" if missing else ""


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
    names = [card.name for card in found]
    missing = unnamed(wanted, names)
    assert not missing, f"{node.name}: site.yaml names {', '.join(missing)}, and the cards are {', '.join(names)}"
    simulated = settings.simulated(node.site_node)
    for name, memory, temperature, _ in found:
        assert ("SIMULATED" in name) is simulated, (
            f"{node.name}: a card called {name}; site.yaml says simulated: {simulated}"
        )
        assert memory > 1024, f"{node.name}: {name} has {memory} MiB"
        assert temperature < 90, f"{node.name}: {name} has {temperature} °C"
    pairs = zip(least_memories(node, settings), sorted((card.mebibytes for card in found), reverse=True), strict=False)
    less = [f"{has} MiB instead of {least}" for least, has in pairs if has < least]
    assert not less, f"{node.name}: cards have less memory than their model: {', '.join(less)}"
    record_property("found", ", ".join(f"{card.name} {card.mebibytes} MiB" for card in found))


def unnamed(models: Iterable[str], names: Iterable[str]) -> list[str]:
    """The models of a site file that none of the cards has, each card counted once; whole words, for L4 is no L40."""
    left = [f"-{name.replace(' ', '-')}-" for name in names]
    missing = []
    # The most exact model chooses first.
    for model in sorted(models, key=len, reverse=True):
        fitting = next((name for name in left if f"-{model.replace(' ', '-')}-" in name), None)
        if fitting is None:
            missing.append(model)
        else:
            left.remove(fitting)
    return missing


def least_memories(node: NodeHost, settings: Settings) -> list[int]:
    """MiB that the cards have at least, as far as it is known of their models; the largest first."""
    if settings.simulated(node.site_node):
        known = [cards.simulated(gpu.model).mebibytes for gpu in node.site_node.facts.gpus for _ in range(gpu.count)]
    else:
        # Error correction and the driver take their part.
        known = [card.memory_gb * 1024 * 9 // 10 for card in cards.cards(bus(node)) if card.memory_gb]
    return sorted(known, reverse=True)


@pytest.mark.on("gpu")
def test_cards_are_those_of_the_bus(node: NodeHost, settings: Settings) -> None:
    """The PCI bus shows as many of NVIDIA's cards as the site file names."""
    if settings.simulated(node.site_node):
        raise DoesNotApply(f"the cards of {node.name} are SIMULATED: no bus has them")
    found = cards.cards(bus(node))
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
def test_fabric_manager(node: NodeHost, settings: Settings, pins: Pins) -> None:
    """Cards that are joined by NVSwitch reach each other: the fabric manager of the driver's version runs."""
    if settings.simulated(node.site_node):
        raise DoesNotApply(f"the cards of {node.name} are SIMULATED: nothing joins them")
    if not cards.has_nvswitch(bus(node)):
        raise DoesNotApply(f"{node.name} has no NVSwitch: its cards need no fabric manager")
    name = pins.fabric_manager
    found = installed(node, [name]).get(name, "none")
    assert found == f"{pins.driver_packages[name]} installed", f"{node.name}: {name} is {found}, not {pins.driver}"
    service = node.service("nvidia-fabricmanager")
    assert service.is_running, f"{node.name}: nvidia-fabricmanager does not run"
    assert service.is_enabled, f"{node.name}: nvidia-fabricmanager would not start at boot"


@pytest.mark.on("gpu")
@pytest.mark.limit(150)
def test_cuda(node: NodeHost, settings: Settings, record_property: Callable[[str, object], None]) -> None:
    """CUDA works on every card: what is written into its memory is read back."""
    if settings.simulated(node.site_node):
        raise DoesNotApply(f"the cards of {node.name} are SIMULATED: they compute nothing")
    done = node.run(f"{PYTHON} -c {shlex.quote(CUDA)}", timeout=120)
    assert done.rc == 0, f"{node.name}: CUDA does not work: {done.stderr.strip().splitlines()[-1:]}"
    count, full = json.loads(done.stdout)
    wanted = settings.cards(node.site_node)
    # Of cards that are cut into parts a program finds one part only.
    right = count >= 1 if settings.mig else count == wanted
    assert right, f"{node.name}: CUDA finds {count} cards, and site.yaml names {wanted}"
    if len(full) == count:
        raise NotChecked(f"{node.name}: jobs have all memory of all cards", "Verify again once one of them is done.")
    busy = "; jobs have all memory of the others" if full else ""
    record_property("found", f"{count - len(full)} of {count} cards{busy}")


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
def test_cards_are_cut(node: NodeHost, settings: Settings) -> None:
    """Cards are cut into parts of the site file's profile (MIG), or whole where it names none."""
    if settings.simulated(node.site_node):
        raise DoesNotApply(f"the cards of {node.name} are SIMULATED and cannot be cut")
    modes = node.lines("nvidia-smi --query-gpu=mig.mode.current --format=csv,noheader")
    if not settings.mig:
        assert "Enabled" not in modes, f"{node.name}: cards are cut, and site.yaml names no profile: {modes}"
        return
    assert "Disabled" not in modes, f"{node.name}: cards that can be cut are not: {modes}"
    parts = [line for line in node.lines("nvidia-smi -L") if line.strip().startswith("MIG ")]
    wrong = [line for line in parts if f"MIG {settings.mig} " not in line]
    assert not wrong, f"{node.name}: parts are not of {settings.mig}: {wrong}"
    assert bool(parts) == ("Enabled" in modes), f"{node.name}: nvidia-smi shows no part of a card"


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
def test_look_is_recent(node: NodeHost) -> None:
    """The cards were looked at within the last 3 minutes."""
    age = node.run(f"echo $(( $(date +%s) - $(stat -c %Y {RUN}/watch) ))")
    assert age.rc == 0, f"{node.name}: nobody has looked at the cards since the node booted"
    assert int(age.stdout) <= LOOK_SECONDS, (
        f"{node.name}: the last look at the cards was {age.stdout.strip()} s ago: journalctl -u onprem-gpu-watch"
    )


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
    done = node.run(f"{where}{PYTHON} -c {shlex.quote(ASK)}")
    assert done.rc == 0, f"{node.name}: the driver does not answer: {done.stderr.strip().splitlines()[-1:]}"
    return [Card(*one) for one in json.loads(done.stdout)]
