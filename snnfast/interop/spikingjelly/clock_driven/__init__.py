"""``spikingjelly.clock_driven``."""

from snnfast.interop.spikingjelly import peer

__getattr__ = peer.names(__name__)
