"""``spikingjelly.clock_driven.functional``."""

from snnfast.interop.spikingjelly import peer
from snnfast.interop.spikingjelly.functions import *  # noqa: F403
from snnfast.interop.spikingjelly.stepping import (  # noqa: F401
    multi_step_forward,
    seq_to_ann_forward,
)

__getattr__ = peer.names(__name__)
