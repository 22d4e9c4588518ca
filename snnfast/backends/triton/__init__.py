"""Triton on CUDA tensors, and on CPU tensors under its interpreter: default on a GPU."""

from snnfast.backends.channels import norm_finish, norm_prepare
from snnfast.backends.triton.distill import scale_gradient, stepwise_loss, tssd_loss
from snnfast.backends.triton.launch import available, details
from snnfast.backends.triton.lif import lif_backward, lif_forward, norm_lif_dy
from snnfast.backends.triton.norm_lif import norm_dy, norm_stats
from snnfast.backends.triton.spikes import pack_if_spikes, pack_spikes, unpack_spikes

__all__ = [
    "available",
    "details",
    "lif_backward",
    "lif_forward",
    "norm_dy",
    "norm_finish",
    "norm_lif_dy",
    "norm_prepare",
    "norm_stats",
    "pack_if_spikes",
    "pack_spikes",
    "scale_gradient",
    "stepwise_loss",
    "tssd_loss",
    "unpack_spikes",
]
CAPABILITIES = {"recomputes_dx": True}
