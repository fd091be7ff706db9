"""From one driver to another on a node of a running cluster: emptied, changed, loaded or booted, and let in again."""

from __future__ import annotations

import json
import shlex
from typing import Any

from onprem_mlops.endpoint import endpoint
from onprem_mlops.engine.facts import probe
from onprem_mlops.engine.operations import apt, files, rolling, shell, systemd
from onprem_mlops.engine.operations.kubectl import KUBECTL
from onprem_mlops.errors import MlopsError
from onprem_mlops.roles import Context
from onprem_mlops.shell import Endpoint

from .fitness import SIGNER, secure_boot, simulated
from .pins import KINDS, Pins
from .running import BOOT_DEFAULT, RUN, SPECIFICATION, Running, asking, told
from .settings import Settings

GATE = "onprem-mlops.local/gpu-driver"
"""Label of a node whose driver is there, with its version: what uses the driver in the cluster waits for it."""
OWN = "onprem-mlops.local/role=gpu"
"""Label of the role's pods in namespace kube-system: those that use the driver leave before it changes."""
CONTROL_PLANE = "control_plane"

NOUVEAU = "/etc/modprobe.d/onprem-mlops-nouveau.conf"
NO_BUILDS = "/etc/dkms/no-autoinstall"
RAMDISKS = "/etc/initramfs-tools/update-initramfs.conf"

SERVICE, WATCH, EXPORTER = "onprem-gpu.service", "onprem-gpu-watch.timer", "onprem-gpu-exporter.service"
LOOK = "onprem-gpu-watch.service"
OFFERING = "/etc/onprem-gpu/offering.json"
"""How the device plugin offers the cards: whole, in parts, or by turns. It changes while no pod holds one."""
FOUND_WRONG = f"{RUN}/watch"
"""What the last look found wrong with the cards: a list in JSON."""
GOOD = f"[ \"$(cat {FOUND_WRONG})\" = '[]' ]"
"""Shell: whether the last look found all cards well."""
PERSISTENCED = "nvidia-persistenced"
PERSISTENCE, FABRIC = f"{PERSISTENCED}.service", "nvidia-fabricmanager.service"
UNITS = "/etc/systemd/system"
ORDER = f"{UNITS}/{FABRIC}.d"
"""What a node with NVSwitch adds to the unit of its fabric manager."""


def running(ctx: Context[Settings]) -> Running:
    """What the current node runs with."""
    return told(probe(asking(simulated=simulated(ctx))).text)


def offering(ctx: Context[Settings]) -> str:
    """The configuration of the device plugin and of feature discovery on the current node, in JSON."""
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
    shares = [{"name": ctx.settings.resource, "replicas": ctx.settings.shared_by}]
    turns = {"sharing": {"timeSlicing": {"failRequestsGreaterThanOne": True, "resources": shares}}}
    return json.dumps({"version": "v1", "flags": flags, **(turns if ctx.settings.shared_by > 1 else {})})


def is_there(ctx: Context[Settings], pins: Pins) -> bool:
    """Whether the node runs with the pinned kernel and driver, its libraries are of that version, and cards are cut."""
    format_ = "'${Package} ${Version} ${db:Status-Status}\\n'"
    installed = probe(f"dpkg-query -W -f {format_} {' '.join(pins.driver_packages)}").text.splitlines()
    wanted = [f"{name} {version} installed" for name, version in pins.driver_packages.items()]
    now = Running(pins.kernel, pins.driver, pins.modules.kind, ctx.settings.mig or "")
    return running(ctx) == now and sorted(installed) == sorted(wanted)


def archive(ctx: Context[Settings], pins: Pins) -> str:
    """Where a node keeps built modules. Nodes are alike in all that is in its name."""
    # With Secure Boot a node takes only what it has signed itself.
    signer = probe(f"sha256sum <{SIGNER} | cut -c 1-8").text.strip() if secure_boot() else ""
    kind = "" if pins.modules.kind == "proprietary" else pins.modules.kind
    name = "-".join(one for one in (pins.driver, pins.kernel, kind, signer) if one)
    return f"{ctx.settings.folder}/modules/{name}.tar.gz"


def brought(ctx: Context[Settings], pins: Pins) -> MlopsError | None:
    """The node has the pinned driver and offers its cards as wanted; pods come, unless a person cordoned it.

    Returns why it stays cordoned, and as it is: one of its cards does not answer.
    """
    there = is_there(ctx, pins)
    wanted = offering(ctx)
    offered = probe(f"grep -qxF {shlex.quote(wanted)} {OFFERING}").ok
    if there:
        # The kernel that boots next is the one that the driver runs with.
        boot_default(ctx, pins.kernel)
    stands = rolling.standing(ctx.node.name, GATE)
    rolling.unmarked("a person let the node in", ctx.node.name, stands)
    if there and offered and stands.label == pins.driver and not stands.ours:
        return None
    if stands.ours and stands.mark != rolling.DEPLOY and (wrong := _looked(ctx, driver_too=there)):
        return _silent(ctx, wrong)
    # A node that an earlier deploy began to empty has its label as long as nothing was changed. Where it is only to be
    # let in, what gave up its cards looks at them anew, and pods stay.
    half_done = stands.mark == rolling.DEPLOY and stands.label != pins.driver
    drain = not (there and offered) or half_done or stands.label == rolling.TRYING
    if not there:
        _fetch(ctx, pins)
    what = "no pod works on the node" if drain else "what offers the cards begins anew"
    emptied(ctx, what, drain=drain)
    files.content("how the cards are offered", OFFERING, f"{wanted}\n")
    if not there:
        _install(ctx, pins)
        _begin(ctx, pins)
    # Where pods stayed, they may hold all cards.
    _let_in(ctx, pins, trial=_trial(ctx) if drain else None)
    return None


def _fetch(ctx: Context[Settings], pins: Pins) -> None:
    """What will be installed lies on the node before it is emptied: a mirror that is away costs no pod its place."""
    names = [f"{name}={version}" for name, version in pins.driver_packages.items()]
    apt.fetched("the driver's packages lie on the node", *names, *(() if simulated(ctx) else (PERSISTENCED,)))


def _let_in(ctx: Context[Settings], pins: Pins, *, trial: dict[str, Any] | None) -> None:
    """Pods come again. MlopsError if a card does not answer: then the other nodes stay as they are, too."""
    watched()
    if wrong := _looked(ctx, driver_too=True):
        raise _silent(ctx, wrong)
    rolling.let_in(
        "the node offers its GPUs, and pods come again",
        ctx.node.name,
        _planes(ctx),
        label=GATE,
        value=pins.driver,
        resource=ctx.settings.resource,
        least=ctx.settings.offered(ctx.node),
        trial=trial,
    )


def _trial(ctx: Context[Settings]) -> dict[str, Any]:
    """A pod that asks for a GPU of the current node and looks for it: what every job does that comes after it."""
    container = {
        "name": "trial",
        "image": ctx.image("image-netcheck"),
        "command": ["sh", "-c", "ls -d /dev/nvidia[0-9]*"],
        "resources": {
            "requests": {"cpu": "10m", "memory": "16Mi"},
            "limits": {ctx.settings.resource: 1, "memory": "64Mi"},
        },
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {
        "containers": [container],
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}},
    }


def watched() -> None:
    """Metrics are served, and somebody looks whether all cards answer."""
    systemd.service("metrics of the cards", EXPORTER, configuration=(f"{UNITS}/{EXPORTER}",))
    systemd.service("the look whether all cards answer", WATCH, configuration=(f"{UNITS}/{WATCH}",))


def _looked(ctx: Context[Settings], *, driver_too: bool) -> list[str]:
    """What a look finds wrong now, after another try to load the driver, if that had failed."""
    shell.run(
        "a look whether all cards answer", f"systemctl start {SERVICE}; systemctl start {LOOK} || true", unless=False
    )
    return [] if ctx.planning else _wrong_cards(driver_too=driver_too)


def emptied(ctx: Context[Settings], what: str, *, drain: bool = True, alone: bool = True) -> None:
    """Nothing on the node uses its cards; without `drain` only what offers them has let go of them."""
    rolling.emptied(
        what,
        ctx.node.name,
        _planes(ctx),
        label=GATE,
        leaving=OWN,
        resource=ctx.settings.resource,
        drain=drain,
        seconds=ctx.settings.drain_minutes * 60,
        alone=alone,
    )


def forgotten(ctx: Context[Settings]) -> None:
    """The cluster knows nothing of the node's GPUs any more, and pods come to it, unless a person cordoned it."""

    def script(kubectl: str, what: str) -> str:
        keys = f"^(nvidia\\.com/|nfd\\.node\\.kubernetes\\.io/|{GATE}$|{rolling.EMPTIED}$)"
        names = {"name": ctx.node.name, "keys": keys, "resource": ctx.settings.resource, "mark": rolling.EMPTIED}
        return f"sh -c {shlex.quote(ctx.render('forget.sh.j2', kubectl=kubectl, **names))} forget {what}"

    rolling.told(
        "nothing in the cluster says that the node has GPUs",
        _planes(ctx),
        script(KUBECTL, "forget"),
        unless=script(rolling.OWN_KUBECTL, "check"),
    )


def _planes(ctx: Context[Settings]) -> list[Endpoint]:
    return [endpoint(ctx.site, node) for node in ctx.nodes(CONTROL_PLANE)]


def _wrong_cards(*, driver_too: bool) -> list[str]:
    """What the last look found wrong: with the cards, and with the driver unless that is about to be laid down anew."""
    wrong: list[str] = json.loads(probe(f"cat {FOUND_WRONG}").text or '["the driver was not looked at"]')
    return [one for one in wrong if driver_too or not one.startswith("the driver")]


def _silent(ctx: Context[Settings], wrong: list[str]) -> MlopsError:
    return MlopsError(
        f"{ctx.node.name} stays cordoned: {'; '.join(wrong)}",
        "`journalctl -u onprem-gpu-watch` there says since when; reseat the card or boot the node. If it came with a "
        "new driver or kernel, the pins before are the way back. To go on without the card, give the number of cards "
        "that are left in facts.gpus of site.yaml. Then deploy again.",
    )


def _install(ctx: Context[Settings], pins: Pins) -> None:
    """Packages and modules of the driver. The modules were built before: the packages' own scripts build none."""
    # It would call a driver that is half changed a broken card.
    watching = f"systemctl -q is-active {WATCH} || systemctl -q is-active {LOOK}"
    shell.run("nobody looks at the cards meanwhile", f"systemctl stop {WATCH} {LOOK}", unless=f"! {{ {watching}; }}")
    try:
        files.content("nothing is built while the node is empty", NO_BUILDS, "")
        # Each of the packages asks for one anew.
        files.set_aside("initial ramdisks wait", RAMDISKS)
        files.content("no initial ramdisk for each package", RAMDISKS, "update_initramfs=no\n")
        for other in KINDS.values():
            if other is not pins.modules:
                apt.purged(f"no {other.kind} kernel modules", other.source, other.support)
        apt.pinned(f"driver {pins.driver}", pins.driver_packages)
    finally:
        as_ever()
    # It holds nothing of the driver; what it must know is that nouveau keeps off.
    current = f"[ /boot/initrd.img-{pins.kernel} -nt {NOUVEAU} ]"
    shell.run("the initial ramdisk knows of nouveau", f"update-initramfs -u -k {pins.kernel}", unless=current)
    installed_modules(ctx, pins)
    chosen = pins.modules.alternative
    shell.run(
        f"the {pins.modules.kind} modules are what is loaded",
        f"update-alternatives --set nvidia {chosen}",
        unless=f'[ "$(readlink /etc/alternatives/nvidia)" = {chosen} ]',
    )
    boot_default(ctx, pins.kernel)


def installed_modules(ctx: Context[Settings], pins: Pins) -> None:
    """The modules lie where the pinned kernel finds them when it boots."""
    install = ctx.render("install.sh.j2", pins=pins, archive=archive(ctx, pins))
    shell.run(
        f"modules for kernel {pins.kernel}",
        f"sh -c {shlex.quote(install)}",
        unless=f'[ "$(modinfo -F version {pins.modules.file(pins.kernel)} 2>/dev/null)" = {pins.driver} ]',
    )


def as_ever() -> None:
    """Packages build modules and initial ramdisks again, also where a deploy died while they did not."""
    files.absent("modules of others are built as ever", NO_BUILDS)
    files.brought_back("initial ramdisks are made as ever", RAMDISKS)


def _begin(ctx: Context[Settings], pins: Pins) -> None:
    """The driver runs: loaded anew if the kernel is right and nothing holds on to the old one, else by a boot."""
    systemd.service("it loads at boot", SERVICE, running=False)
    must_boot = running(ctx).kernel != pins.kernel
    if not must_boot:
        unloaded()
        shell.run("the driver is loaded", f"systemctl restart {SERVICE} || true", unless=False)
        # What does not let go of the old one is known only now.
        must_boot = not ctx.planning and not _works(ctx, pins)
    if must_boot:
        rolling.booted("the node runs with it", seconds=ctx.settings.boot_minutes * 60)
        shell.run("its boot has loaded the driver", f"systemctl start {SERVICE} || true", unless=False)
    if not ctx.planning and not _works(ctx, pins):
        now = running(ctx)
        raise MlopsError(
            f"{ctx.node.name} booted, and runs kernel {now.kernel or 'unknown'} with driver {now.driver or 'none'}; "
            f"{pins.kernel} with {pins.driver}, all its modules loaded, is wanted; no pod is sent there, and the other "
            "nodes stay as they are",
            "See `journalctl -b -u onprem-gpu` there. The way back is the version before: write it into "
            "settings.gpu.driver (or kernel) of site.yaml and deploy again; its modules are still there.",
        )
    supported(ctx, pins)


def unloaded() -> None:
    """No driver is loaded, unless something holds on to it."""
    # Device nodes go with it: the next one's may have another number.
    gone = (
        f"systemctl stop {EXPORTER} {PERSISTENCE} {FABRIC} 2>/dev/null; "
        "modprobe -r nvidia_uvm nvidia_drm nvidia_modeset nvidia nouveau 2>/dev/null; "
        f"[ -e /sys/module/nvidia ] || rm -rf {RUN}/mig /dev/nvidia*"
    )
    loaded = "[ -e /sys/module/nvidia ] || [ -e /sys/module/nouveau ]"
    shell.run("the driver that was loaded goes", gone, unless=f"! {{ {loaded}; }}")


def _works(ctx: Context[Settings], pins: Pins) -> bool:
    """Whether all that loads the driver has ended well: then containers can be told of the cards."""
    return probe(f"systemctl -q is-active {SERVICE} && [ -s {SPECIFICATION} ]").ok and is_there(ctx, pins)


def supported(ctx: Context[Settings], pins: Pins) -> None:
    """What the driver needs beside it runs. Before pods come: cards joined by NVSwitch compute nothing without it."""
    if simulated(ctx):
        return
    apt.packages("what keeps the driver loaded", PERSISTENCED)
    systemd.service("the driver stays loaded between jobs", PERSISTENCE)
    if pins.fabric_manager in pins.driver_packages:
        # Pods that come while it begins would find cards that cannot compute.
        order = f"[Unit]\nAfter={SERVICE}\nBefore=kubelet.service\n"
        files.content("it is there before the kubelet", f"{ORDER}/onprem-mlops.conf", order)
        systemd.service("cards reach each other over NVSwitch", FABRIC)


def boot_default(ctx: Context[Settings], kernel: str, *, unless_there: bool = False) -> None:
    """Boot this kernel, where the node boots by GRUB."""
    if unless_there and probe(f"[ -e {BOOT_DEFAULT} ]").ok:
        return
    files.content(f"kernel {kernel} boots", BOOT_DEFAULT, ctx.render("boot-default.cfg.j2", kernel=kernel))
    # A default that names no entry of the menu boots the menu's first one, which is the newest kernel.
    in_menu = ("menuentry_id_option .gnulinux-advanced-", f"menuentry_id_option .gnulinux-{kernel}-advanced-")
    default = f'set default="[^"]*>gnulinux-{kernel}-advanced-'
    parts = " && ".join(f"grep -q '{one}' /boot/grub/grub.cfg" for one in (*in_menu, default))
    chosen = f"{{ {parts}; }}"
    shell.run(
        f"the boot loader knows that kernel {kernel} boots",
        f"update-grub && {chosen}",
        unless=f"! command -v update-grub || ! [ -e /boot/vmlinuz-{kernel} ] || {chosen}",
    )


def no_boot_default() -> None:
    """The boot loader chooses the kernel as it did before."""
    there = probe(f"[ -e {BOOT_DEFAULT} ]").ok
    files.absent("no kernel is the boot loader's by name", BOOT_DEFAULT)
    shell.run("the boot loader chooses as ever", "update-grub", unless=not there or "! command -v update-grub")
