"""``spikingjelly.clock_driven.base``."""

from snnfast.interop.spikingjelly import peer
from snnfast.interop.spikingjelly.memory import Memories

__all__ = ["MemoryModule"]


class MemoryModule(Memories):
    """A module with memories; define ``forward``."""


__getattr__ = peer.names(__name__)
