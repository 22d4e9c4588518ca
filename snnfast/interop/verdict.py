"""What a peer's ``judge`` says of a module."""

from typing import NamedTuple


class Verdict(NamedTuple):
    kind: str
    """"replaced", "traced", or "left"."""
    cls: type | None = None
    """The subclass of its own class that the module becomes; None where it is left."""
    reason: str | None = None
    """Of one that is left: the method or argument that blocks it."""
