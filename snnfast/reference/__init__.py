"""Every op in plain PyTorch: the specification that all backends are held to.

Runs on any device and in float64, needs torch only, and gets its gradients from autograd (not from
a hand-written adjoint), so that the kernels' adjoints are checked against something independent.
Slow and memory-hungry by design.
"""

from snnfast.reference.distill import stepwise_loss, tssd_loss
from snnfast.reference.lif import charge, lif
from snnfast.reference.neuron import neuron, spike, ternary_spike
from snnfast.reference.norm_lif import channel_stats, inverse_std, norm_lif, normalise
from snnfast.reference.spikes import pack_spikes, unpack_spikes

__all__ = [
    "channel_stats",
    "charge",
    "inverse_std",
    "lif",
    "neuron",
    "norm_lif",
    "normalise",
    "pack_spikes",
    "spike",
    "stepwise_loss",
    "ternary_spike",
    "tssd_loss",
    "unpack_spikes",
]
