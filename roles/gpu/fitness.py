"""What a node has, and whether its driver can work there: asked before anything is touched."""

from __future__ import annotations

from onprem_mlops.engine.facts import probe
from onprem_mlops.errors import MlopsError
from onprem_mlops.roles import Context

from . import cards
from .pins import ARCHIVE, ARTIFACT, KINDS, PROPRIETARY, Modules, Pins, numbers, resolved
from .running import BOOT_DEFAULT
from .settings import Settings

SIGNER = "/var/lib/dkms/mok.pub"
"""What DKMS signs modules with, where Secure Boot asks for it."""


def pins(ctx: Context[Settings]) -> Pins:
    """Driver and kernel of the current node. MlopsError if the mirror does not have them."""
    nvswitch = not simulated(ctx) and cards.has_nvswitch(_listing())
    offers = ctx.package_offers(ARCHIVE)
    return resolved(offers, ctx.settings.driver, ctx.settings.kernel, _modules(ctx), nvswitch=nvswitch)


def simulated(ctx: Context[Settings]) -> bool:
    """Whether the current node's cards are not real."""
    return ctx.settings.simulated(ctx.node)


def _modules(ctx: Context[Settings]) -> Modules:
    if ctx.settings.modules != "auto":
        return KINDS[ctx.settings.modules]
    return PROPRIETARY if simulated(ctx) else KINDS[cards.fitting_modules(_cards())]


def _listing() -> str:
    return probe(cards.LISTED).text


def _cards() -> tuple[cards.Card, ...]:
    return cards.cards(_listing())


def refuse_misfits(ctx: Context[Settings]) -> None:
    """MlopsError if the current node's release, cards or firmware do not take the driver of its pins."""
    codename = probe('. /etc/os-release; echo "$VERSION_CODENAME"').text.strip()
    if codename != "bookworm":
        raise MlopsError(
            f"{ctx.node.name} runs Debian {codename}, and the mirror has drivers for bookworm (12) only",
            "Take the node out of group gpu, or install Debian 12 on it.",
        )
    chosen = pins(ctx)
    if simulated(ctx):
        return
    if wrong := cards.misfits(chosen.driver, chosen.modules.kind, _cards()):
        raise MlopsError(
            f"{ctx.node.name}: driver {chosen.driver} does not fit: {'; '.join(wrong)}",
            "Choose another driver or other modules in settings.gpu of site.yaml, or take the card out.",
        )
    _refuse_halves(ctx)
    _refuse_older_kernel(ctx, chosen)
    if secure_boot() and not probe(f"mokutil --test-key {SIGNER} | grep -q 'already enrolled'").ok:
        raise MlopsError(
            f"{ctx.node.name} has Secure Boot on, and would refuse modules that are signed with {SIGNER}",
            f"Once, on the node: apt-get install mokutil openssl; mkdir -p /var/lib/dkms; openssl req -new -x509 "
            f"-nodes -days 36500 -subj '/CN=DKMS module signing key' -newkey rsa:2048 -outform DER -out {SIGNER} "
            f"-keyout {SIGNER[:-3]}key; mokutil --import {SIGNER}; reboot, and enrol it at the console. Or switch "
            "Secure Boot off.",
        )


def _refuse_halves(ctx: Context[Settings]) -> None:
    cut = {cards.can_be_cut(card) for card in _cards()}
    if ctx.settings.mig and len(cut) > 1:
        raise MlopsError(
            f"{ctx.node.name} has cards that can be cut into parts and cards that cannot: pods could not choose",
            "Leave settings.gpu.mig out, or put such cards into different nodes.",
        )


def _refuse_older_kernel(ctx: Context[Settings], chosen: Pins) -> None:
    """Who put a newer kernel there, from backports say, had a reason, such as a network card."""
    now = probe("uname -r").text.strip()
    if ctx.settings.kernel is None and numbers(now) > numbers(chosen.kernel) and not probe(f"[ -e {BOOT_DEFAULT} ]").ok:
        raise MlopsError(
            f"{ctx.node.name} runs kernel {now}, which is newer than any that the mirror has a driver for",
            f"Fetch what Debian has today: ./mlops mirror build --again {ARTIFACT}. Or, if the node can do with an "
            f"older one, say so: settings.gpu.kernel: {chosen.kernel}.",
        )


def secure_boot() -> bool:
    """Whether the node's firmware lets the kernel load signed modules only."""
    variable = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    return probe(f"od -An -tu1 -j4 -N1 {variable}").text.strip() == "1"


def findings(ctx: Context[Settings]) -> str:
    """What of the node matters for its driver, a line each."""
    if simulated(ctx):
        found = [f"{gpu.count} × {gpu.model}, SIMULATED" for gpu in ctx.node.facts.gpus]
    else:
        found = [str(card) for card in _cards()]
        found += ["NVSwitch"] if cards.has_nvswitch(_listing()) else []
    groups = probe("ls /sys/kernel/iommu_groups | wc -l").text.strip()
    lines = (
        *found,
        f"kernel modules: {_modules(ctx).kind}",
        f"Secure Boot: {'on' if secure_boot() else 'off'}",
        f"IOMMU: {f'{groups} groups' if groups.strip('0') else 'off'}",
    )
    return "".join(f"{line}\n" for line in lines)
