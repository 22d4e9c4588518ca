"""``spikingjelly.clock_driven.base``."""

from snnfast.interop.spikingjelly import peer
from snnfast.interop.spikingjelly.memory import HasMemories

__all__ = ["MemoryModule"]


class MemoryModule(HasMemories):
    """A module with memories; define ``forward``."""


__getattr__ = peer.names(__name__)
