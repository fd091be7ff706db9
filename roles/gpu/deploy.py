"""Lays down NVIDIA's driver with the kernel that it is built for: built first, then switched, one node at a time."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onprem_mlops import wheelhouse
from onprem_mlops.engine.facts import Packages, fact, probe
from onprem_mlops.engine.operations import apt, files, handing, kubectl, python, rolling, shell, systemd
from onprem_mlops.engine.runner import OperationFailed
from onprem_mlops.errors import MlopsError
from onprem_mlops.roles import Context, KnownLater, admission, removal, step
from onprem_mlops.site import Node

from . import cards, fitness, simulation, switch
from .fitness import simulated
from .pins import ARCHIVE, KERNEL, KINDS, Pins, numbers, packages_of
from .running import RUN, SPECIFICATION
from .settings import Settings
from .switch import CONTROL_PLANE, EXPORTER, FOUND_WRONG, GATE, GOOD, LOOK, OFFERING, OWN, SERVICE, UNITS, WATCH

Behind = OperationFailed | MlopsError | None
"""Why a node stays as it is while the others go on."""

ON = "gpu"
SOURCES = "/etc/apt/sources.list.d/onprem-mlops-gpu.sources"
FOUND = "/etc/onprem-gpu/found"
PROGRAMS = "/usr/local/sbin"
COMMANDS = ("nvidia-ctk", "nvidia-cdi-hook")
KEPT_ARCHIVES = 6
"""How many archives of modules the controller keeps: each is some 50 MB."""
ENVIRONMENTS = "/opt/onprem-gpu"
TOOLS = ("dkms", "gcc-12", "mokutil", "pciutils", "python3", "zstd")
META = ("linux-image-amd64", "linux-headers-amd64")
"""Packages that bring the newest kernel along. A node that has them keeps them, held."""
DRIVERS = re.compile(r"(lib)?nvidia-|libcuda1$|firmware-nvidia-")
"""Names of the driver's packages."""
CDI = "--vendor=k8s.device-plugin.nvidia.com --class=gpu --device-name-strategy=uuid"
FOLDER = "/etc/kubernetes/addons/gpu"
WORKLOADS = ("daemonsets/nvidia-device-plugin", "daemonsets/gpu-feature-discovery", "deployments/nfd-master")
OTHERS = (
    "networkpolicy/gpu",
    "serviceaccount/nfd-master",
    *(f"{kind}/gpu-feature-discovery" for kind in ("rolebinding", "role", "serviceaccount")),
)
NODE_FEATURES = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/nodefeatures.nfd.k8s-sigs.io"


@admission(on=ON)
def fit(ctx: Context[Settings]) -> None:
    """Refuse pins that the mirror does not have, a release without a driver, and cards that the driver does not fit."""
    fitness.refuse_misfits(ctx)


@step(on=ON)
def prepare(ctx: Context[Settings]) -> None:
    """The kernel with its headers, the tools that build modules, and the programs around the driver. No pod notices."""
    pins = fitness.pins(ctx)
    _refuse_old_mirror(ctx, pins)
    switch.as_ever()
    files.content("what was found", FOUND, fitness.findings(ctx))
    keyring = "/etc/apt/keyrings/onprem-mlops.asc"
    files.content("the driver's archive on the mirror", SOURCES, ctx.render("apt.sources.j2", keyring=keyring))
    files.content("nouveau keeps off the cards", switch.NOUVEAU, "blacklist nouveau\noptions nouveau modeset=0\n")
    switch.boot_default(ctx, switch.running(ctx).kernel or pins.kernel, unless_there=True)
    apt.packages("what builds kernel modules", *TOOLS)
    apt.held("newer kernels come in a deploy, not at night", *META)
    _install_kernel(ctx, pins)
    authority = ctx.settings_of("node").authority_path
    for name in COMMANDS:
        files.download(name, f"/usr/local/bin/{name}", ctx.file("nvidia-container-toolkit", name), authority=authority)
    if simulated(ctx):
        simulation.laid_down(ctx, authority)
    libraries = f"{simulation.root(ctx)}/usr/lib/x86_64-linux-gnu" if simulated(ctx) else cards.LIBRARIES
    files.content(
        "what loads the driver",
        f"{PROGRAMS}/onprem-gpu",
        ctx.render(
            "onprem-gpu.j2",
            simulated=simulated(ctx),
            simulation=simulation.PROGRAM,
            cdi=_cdi(ctx),
            libraries=libraries,
            specification=SPECIFICATION,
            run=RUN,
        ),
        mode="755",
    )
    _measurement(ctx, authority, libraries)


def _refuse_old_mirror(ctx: Context[Settings], pins: Pins) -> None:
    """MlopsError if something is to be fetched that the mirror's node was not given yet."""
    installed: dict[str, str] = fact(Packages)
    wanted = {**pins.kernel_packages, **pins.driver_packages}
    if ctx.planning or all(installed.get(name) == version for name, version in wanted.items()):
        return
    index = f"apt/{ARCHIVE}/InRelease"
    ours = next(file.sha256 for file in ctx.tree() if str(file.path) == index)
    authority = ctx.settings_of("node").authority_path
    served = probe(f"curl -fsS --cacert {authority} {ctx.site.mirror_url}/{index} | sha256sum").text.split()
    if served[:1] != [ours]:
        raise MlopsError(
            f"the mirror's node does not serve driver {pins.driver} and kernel {pins.kernel} yet; the store does",
            "./mlops deploy --role mirror; then run the same command again.",
        )


def _install_kernel(ctx: Context[Settings], pins: Pins) -> None:
    """Kernel and headers. What comes with them builds no driver for it, but modules of others as ever."""
    installed: dict[str, str] = fact(Packages)
    if any(installed.get(name) != version for name, version in pins.kernel_packages.items()):
        # A boot partition is small. The kernel that runs is the way back from the new one.
        _forget_kernels(ctx, pins, ways_back=0)
        files.content("the driver is not built by the kernel's packages", switch.NO_BUILDS, "")
    apt.pinned("the kernel that the driver is built for", pins.kernel_packages)
    files.absent("modules of others are built as ever", switch.NO_BUILDS)
    script = ctx.render("others.sh.j2", kernel=pins.kernel, modules=[one.name for one in KINDS.values()])
    shell.run(
        "modules of others for this kernel, such as a network card's",
        f"sh -c {shlex.quote(script)} others install",
        unless=f"sh -c {shlex.quote(script)} others check",
        timeout=3600,
    )


def _measurement(ctx: Context[Settings], authority: str, libraries: str) -> None:
    """Metrics, and the look whether all cards answer."""
    environment = _environment(ctx)
    python.environment(
        "what asks the cards", environment, ctx.files("gpu-exporter"), ctx.files("uv"), authority=authority
    )
    values = {"simulated": simulated(ctx), "python": f"{environment}/bin/python", "libraries": libraries}
    watch = ctx.render("watch.py.j2", emptied=rolling.EMPTIED, specification=SPECIFICATION, **values)
    files.content("the look whether all cards answer", f"{PROGRAMS}/onprem-gpu-watch", watch)
    for unit in (SERVICE, EXPORTER, WATCH, LOOK):
        files.content(f"unit {unit}", f"{UNITS}/{unit}", ctx.render(f"{unit}.j2", **values))
    systemd.reloaded("systemd knows the units")


@step(on=ON, after=("prepare",))
def modules(ctx: Context[Settings]) -> OperationFailed | None:
    """The driver's modules for that kernel, built once in the site, beside what runs.

    Returns why they could not be built: other nodes go on, and the last step says so.
    """
    pins = fitness.pins(ctx)
    archive = switch.archive(ctx, pins)
    kept = ctx.state / "gpu" / Path(archive).name
    # With Secure Boot a node takes only what it has signed itself.
    for_all = not fitness.secure_boot()
    try:
        files.directory("modules as they were built", f"{ctx.settings.folder}/modules")
        with handing.Maker.first(kept):
            if for_all and kept.exists():
                if not ctx.planning:
                    kept.touch()
                handing.handed(f"modules of driver {pins.driver}, as a like node built them", kept, archive)
                return None
            build = ctx.render("build.sh.j2", pins=pins, archive=archive)
            shell.run(
                f"modules of driver {pins.driver} for kernel {pins.kernel}",
                f"bash -c {shlex.quote(build)}",
                unless=f"[ -s {archive} ]",
                timeout=3600,
            )
            if for_all and not ctx.planning:
                handing.fetched("these modules, for like nodes", archive, kept)
                _forget_archives(kept.parent)
    except OperationFailed as failed:
        return failed
    return None


def _forget_archives(folder: Path) -> None:
    """Keep the archives on the controller that were used last."""
    oldest_first = sorted(folder.glob("*.tar.gz"), key=lambda path: path.stat().st_mtime)
    for path in oldest_first[:-KEPT_ARCHIVES]:
        path.unlink()


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
    text = ctx.render(
        "cluster.yaml.j2",
        gate=GATE,
        own=OWN.replace("=", ": "),
        offering=Path(OFFERING),
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


def _forget_quotas(ctx: Context[Settings]) -> None:
    for namespace in _with_quota():
        if namespace not in ctx.settings.quotas:
            kubectl.absent(f"namespace {namespace} has no quota any more", "resourcequota/gpu", namespace=namespace)


def _with_quota() -> list[str]:
    """Namespaces that have a quota of GPUs from us."""
    found = kubectl.api("/api/v1/resourcequotas?labelSelector=onprem-mlops.local/role=gpu").body.get("items", ())
    return sorted(one["metadata"]["namespace"] for one in found)


@step(on=ON, after=("cluster",), rolling=True)
def driver(ctx: Context[Settings], modules: dict[str, OperationFailed | None]) -> Behind:
    """The node has that driver, in the kernel and in user space: emptied before, booted if it has to, let in again.

    Returns why the node stays as it is, if that need not keep others back: its modules could not be built, or one of
    its cards does not answer.
    """
    if failed := modules.get(ctx.node.name):
        return failed
    return switch.brought(ctx, fitness.pins(ctx))


@step(on=ON, after=("driver",))
def serve(ctx: Context[Settings], driver: dict[str, Behind]) -> None:
    """The driver is held and the next boot has it, metrics are served, and somebody looks whether all cards answer."""
    if driver.get(ctx.node.name):
        return
    pins = fitness.pins(ctx)
    if ctx.planning and not switch.is_there(ctx, pins):
        raise KnownLater("gpu.driver")
    apt.pinned(f"driver {pins.driver}", pins.driver_packages)
    switch.installed_modules(ctx, pins)
    loader = (f"{PROGRAMS}/onprem-gpu", *(f"/usr/local/bin/{name}" for name in COMMANDS))
    simulation_files = simulation.configuration(ctx) if simulated(ctx) else ()
    systemd.service("the driver is loaded", SERVICE, configuration=(*loader, *simulation_files))
    switch.supported(ctx, pins)
    switch.watched()
    recent = f'[ -n "$(find {FOUND_WRONG} -mmin -2)" ]'
    shell.run("the cluster knows how the cards are", f"systemctl start {LOOK} || true", unless=f"{recent} && {GOOD}")
    python.alone("no environment of an earlier version", _environment(ctx))
    _forget_kernels(ctx, pins)


def _forget_kernels(ctx: Context[Settings], pins: Pins, *, ways_back: int = 1) -> None:
    """Of the kernels that earlier pins brought, the newest is kept as the way back; the node's own stay, too."""
    installed: dict[str, str] = fact(Packages)
    brought = probe(f"cat {apt.RECORD}").text.split()
    kernels = [match[1] for match in map(KERNEL.fullmatch, installed) if match and match[0] in brought]
    used = {pins.kernel, switch.running(ctx).kernel}
    gone = sorted((one for one in kernels if one not in used), key=numbers, reverse=True)[ways_back:]
    names = [name for kernel in gone for name in packages_of(kernel)]
    apt.released("kernels of earlier pins", *names)
    apt.purged("no kernels of earlier pins but one", *names)
    for kernel in gone:
        archives = f"find {ctx.settings.folder}/modules -name '*-{kernel}.tar.gz' -o -name '*-{kernel}-*.tar.gz'"
        shell.run(f"no modules for kernel {kernel}", f"{archives} | xargs -r rm -f", unless=f'[ -z "$({archives})" ]')


@step(on=CONTROL_PLANE, only="any", after=("serve",))
def ready(ctx: Context[Settings]) -> None:
    """Nodes whose driver is there and whose cards answer offer them, and are named by what they have."""
    # Asked of the cluster: a deploy of the control plane alone knows nothing of other nodes' steps, and begins none.
    stand = [(node, kubectl.api(f"/api/v1/nodes/{node.name}").body) for node in ctx.settings.nodes(ctx.site)]
    with_driver = [(node, body) for node, body in stand if GATE in body.get("metadata", {}).get("labels", {})]
    offering = [node for node, body in with_driver if _is_offering(body)]
    if offering:
        # What names cards ends again and again where one is lost.
        out = [node.name for node, body in with_driver if _is_short_of_a_card(body)]
        kubectl.rolled_out("GPUs are offered and named", *WORKLOADS, namespace="kube-system", but=out)
    for node in offering:
        offered = ctx.settings.offered(node)
        kubectl.offered(
            f"{node.name} offers its GPUs", node.name, ctx.settings.resource, offered, more=bool(ctx.settings.mig)
        )


def _is_offering(body: Mapping[str, Any]) -> bool:
    return body["metadata"]["labels"][GATE] != rolling.TRYING and not _is_short_of_a_card(body)


def _is_short_of_a_card(body: Mapping[str, Any]) -> bool:
    conditions = {one["type"]: one["status"] for one in body["status"].get("conditions", ())}
    return conditions.get("GpusHealthy") == "False"


@step(on=ON, after=("ready",))
def caught_up(ctx: Context[Settings], driver: dict[str, Behind]) -> None:
    """Every node has that driver and all its cards: one that stays behind fails here, when the others are done."""
    if why := driver.get(ctx.node.name):
        raise why


# Removals: the last one comes first.


@removal(on=CONTROL_PLANE)
def remove_from_cluster(ctx: Context[Settings]) -> None:
    """The cluster offers no GPUs, and has no rules about them."""
    # On each control plane: what one has done the others find done.
    still = [node.name for node in ctx.settings.nodes(ctx.site) if _has_driver(node)]
    if still and not ctx.planning:
        raise MlopsError(
            f"{', '.join(still)} still offer GPUs in the cluster, whose rules stay until then",
            "./mlops remove --role gpu, with these nodes up. One that is lost: ./mlops kubectl -- delete node NAME.",
        )
    rules = ("validatingadmissionpolicybinding", "validatingadmissionpolicy")
    kubectl.absent("no rules of GPUs", *(f"{kind}/onprem-mlops-gpu" for kind in rules))
    kubectl.absent("no device plugin and no feature discovery", *WORKLOADS, *OTHERS, namespace="kube-system")
    rights = (f"{kind}/onprem-mlops-nfd-master" for kind in ("clusterrole", "clusterrolebinding"))
    kubectl.absent("no rights of feature discovery", *rights)
    for namespace in _with_quota():
        kubectl.absent(f"namespace {namespace} has no quota any more", "resourcequota/gpu", namespace=namespace)
    kubectl.folder_absent("no kinds of feature discovery", FOLDER, last=NODE_FEATURES)
    files.absent("no manifests", FOLDER, recursive=True)


def _has_driver(node: Node) -> bool:
    """Whether pods may work on a node. MlopsError if the cluster does not say."""
    answer = kubectl.api(f"/api/v1/nodes/{node.name}")
    if answer.status not in (200, 404):
        raise MlopsError(
            f"the cluster does not say whether pods work on {node.name} (HTTP {answer.status}); nothing is removed",
            "Bring the Kubernetes API up; then run the same command again.",
        )
    return answer.status == 200 and GATE in answer.body["metadata"].get("labels", {})


@removal(on=ON)
def remove(ctx: Context[Settings]) -> None:
    """No pod works with the node's GPUs, and the driver is gone with what belongs to it.

    The kernel stays: the node runs with it.
    """
    if rolling.standing(ctx.node.name, GATE).label:
        switch.emptied(ctx, "no pod works on the node", alone=False)
    for unit in (WATCH, LOOK, EXPORTER, SERVICE):
        systemd.gone(f"no {unit}", unit)
        files.absent(f"no file of {unit}", f"{UNITS}/{unit}")
    switch.as_ever()
    switch.unloaded()
    if simulated(ctx):
        simulation.gone()
    # By what is there, not by pins: the mirror may not have them any more.
    installed: dict[str, str] = fact(Packages)
    headers = tuple(name for name in installed if name.startswith("linux-headers-"))
    kernels = tuple(name for name in installed if name.startswith("linux-image-"))
    apt.released("kernels may be upgraded again", *kernels, *headers)
    drivers = tuple(name for name in installed if DRIVERS.match(name))
    apt.purged("the driver, and what builds its modules", *drivers, *headers, *TOOLS)
    programs = (f"{PROGRAMS}/onprem-gpu", f"{PROGRAMS}/onprem-gpu-watch", simulation.PROGRAM)
    commands = (f"/usr/local/bin/{name}" for name in COMMANDS)
    settings = (SOURCES, switch.NOUVEAU, simulation.QUIET, switch.NO_BUILDS, SPECIFICATION)
    files.absent("no files of the role", *programs, *commands, *settings)
    folders = (ctx.settings.folder, ENVIRONMENTS, "/etc/onprem-gpu", RUN, switch.ORDER)
    files.absent("no folders of the role", *folders, recursive=True)
    switch.no_boot_default()
    systemd.reloaded("systemd forgets the units")
    switch.forgotten(ctx)


def _cdi(ctx: Context[Settings]) -> str:
    hook = "--nvidia-cdi-hook-path=/usr/local/bin/nvidia-cdi-hook"
    where = f"--driver-root={simulation.root(ctx)} --dev-root=/ " if simulated(ctx) else ""
    return f"{where}{CDI} {hook}"


def _environment(ctx: Context[Settings]) -> str:
    return wheelhouse.environment_path(ENVIRONMENTS, ctx.files("gpu-exporter"))
