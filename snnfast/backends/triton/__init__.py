"""Triton on CUDA tensors, and on CPU tensors under its interpreter: default on a GPU."""

import torch

from snnfast.backends.triton.distill import scale_gradient, stepwise_loss, tssd_loss
from snnfast.backends.triton.launch import available, details
from snnfast.backends.triton.lif import lif_backward, lif_forward, norm_lif_dy
from snnfast.backends.triton.neuron import neuron_backward, neuron_forward
from snnfast.backends.triton.norm_lif import norm_dy, norm_finish, norm_prepare, norm_stats
from snnfast.backends.triton.spikes import pack_spikes, unpack_spikes

__all__ = [
    "available",
    "details",
    "lif_backward",
    "lif_forward",
    "neuron_backward",
    "neuron_forward",
    "norm_dy",
    "norm_finish",
    "norm_lif_dy",
    "norm_prepare",
    "norm_stats",
    "pack_spikes",
    "scale_gradient",
    "stepwise_loss",
    "tssd_loss",
    "unpack_spikes",
]
CAPABILITIES = {"recomputes_dx": (torch.float32,)}
"""Counted for sm_90, T = 4 to 8, per neuron and timestep. A pass that computes dX takes 29 to 33
instructions, one that reads it 12; an H200 issues 4.5 in the time of a byte (0.65 of four a cycle,
90 % of 4.8 TB/s). A pass takes the longer of the two, in instructions:

    float32    recomputed, 8 and 12 bytes: 36 + 54     kept, 12 and 12 bytes: 54 + 54
    half       recomputed, 4 and 6 bytes: 29 + 29, 33 + 33   kept, 6 and 6 bytes: 30 + 27, 34 + 27

(An A100 issues 7.5 in that time and would save a sixth in half precision, too.)
"""
