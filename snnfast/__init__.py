"""snnfast: fast training and inference of deep spiking neural networks in PyTorch."""

from snnfast import nn, surrogate
from snnfast.info import info
from snnfast.nn.streaming import streaming
from snnfast.ops.lif import lif
from snnfast.ops.select import BackendUnavailable, backend, explain

__version__ = "0.1.0"
__all__ = [
    "BackendUnavailable",
    "__version__",
    "backend",
    "explain",
    "info",
    "lif",
    "nn",
    "streaming",
    "surrogate",
]
