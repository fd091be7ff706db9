"""Versions of services, as far as data depends on them."""

from __future__ import annotations

import re


def is_older(version: str, than: str) -> bool:
    """Whether a version is older than another, by their numbers alone: `1.26.4` than `1.27.0`; nothing than any."""
    return _numbers(version) < _numbers(than)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
