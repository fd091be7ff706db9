"""Lays down NVIDIA's driver with the kernel that it is built for: built first, then switched, one node at a time."""

from __future__ import annotations

import hashlib
import json
import shlex
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from onprem_mlops import wheelhouse
from onprem_mlops.endpoint import endpoint
from onprem_mlops.engine.facts import Packages, fact, probe
from onprem_mlops.engine.operations import apt, files, handing, kubectl, python, rolling, shell, systemd
from onprem_mlops.engine.runner import OperationFailed
from onprem_mlops.errors import MlopsError
from onprem_mlops.roles import Context, admission, removal, step
from onprem_mlops.shell import Endpoint

from . import cards
from .pins import Pins, resolved
from .settings import Settings

ON = "gpu"
CONTROL_PLANE = "control_plane"
ARCHIVE = "bookworm-gpu"
GATE = "onprem-mlops.local/gpu-driver"
"""Label of a node whose driver is there, with its version: what uses the driver in the cluster waits for it."""

SOURCES = "/etc/apt/sources.list.d/onprem-mlops-gpu.sources"
NOUVEAU = "/etc/modprobe.d/onprem-mlops-nouveau.conf"
NO_BUILDS = "/etc/dkms/no-autoinstall"
RAMDISKS = "/etc/initramfs-tools/update-initramfs.conf"
BOOT_DEFAULT = "/etc/default/grub.d/90-onprem-gpu.cfg"
CARDS = "/etc/onprem-gpu/cards"
FOUND = "/etc/onprem-gpu/found"
SIGNER = "/var/lib/dkms/mok.pub"
"""What DKMS signs modules with, where Secure Boot asks for it."""
QUIET = "/etc/modprobe.d/00-onprem-gpu-simulated.conf"
PROGRAMS = "/usr/local/sbin"
COMMANDS = ("nvidia-ctk", "nvidia-cdi-hook")
UNITS = "/etc/systemd/system"
SERVICE, WATCH, EXPORTER = "onprem-gpu.service", "onprem-gpu-watch.timer", "onprem-gpu-exporter.service"
LOOK = "onprem-gpu-watch.service"
GOOD = "[ \"$(cat /run/onprem-gpu/watch)\" = '[]' ]"
"""Shell: whether the last look found all cards well."""
PERSISTENCE = "nvidia-persistenced.service"
ENVIRONMENTS = "/opt/onprem-gpu"
TOOLS = ("dkms", "gcc-12", "mokutil", "pciutils", "python3", "zstd")
KERNEL_PARTS = ("image", "headers")
META = tuple(f"linux-{part}-amd64" for part in KERNEL_PARTS)
"""Packages that bring the newest kernel along. A node that has them keeps them, held."""
CDI = "--vendor=k8s.device-plugin.nvidia.com --class=gpu --device-name-strategy=uuid"
FOLDER = "/etc/kubernetes/addons/gpu"
OWN = "onprem-mlops.local/role=gpu"
"""Label of the role's pods in namespace kube-system."""
WORKLOADS = ("daemonsets/nvidia-device-plugin", "daemonsets/gpu-feature-discovery", "deployments/nfd-master")
OTHERS = (
    "configmap/nvidia-device-plugin",
    "networkpolicy/gpu",
    "serviceaccount/nfd-master",
    *(f"{kind}/gpu-feature-discovery" for kind in ("rolebinding", "role", "serviceaccount")),
)
NODE_FEATURES = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/nodefeatures.nfd.k8s-sigs.io"


@admission(on=ON)
def fit(ctx: Context[Settings]) -> None:
    """Refuse pins that the mirror does not have, a release without a driver, and cards that the driver does not fit."""
    codename = probe('. /etc/os-release; echo "$VERSION_CODENAME"').text.strip()
    if codename != "bookworm":
        raise MlopsError(
            f"{ctx.node.name} runs Debian {codename}, and the mirror has drivers for bookworm (12) only",
            "Take the node out of group gpu, or install Debian 12 on it.",
        )
    pins = _pins(ctx)
    if not _simulated(ctx):
        _refuse_misfits(ctx, pins)


def _refuse_misfits(ctx: Context[Settings], pins: Pins) -> None:
    listing = probe(cards.LISTED).text
    found = cards.cards(listing)
    modules = ctx.settings.modules if ctx.settings.modules != "auto" else cards.fitting_modules(found)
    if wrong := cards.misfits(pins.driver, modules, found):
        raise MlopsError(
            f"{ctx.node.name}: driver {pins.driver} does not fit: {'; '.join(wrong)}",
            "Pin another driver in settings.gpu.driver, or take the card out.",
        )
    if modules == "open":
        raise MlopsError(
            f"{ctx.node.name} needs NVIDIA's open kernel modules, which Debian 12 has in no version of its driver",
            "Such cards need a driver of NVIDIA's own repository, which this version does not lay down.",
        )
    if cards.has_nvswitch(listing):
        raise MlopsError(
            f"{ctx.node.name} has NVSwitch, whose fabric manager is neither in Debian nor in the mirror",
            "Such a node needs NVIDIA's own repository, which this version does not lay down.",
        )
    if _secure_boot() and not probe(f"mokutil --test-key {SIGNER} | grep -q 'already enrolled'").ok:
        raise MlopsError(
            f"{ctx.node.name} has Secure Boot on, and would refuse modules that are signed with {SIGNER}",
            f"Once, on the node: apt-get install mokutil openssl; mkdir -p /var/lib/dkms; openssl req -new -x509 "
            f"-nodes -days 36500 -subj '/CN=DKMS module signing key' -newkey rsa:2048 -outform DER -out {SIGNER} "
            f"-keyout {SIGNER[:-3]}key; mokutil --import {SIGNER}; reboot, and enrol it at the console. Or switch "
            "Secure Boot off.",
        )


def _secure_boot() -> bool:
    variable = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    return probe(f"od -An -tu1 -j4 -N1 {variable}").text.strip() == "1"


def _findings(ctx: Context[Settings]) -> str:
    """What of the node matters for its driver, a line each."""
    if _simulated(ctx):
        found = [f"{gpu.count} × {gpu.model}, SIMULATED" for gpu in ctx.node.facts.gpus]
    else:
        found = [str(card) for card in cards.cards(probe(cards.LISTED).text)]
    groups = probe("ls /sys/kernel/iommu_groups | wc -l").text.strip()
    return "".join(
        f"{line}\n"
        for line in (
            *found,
            f"Secure Boot: {'on' if _secure_boot() else 'off'}",
            f"IOMMU: {f'{groups} groups' if groups.strip('0') else 'off'}",
        )
    )


@step(on=ON)
def prepare(ctx: Context[Settings]) -> None:
    """The kernel with its headers, the tools that build modules, and the programs around the driver. No pod notices."""
    pins = _pins(ctx)
    files.content("what was found", FOUND, _findings(ctx))
    keyring = "/etc/apt/keyrings/onprem-mlops.asc"
    files.content("the driver's archive on the mirror", SOURCES, ctx.render("apt.sources.j2", keyring=keyring))
    files.content("nouveau keeps off the cards", NOUVEAU, "blacklist nouveau\noptions nouveau modeset=0\n")
    _boot_default(ctx, _running(ctx)[0] or pins.kernel, unless_there=True)
    apt.packages("what builds kernel modules", *TOOLS)
    apt.held("newer kernels come in a deploy, not at night", *META)
    _install_kernel(pins)
    authority = ctx.settings_of("node").authority_path
    for name in COMMANDS:
        files.download(name, f"/usr/local/bin/{name}", ctx.file("nvidia-container-toolkit", name), authority=authority)
    if _simulated(ctx):
        _simulation(ctx, authority)
    libraries = f"{_root(ctx)}/usr/lib/x86_64-linux-gnu" if _simulated(ctx) else cards.LIBRARIES
    files.content(
        "what loads the driver",
        f"{PROGRAMS}/onprem-gpu",
        ctx.render("onprem-gpu.j2", simulated=_simulated(ctx), cdi=_cdi(ctx), libraries=libraries),
        mode="755",
    )
    _measurement(ctx, authority, libraries)


def _install_kernel(pins: Pins) -> None:
    """Kernel and headers. What comes with them builds no driver for it, but modules of others as ever."""
    installed: dict[str, str] = fact(Packages)
    if any(installed.get(name) != version for name, version in pins.kernel_packages.items()):
        files.content("the driver is not built by the kernel's packages", NO_BUILDS, "")
    apt.pinned("the kernel that the driver is built for", pins.kernel_packages)
    files.absent("modules of others are built as ever", NO_BUILDS)
    others = "dkms status | sed -n 's,^\\([^/]*\\)/\\([^:,]*\\)[:,].*,\\1 \\2,p' | grep -v '^nvidia-current ' | sort -u"
    shell.run(
        "modules of others for this kernel, such as a network card's",
        f"{others} | while read -r name version; do dkms install -m $name -v $version -k {pins.kernel} || exit 1; done",
        unless=f"{others} | while read -r name version; do "
        f"dkms status -m $name -v $version -k {pins.kernel} | grep -q installed || exit 1; done",
        timeout=3600,
    )


def _simulation(ctx: Context[Settings], authority: str) -> None:
    """What stands in for cards, and says so."""
    library = _library(ctx)
    files.download("SIMULATED cards", library, ctx.file("simulated-gpu", "libnvidia-ml.so.1"), authority=authority)
    files.content("SIMULATED cards: which", CARDS, ctx.render("cards.j2", simulated_cards=_simulated_cards(ctx)))
    text = ctx.render(
        "onprem-gpu-simulated.j2", root=_root(ctx), boot_default=BOOT_DEFAULT, library=library, cards=CARDS
    )
    files.content("SIMULATED cards: boot and driver", f"{PROGRAMS}/onprem-gpu-simulated", text, mode="755")
    # The packages have systemd load the driver, into a kernel that it was not built for.
    files.content("SIMULATED cards: no kernel loads the driver", QUIET, "install nvidia-drm /bin/true\n")


def _simulated_cards(ctx: Context[Settings]) -> Iterable[tuple[str, int, int, int, str, str]]:
    index = 0
    for gpu in ctx.node.facts.gpus:
        model = cards.simulated(gpu.model)
        for _ in range(gpu.count):
            name = uuid.uuid5(uuid.NAMESPACE_DNS, f"{index}.{ctx.site.full_name(ctx.node)}")
            yield gpu.model, model.mebibytes, *model.capability, f"GPU-{name}", f"00000000:{index + 1:02X}:00.0"
            index += 1


def _measurement(ctx: Context[Settings], authority: str, libraries: str) -> None:
    """Metrics, and the look whether all cards answer."""
    environment = _environment(ctx)
    python.environment(
        "what asks the cards", environment, ctx.files("gpu-exporter"), ctx.files("uv"), authority=authority
    )
    values = {"simulated": _simulated(ctx), "python": f"{environment}/bin/python", "libraries": libraries}
    watch = ctx.render("watch.py.j2", emptied=rolling.EMPTIED, **values)
    files.content("the look whether all cards answer", f"{PROGRAMS}/onprem-gpu-watch", watch)
    for unit in (SERVICE, EXPORTER, WATCH, LOOK):
        files.content(f"unit {unit}", f"{UNITS}/{unit}", ctx.render(f"{unit}.j2", **values))


@step(on=ON, after=("prepare",))
def modules(ctx: Context[Settings]) -> OperationFailed | None:
    """The driver's modules for that kernel, built once in the site, beside what runs.

    Returns why they could not be built: the node's own next step says so, and other nodes go on.
    """
    pins = _pins(ctx)
    archive = _archive(ctx, pins)
    kept = ctx.state / "gpu" / Path(archive).name
    try:
        files.directory("modules as they were built", f"{ctx.settings.folder}/modules")
        with handing.Maker.first(kept):
            if kept.exists():
                handing.handed(f"modules of driver {pins.driver}, as a like node built them", kept, archive)
                return None
            build = ctx.render("build.sh.j2", pins=pins, archive=archive)
            shell.run(
                f"modules of driver {pins.driver} for kernel {pins.kernel}",
                f"bash -c {shlex.quote(build)}",
                unless=f"[ -s {archive} ]",
                timeout=3600,
            )
            if not ctx.planning:
                handing.fetched("these modules, for like nodes", archive, kept)
    except OperationFailed as failed:
        return failed
    return None


@step(on=CONTROL_PLANE, only="any")
def cluster(ctx: Context[Settings]) -> None:
    """What offers cards to pods, names them, and says who may have them. Nodes get it once their driver is there."""
    if not ctx.settings.nodes(ctx.site):
        return
    authority = ctx.settings_of("node").authority_path
    manifest = ctx.file("node-feature-discovery-manifest", "nfd-api-crds.yaml")
    files.download("kinds of feature discovery", f"{FOLDER}/{manifest.name}", manifest, authority=authority, mode="644")
    files.content("feature discovery", f"{FOLDER}/kustomization.yaml", f"resources: [{manifest.name}]\n")
    kubectl.apply_folder("kinds of feature discovery", FOLDER, what="feature discovery", last=NODE_FEATURES)
    configuration = json.dumps(_plugin(ctx))
    text = ctx.render(
        "cluster.yaml.j2",
        gate=GATE,
        own=OWN.replace("=", ": "),
        configuration=configuration,
        digest=hashlib.sha256(configuration.encode()).hexdigest()[:16],
        plugin_image=ctx.image("image-nvidia-device-plugin"),
        discovery_image=ctx.image("image-node-feature-discovery"),
        api_port=6443,
    )
    kubectl.apply("device plugin and feature discovery", text, what="device plugin and feature discovery")
    namespaces = json.dumps([name for name, number in ctx.settings.quotas.items() if number])
    kubectl.apply("who may have GPUs", ctx.render("rules.yaml.j2", namespaces=namespaces), what="rules of GPUs")
    for name, number in ctx.settings.quotas.items():
        # One that is there is its team's: it gets a quota and keeps what else it has.
        if kubectl.api(f"/api/v1/namespaces/{name}").status == 404:
            kubectl.apply(f"namespace {name}", kubectl.namespace(name, level="baseline"), what=f"namespace {name}")
        quota = ctx.render("quota.yaml.j2", namespace=name, cards=number)
        kubectl.apply(f"quota of namespace {name}", quota, what=f"quota of namespace {name}")
    _forget_quotas(ctx)


def _plugin(ctx: Context[Settings]) -> Mapping[str, object]:
    """The configuration of the device plugin and of feature discovery."""
    flags = {
        "migStrategy": "single" if ctx.settings.mig else "none",
        "failOnInitError": True,
        "deviceDiscoveryStrategy": "nvml",
        "gdrcopyEnabled": False,
        "gdsEnabled": False,
        "mofedEnabled": False,
        "plugin": {"deviceListStrategy": ["cdi-cri"], "containerDriverRoot": "/driver-root"},
        "gfd": {"sleepInterval": "60s"},
    }
    if ctx.settings.shared_by == 1:
        return {"version": "v1", "flags": flags}
    shares = [{"name": ctx.settings.resource, "replicas": ctx.settings.shared_by}]
    sharing = {"timeSlicing": {"failRequestsGreaterThanOne": True, "resources": shares}}
    return {"version": "v1", "flags": flags, "sharing": sharing}


def _forget_quotas(ctx: Context[Settings]) -> None:
    found = kubectl.api("/api/v1/resourcequotas?labelSelector=onprem-mlops.local/role=gpu").body.get("items", ())
    for namespace in sorted(one["metadata"]["namespace"] for one in found):
        if namespace not in ctx.settings.quotas:
            kubectl.absent(f"namespace {namespace} has no quota any more", "resourcequota/gpu", namespace=namespace)


@step(on=ON, after=("cluster",))
def driver(ctx: Context[Settings], modules: dict[str, OperationFailed | None]) -> None:
    """The node has that driver, in the kernel and in user space: emptied before, booted if it has to, let in again."""
    if failed := modules.get(ctx.node.name):
        raise failed
    pins = _pins(ctx)
    _keep(ctx, pins)
    stands = rolling.standing(ctx.node.name, GATE)
    rolling.unmarked("a person let the node in", ctx.node.name, stands)
    if not _is_there(ctx, pins) or stands.label != pins.driver or stands.ours:
        _switch(ctx, pins)
    apt.pinned("the driver", pins.driver_packages)
    _as_ever()
    _services(ctx)
    python.alone("no environment of an earlier version", _environment(ctx))


def _keep(ctx: Context[Settings], pins: Pins) -> None:
    """The kernel that boots next is the one that the driver runs with."""
    if _running(ctx) == (pins.kernel, pins.driver):
        _boot_default(ctx, pins.kernel)


def _switch(ctx: Context[Settings], pins: Pins) -> None:
    planes = _planes(ctx)
    with rolling.Turns.take():
        # Also where only the node is to be let in again: what gave up its cards looks at them anew.
        rolling.emptied(
            "no pod works on the node",
            ctx.node.name,
            planes,
            label=GATE,
            leaving=OWN,
            resource=ctx.settings.resource,
        )
        if not _is_there(ctx, pins):
            _install(ctx, pins)
            _begin(ctx, pins)
        rolling.let_in(
            "the node offers its GPUs, and pods come again",
            ctx.node.name,
            planes,
            label=GATE,
            value=pins.driver,
            resource=ctx.settings.resource,
            least=ctx.settings.offered(ctx.node),
        )


def _install(ctx: Context[Settings], pins: Pins) -> None:
    """Packages and modules of the driver. The modules were built before: the packages' own scripts build none."""
    files.content("nothing is built while the node is empty", NO_BUILDS, "")
    # Each of the packages asks for one anew.
    files.set_aside("initial ramdisks wait", RAMDISKS)
    files.content("no initial ramdisk for each package", RAMDISKS, "update_initramfs=no\n")
    apt.pinned("the driver", pins.driver_packages)
    _as_ever()
    # It holds nothing of the driver; what it must know is that nouveau keeps off.
    current = f"[ /boot/initrd.img-{pins.kernel} -nt {NOUVEAU} ]"
    shell.run("the initial ramdisk knows of nouveau", f"update-initramfs -u -k {pins.kernel}", unless=current)
    version = f"-m nvidia-current -v {pins.driver}"
    shell.run(
        f"modules for kernel {pins.kernel}",
        f"dkms ldtarball --force --archive {_archive(ctx, pins)} >/dev/null && "
        f'dkms install --force {version} -k {pins.kernel} && [ "$({_built(pins)})" = {pins.driver} ]',
        unless=f'[ "$({_built(pins)})" = {pins.driver} ]',
    )
    _boot_default(ctx, pins.kernel)


def _as_ever() -> None:
    """Packages build modules and initial ramdisks again, also where a deploy died while they did not."""
    files.absent("modules of others are built as ever", NO_BUILDS)
    files.brought_back("initial ramdisks are made as ever", RAMDISKS)


def _begin(ctx: Context[Settings], pins: Pins) -> None:
    """The driver runs: loaded anew if the kernel is right and nothing holds on to the old one, else by a boot."""
    systemd.service("it loads at boot", SERVICE, running=False)
    if _running(ctx)[0] == pins.kernel:
        units = f"{WATCH} {EXPORTER} {PERSISTENCE}"
        shell.run(
            "the driver that was loaded goes",
            f"systemctl stop {units} 2>/dev/null; modprobe -r nvidia_uvm nvidia_drm nvidia_modeset nvidia nouveau "
            "2>/dev/null; true",
            unless=False,
        )
        shell.run("the driver is loaded", f"systemctl restart {SERVICE} || true", unless=False)
    if ctx.planning:
        return
    if not _is_there(ctx, pins):
        rolling.booted("the node runs with it", seconds=ctx.settings.boot_minutes * 60)
    if not _is_there(ctx, pins):
        kernel, loaded = _running(ctx)
        raise MlopsError(
            f"{ctx.node.name} booted, and runs kernel {kernel or 'unknown'} with driver {loaded or 'none'}, not "
            f"{pins.kernel} with {pins.driver}; no pod is sent there, and the other nodes stay as they are",
            "See `journalctl -b -u onprem-gpu` there. The way back is the version before: write it into "
            "settings.gpu.driver (or kernel) of site.yaml and deploy again; its modules are still there.",
        )


def _services(ctx: Context[Settings]) -> None:
    systemd.reloaded("systemd knows the units")
    loader = (f"{PROGRAMS}/onprem-gpu", *(f"/usr/local/bin/{name}" for name in COMMANDS))
    simulation = (f"{PROGRAMS}/onprem-gpu-simulated", CARDS, _library(ctx)) if _simulated(ctx) else ()
    systemd.service("the driver is loaded", SERVICE, configuration=(*loader, *simulation))
    if not _simulated(ctx):
        apt.packages("what keeps the driver loaded", "nvidia-persistenced")
        systemd.service("the driver stays loaded between jobs", PERSISTENCE)
    systemd.service("metrics of the cards", EXPORTER, configuration=(f"{UNITS}/{EXPORTER}",))
    systemd.service("the look whether all cards answer", WATCH, configuration=(f"{UNITS}/{WATCH}",))
    shell.run("the cluster knows how the cards are", f"systemctl start {LOOK}", unless=GOOD)


@step(on=CONTROL_PLANE, only="any", after=("driver",))
def ready(ctx: Context[Settings]) -> None:
    """Nodes with GPUs are named by what they have."""
    if ctx.settings.nodes(ctx.site):
        kubectl.rolled_out("GPUs are offered and named", *WORKLOADS, namespace="kube-system")
    for node in ctx.settings.nodes(ctx.site):
        offered = ctx.settings.offered(node)
        kubectl.offered(
            f"{node.name} offers its GPUs", node.name, ctx.settings.resource, offered, more=bool(ctx.settings.mig)
        )


@removal(on=ON)
def remove(ctx: Context[Settings]) -> None:
    """The driver is gone, with what belongs to it; the kernel stays: the node runs with it."""
    for unit in (WATCH, LOOK, EXPORTER, SERVICE):
        systemd.gone(f"no {unit}", unit)
        files.absent(f"no file of {unit}", f"{UNITS}/{unit}")
    _as_ever()
    offered = ctx.package_offers(ARCHIVE)
    images, headers = (tuple(name for name in offered if name.startswith(f"linux-{kind}-")) for kind in KERNEL_PARTS)
    apt.released("kernels may be upgraded again", *images, *headers)
    drivers = _pins(ctx).driver_packages
    apt.purged("the driver, and what builds its modules", *drivers, "nvidia-persistenced", *headers, *TOOLS)
    programs = [f"{PROGRAMS}/{name}" for name in ("onprem-gpu", "onprem-gpu-watch", "onprem-gpu-simulated")]
    commands = [f"/usr/local/bin/{name}" for name in COMMANDS]
    files.absent("no files of the role", *programs, *commands, SOURCES, NOUVEAU, QUIET, NO_BUILDS, BOOT_DEFAULT)
    folders = (ctx.settings.folder, ENVIRONMENTS, "/etc/onprem-gpu", "/run/onprem-gpu", "/run/cdi")
    files.absent("no folders of the role", *folders, recursive=True)
    systemd.reloaded("systemd forgets the units")


@removal(on=CONTROL_PLANE)
def remove_from_cluster(ctx: Context[Settings]) -> None:
    """The cluster offers no GPUs and has no rules about them."""
    if ctx.node != ctx.nodes(CONTROL_PLANE)[0]:
        return
    rules = ("validatingadmissionpolicybinding", "validatingadmissionpolicy")
    kubectl.absent("no rules of GPUs", *(f"{kind}/onprem-mlops-gpu" for kind in rules))
    kubectl.absent("no device plugin and no feature discovery", *WORKLOADS, *OTHERS, namespace="kube-system")
    rights = (f"{kind}/onprem-mlops-nfd-master" for kind in ("clusterrole", "clusterrolebinding"))
    kubectl.absent("no rights of feature discovery", *rights)
    for node in ctx.settings.nodes(ctx.site):
        kubectl.unlabelled(f"{node.name} has no driver", node.name, GATE)
    for name in ctx.settings.quotas:
        kubectl.absent(f"namespace {name} has no quota any more", "resourcequota/gpu", namespace=name)
    kubectl.folder_absent("no kinds of feature discovery", FOLDER, last=NODE_FEATURES)
    files.absent("no manifests", FOLDER, recursive=True)


def _pins(ctx: Context[Settings]) -> Pins:
    return resolved(ctx.package_offers(ARCHIVE), ctx.settings.driver, ctx.settings.kernel)


def _simulated(ctx: Context[Settings]) -> bool:
    return ctx.settings.simulated(ctx.node)


def _planes(ctx: Context[Settings]) -> Sequence[Endpoint]:
    return [endpoint(ctx.site, node) for node in ctx.nodes(CONTROL_PLANE)]


def _root(ctx: Context[Settings]) -> str:
    """Where the libraries of a simulated driver lie."""
    return f"{ctx.settings.folder}/simulated"


def _library(ctx: Context[Settings]) -> str:
    """What answers for simulated cards."""
    return f"{ctx.settings.folder}/simulated-nvml/libnvidia-ml.so.1"


def _cdi(ctx: Context[Settings]) -> str:
    hook = "--nvidia-cdi-hook-path=/usr/local/bin/nvidia-cdi-hook"
    where = f"--driver-root={_root(ctx)} --dev-root=/ " if _simulated(ctx) else ""
    return f"{where}{CDI} {hook}"


def _environment(ctx: Context[Settings]) -> str:
    return wheelhouse.environment_path(ENVIRONMENTS, ctx.files("gpu-exporter"))


def _archive(ctx: Context[Settings], pins: Pins) -> str:
    """Where a node keeps built modules. Nodes are alike in all that is in its name."""
    # With Secure Boot a node takes only what it has signed itself.
    signer = probe(f"sha256sum <{SIGNER} | cut -c 1-8").text.strip() if _secure_boot() else ""
    return f"{ctx.settings.folder}/modules/{pins.driver}-{pins.kernel}{f'-{signer}' if signer else ''}.tar.gz"


def _built(pins: Pins) -> str:
    """Shell: the version of the driver's module for the kernel, as it lies on the disk."""
    return f"modinfo -F version /lib/modules/{pins.kernel}/updates/dkms/nvidia-current.ko 2>/dev/null"


def _boot_default(ctx: Context[Settings], kernel: str, *, unless_there: bool = False) -> None:
    """Boot this kernel, where the node boots by GRUB."""
    if unless_there and probe(f"[ -e {BOOT_DEFAULT} ]").ok:
        return
    files.content(f"kernel {kernel} boots", BOOT_DEFAULT, ctx.render("boot-default.cfg.j2", kernel=kernel))
    chosen = f"grep -q 'set default=\"[^\"]*>gnulinux-{kernel}-advanced-' /boot/grub/grub.cfg"
    shell.run(
        f"the boot loader knows that kernel {kernel} boots",
        f"update-grub && {chosen}",
        unless=f"! command -v update-grub || ! [ -e /boot/vmlinuz-{kernel} ] || {chosen}",
    )


def _running(ctx: Context[Settings]) -> tuple[str, str]:
    """Kernel and driver that the node runs with, empty if there is none. Simulated: what its last boot would have."""
    if _simulated(ctx):
        said = probe("cat /run/onprem-gpu/kernel; sed -n 's/^driver\\t\\([^\\t]*\\).*/\\1/p' /run/onprem-gpu/simulated")
    else:
        said = probe("uname -r; cat /sys/module/nvidia/version")
    kernel, loaded = ([*said.text.split(), "", ""])[:2]
    return kernel.replace("none", ""), loaded


def _is_there(ctx: Context[Settings], pins: Pins) -> bool:
    """Whether the node runs the pinned kernel with the pinned driver loaded, and its libraries are of that version."""
    installed = probe("dpkg-query -W -f '${Package} ${Version}\\n' " + " ".join(pins.driver_packages)).text.splitlines()
    wanted = [f"{name} {version}" for name, version in pins.driver_packages.items()]
    return _running(ctx) == (pins.kernel, pins.driver) and sorted(installed) == sorted(wanted)
