"""SpikingJelly on the kernels of snnfast: its modules under its names.

    snnfast.interop.install("spikingjelly")     # above the imports of a script that runs on it

``clock_driven`` is that of 0.0.0.0.12, ``activation_based`` that of 0.0.0.0.14, ``cext.neuron``
that of 0.0.0.0.4, each with the arithmetic of its version. What there is no own one of is taken
from an installed SpikingJelly.
"""

from snnfast.interop.spikingjelly import peer
from snnfast.interop.spikingjelly.stepping import module_keys

__all__ = ["module_keys"]

__getattr__ = peer.names(__name__)
