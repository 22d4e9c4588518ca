"""``spikingjelly.clock_driven.surrogate``."""

from snnfast.interop.spikingjelly import peer
from snnfast.interop.spikingjelly.surrogate import *  # noqa: F403

__getattr__ = peer.names(__name__)
