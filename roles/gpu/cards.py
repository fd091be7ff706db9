"""NVIDIA's cards as the PCI bus shows them, and which driver fits them. Pure.

By number, not by name: Debian's own list of names is older than the cards that people buy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

LISTED = (
    "for one in /sys/bus/pci/devices/*; do read -r vendor 2>/dev/null <$one/vendor || continue; "
    '[ "$vendor" = 0x10de ] && echo "${one##*/} $(cat $one/class) $(cat $one/device)"; done; true'
)
"""Shell: NVIDIA's devices on the bus, with class and number; needs nothing that a bare node does not have."""

LIBRARIES = "/usr/lib/x86_64-linux-gnu/nvidia/current"
"""Where Debian's packages have the driver's libraries."""

_DISPLAY = ("0x0300", "0x0302")
"""PCI classes of cards: with a display (VGA) and without (3D controller). Their audio and USB parts are others."""
_BRIDGE = "0x0680"
"""PCI class of NVSwitch."""


@dataclass(frozen=True)
class Generation:
    """Cards with one kind of chip: which driver branches know them, and which kernel modules."""

    name: str
    first: int
    last: int | None = None
    """First and last branch of the driver; None: still supported."""
    modules: tuple[str, ...] = ("proprietary", "open")


_OLD = ("proprietary",)
_MAXWELL, _PASCAL = Generation("Maxwell", 340, 580, _OLD), Generation("Pascal", 367, 580, _OLD)
_VOLTA, _TURING = Generation("Volta", 384, 580, _OLD), Generation("Turing", 410)
_AMPERE, _ADA, _HOPPER = Generation("Ampere", 450), Generation("Ada Lovelace", 525), Generation("Hopper", 525)
_BLACKWELL = Generation("Blackwell", 570, None, ("open",))

_NUMBERS: tuple[tuple[int, int, Generation], ...] = (
    (0x1340, 0x143F, _MAXWELL),
    (0x15F0, 0x15FF, _PASCAL),
    (0x1617, 0x17FD, _MAXWELL),
    (0x1B00, 0x1D7F, _PASCAL),
    (0x1D80, 0x1DFF, _VOLTA),
    (0x1E00, 0x1FFF, _TURING),
    (0x2080, 0x20FF, _AMPERE),
    (0x2180, 0x21FF, _TURING),
    (0x2200, 0x22FF, _AMPERE),
    (0x2300, 0x23FF, _HOPPER),
    (0x2400, 0x25FF, _AMPERE),
    (0x2600, 0x28FF, _ADA),
    (0x2900, 0x2FFF, _BLACKWELL),
    (0x3180, 0x31FF, _BLACKWELL),
)
"""First and last device number of a generation. Source: pci.ids, and NVIDIA's list of supported chips, which also says
what its open modules need."""

_CUT = ((0x2080, 0x20FF), (0x2300, 0x23FF), (0x2900, 0x29FF))
"""Device numbers of the chips that MIG can cut: GA100, GH100, GB100 and their kin. Source: NVIDIA's MIG user guide."""

_MODELS: dict[int, tuple[str, int]] = {
    0x1DB1: ("V100 SXM2", 16),
    0x1DB4: ("V100 PCIe", 16),
    0x1DB5: ("V100 SXM2", 32),
    0x1DB6: ("V100 PCIe", 32),
    0x1EB8: ("T4", 16),
    0x20B0: ("A100 SXM4", 40),
    0x20B2: ("A100 SXM4", 80),
    0x20B5: ("A100 PCIe", 80),
    0x20B7: ("A30", 24),
    0x20F1: ("A100 PCIe", 40),
    0x2235: ("A40", 48),
    0x2236: ("A10", 24),
    0x25B6: ("A2 or A16", 16),
    0x2330: ("H100 SXM5", 80),
    0x2331: ("H100 PCIe", 80),
    0x2335: ("H200 SXM", 141),
    0x26B5: ("L40", 48),
    0x26B9: ("L40S", 48),
    0x27B8: ("L4", 24),
    0x2901: ("B200", 180),
}
"""Model and memory in GB of the usual cards of data centres. Source: pci.ids and NVIDIA's data sheets. What is not in
here runs all the same: the driver knows it."""


@dataclass(frozen=True)
class Card:
    """A card on the bus."""

    bus: str
    """PCI address, such as 0000:17:00.0."""
    number: int
    """PCI device number."""

    @property
    def generation(self) -> Generation | None:
        """None for a card that is newer or older than the table."""
        return next((kind for first, last, kind in _NUMBERS if first <= self.number <= last), None)

    @property
    def model(self) -> str:
        """Such as `H100 PCIe`, or its number."""
        return _MODELS[self.number][0] if self.number in _MODELS else f"card 10de:{self.number:04x}"

    @property
    def memory_gb(self) -> int | None:
        """Memory in GB; None if only the driver knows it."""
        return _MODELS[self.number][1] if self.number in _MODELS else None

    def __str__(self) -> str:
        memory = f", {self.memory_gb} GB" if self.memory_gb else ""
        return f"{self.bus} {self.model}{memory}, {self.generation.name if self.generation else 'unknown generation'}"


def cards(listing: str) -> tuple[Card, ...]:
    """The cards of what `LISTED` prints."""
    return tuple(Card(bus, int(number, 16)) for bus, kind, number in _devices(listing) if kind.startswith(_DISPLAY))


def has_nvswitch(listing: str) -> bool:
    """Whether the cards are joined by NVSwitch, which needs NVIDIA's fabric manager."""
    return any(kind.startswith(_BRIDGE) for _, kind, _ in _devices(listing))


def can_be_cut(card: Card) -> bool:
    """Whether a card can be cut into parts (MIG): chips made for data centres, from A30 and A100 on."""
    return any(first <= card.number <= last for first, last in _CUT)


def _devices(listing: str) -> list[tuple[str, str, str]]:
    rows = (line.split() for line in listing.splitlines())
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3]


def misfits(driver: str, wanted: str, found: Iterable[Card]) -> tuple[str, ...]:
    """Why a driver does not fit cards, a sentence each.

    Args:
        driver: its version, such as 535.309.01.
        wanted: kernel modules: "proprietary" or "open".
        found: cards of one node.
    """
    branch = int(driver.partition(".")[0])
    return tuple(why for card in found for why in _misfits(branch, wanted, card))


def _misfits(branch: int, wanted: str, card: Card) -> Iterable[str]:
    generation = card.generation
    if generation is None:
        yield f"{card.bus} {card.model} is of no generation known here"
        return
    what = f"{card.bus} {card.model} ({generation.name})"
    if branch < generation.first:
        yield f"{what} needs driver {generation.first} or later"
    if generation.last is not None and branch > generation.last:
        yield f"{what} is supported up to driver {generation.last} only"
    if wanted not in generation.modules:
        yield f"{what} needs the {generation.modules[0]} kernel modules"


def fitting_modules(found: Iterable[Card]) -> str:
    """The kernel modules for the cards of a node: the proprietary ones, unless one of them needs the open ones."""
    needed = [card.generation.modules for card in found if card.generation]
    return "proprietary" if all("proprietary" in one for one in needed) else "open"


@dataclass(frozen=True)
class Simulated:
    """What a simulated card says of itself: memory, and CUDA's compute capability."""

    mebibytes: int
    capability: tuple[int, int]


_SIMULATED = {
    "B200": Simulated(183359, (10, 0)),
    "H200": Simulated(143771, (9, 0)),
    "H100": Simulated(81559, (9, 0)),
    "A100": Simulated(81920, (8, 0)),
    "L40": Simulated(46068, (8, 9)),
    "L4": Simulated(23034, (8, 9)),
    "T4": Simulated(15360, (7, 5)),
}
"""By a word in a model's name. Source: what nvidia-smi shows of these cards."""


def simulated(model: str) -> Simulated:
    """What a simulated card of a model says of itself; one that is not known here is like a T4."""
    return next((card for word, card in _SIMULATED.items() if word in model), _SIMULATED["T4"])
