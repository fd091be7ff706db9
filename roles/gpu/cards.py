"""NVIDIA's cards as the PCI bus shows them, and which driver fits them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

LISTED = "lspci -Dnnmm -d 10de:"
"""Lists NVIDIA's devices with their numbers and the names that the node's pci.ids has for them."""

_LINE = re.compile(r'(?P<bus>\S+) "[^"]*\[(?P<kind>[0-9a-f]{4})\]" "[^"]*" "(?P<name>[^"]*) \[(?P<id>[0-9a-f]{4})\]"')
_DISPLAY = ("0300", "0302")
"""PCI classes of cards: with a display (VGA) and without (3D controller). Their audio and USB parts are others."""
_BRIDGES = "0680"
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
GENERATIONS = {
    "GM": Generation("Maxwell", 340, 580, _OLD),
    "GP": Generation("Pascal", 367, 580, _OLD),
    "GV": Generation("Volta", 384, 580, _OLD),
    "TU": Generation("Turing", 410),
    "GA": Generation("Ampere", 450),
    "AD": Generation("Ada Lovelace", 525),
    "GH": Generation("Hopper", 525),
    "GB": Generation("Blackwell", 570, None, ("open",)),
}
"""By the first letters of a chip's name. Source: NVIDIA's list of supported chips and of what its open modules need."""


@dataclass(frozen=True)
class Card:
    """A card on the bus."""

    bus: str
    """PCI address, such as 0000:17:00.0."""
    number: str
    """PCI device number, four hex digits."""
    chip: str
    """Such as GH100; empty if the node's pci.ids does not know the number."""
    model: str
    """Such as `H100 PCIe`."""

    @property
    def generation(self) -> Generation | None:
        """None for a card that is newer than the node's pci.ids, or older than the table."""
        return GENERATIONS.get(self.chip[:2])

    @property
    def memory_gb(self) -> int | None:
        """Memory in GB as the model's name tells it; None if it does not: the driver knows it."""
        found = re.search(r"\b(\d+)\s?GB\b", self.model)
        return int(found[1]) if found else None


def cards(listing: str) -> tuple[Card, ...]:
    """The cards of what `LISTED` prints."""
    found = (match for match in map(_LINE.match, listing.splitlines()) if match and match["kind"] in _DISPLAY)
    return tuple(_card(match["bus"], match["id"], match["name"]) for match in found)


def has_nvswitch(listing: str) -> bool:
    """Whether the cards are joined by NVSwitch, which needs NVIDIA's fabric manager."""
    return any(match["kind"] == _BRIDGES for match in map(_LINE.match, listing.splitlines()) if match)


def _card(bus: str, number: str, name: str) -> Card:
    named = re.fullmatch(r"([A-Z]{2}\w+) \[(.*)\]", name)
    return Card(bus, number, named[1], named[2]) if named else Card(bus, number, "", "")


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
        yield f"{card.bus} [10de:{card.number}] {card.chip or '(not in pci.ids)'} is of no generation known here"
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


LIBRARIES = "/usr/lib/x86_64-linux-gnu/nvidia/current"
"""Where Debian's packages have the driver's libraries."""


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
