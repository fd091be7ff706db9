"""A text that must not be seen by accident."""

from __future__ import annotations

import hmac


class Hidden:
    """A secret in memory. Printing, formatting and logging it show a mask; ``reveal()`` gives the text."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "Hidden(…)"

    def __str__(self) -> str:
        return "…"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hidden) and hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash(("Hidden", self._text))

    def __reduce__(self) -> str:
        raise TypeError("a hidden text is not pickled")
