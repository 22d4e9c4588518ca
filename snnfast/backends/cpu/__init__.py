"""C++ with SIMD and threads, ``snnfast._C``: default on a CPU."""

from snnfast.backends.cpu.distill import scale_gradient, stepwise_loss, tssd_loss
from snnfast.backends.cpu.launch import available
from snnfast.backends.cpu.lif import lif_backward, lif_forward
from snnfast.backends.cpu.neuron import details, neuron_backward, neuron_forward
from snnfast.backends.cpu.norm_lif import norm_dy, norm_finish, norm_prepare, norm_stats
from snnfast.backends.cpu.spikes import pack_if_spikes, pack_spikes, unpack_spikes

__all__ = [
    "available",
    "details",
    "lif_backward",
    "lif_forward",
    "neuron_backward",
    "neuron_forward",
    "norm_dy",
    "norm_finish",
    "norm_prepare",
    "norm_stats",
    "pack_if_spikes",
    "pack_spikes",
    "scale_gradient",
    "stepwise_loss",
    "tssd_loss",
    "unpack_spikes",
]
CAPABILITIES = {"samples": True}
