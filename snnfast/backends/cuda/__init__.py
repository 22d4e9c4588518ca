"""CUDA C++, on CUDA tensors, where asked for.

``snnfast._cuda`` holds the kernels where nvcc was found at install. Without it the same sources
(``csrc/cuda``) are compiled by NVRTC when a configuration is first used, and kept. Neither
knows torch: pointers, sizes, strides and a stream go in, packed as ``csrc`` has the structs.
"""

import torch

from snnfast.backends.cuda.distill import scale_gradient, stepwise_loss, tssd_loss
from snnfast.backends.cuda.launch import available, details
from snnfast.backends.cuda.lif import lif_backward, lif_forward, norm_lif_dy
from snnfast.backends.cuda.neuron import neuron_backward, neuron_forward
from snnfast.backends.cuda.norm_lif import norm_dy, norm_finish, norm_prepare, norm_stats
from snnfast.backends.cuda.spikes import pack_spikes, unpack_spikes

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
CAPABILITIES = {"recomputes_dx": (torch.float32, torch.float16, torch.bfloat16)}
