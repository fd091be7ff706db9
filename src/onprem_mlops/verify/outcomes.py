"""How a check ends when it neither holds nor fails."""

from __future__ import annotations


class NotChecked(Exception):
    """The check could not be made: a node that cannot be reached, a cluster that does not answer."""

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice


class DoesNotApply(Exception):
    """The site has nothing that the check is about, such as a virtual address."""
