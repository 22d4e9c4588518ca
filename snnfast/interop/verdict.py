"""What can be made of a module of another package."""

from typing import NamedTuple


class Verdict(NamedTuple):
    kind: str
    """"replaced", "traced" or "left"."""
    cls: type | None = None
    """The subclass of its own class that the module becomes."""
    reason: str = ""
    """Of one that is left: what stands against it."""
