"""Networks as NIR graphs (Pedersen et al. 2024, arXiv 2311.14641) and back.

NIR gives neurons as differential equations, in seconds, without a time axis. What a graph leaves open
is settled as SpikingJelly and snnTorch do: Euler steps of ``dt``, all inputs of a node added.

    LIF      tau = dt tau,  v_leak = v_reset,  r = 1 with decay_input, else tau / dt
             with beta: tau = dt / (1 - beta),  v_leak = 0,  r = tau / dt
    IF       r = 1 / dt
    batch    three nodes, each of one rounding: an affine 1 y - mean, a Scale by weight / sqrt(var +
    norm     eps), an affine 1 y + bias. Affines are Affine on [F], else convolutions of one pixel

A node's metadata has what NIR has no word for; readers that know nothing of it lose no parameter.
"""

import graphlib
import keyword
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from snnfast import neurons
from snnfast.interop.packages import require
from snnfast.nn import (
    IF,
    LIF,
    BatchNormLIF,
    BatchNormNeuron,
    CubaLIF,
    Neuron,
    ParametricLIF,
    Synaptic,
)
from snnfast.nn.fuse import unfused
from snnfast.nn.neuron import BaseNeuron
from snnfast.nn.over_time import over_time
from snnfast.nn.stateful import Stateful
from snnfast.ops.validation import check_positive, type_name
from snnfast.reference.norm_lif import inverse_std

DT = 1e-4
"""Seconds of a timestep, where nothing is said: that of SpikingJelly and snnTorch."""

_LAYERS = (
    "Conv1d, Conv2d, Linear, AvgPool2d, AdaptiveAvgPool2d, LPPool2d of norm_type 1, Flatten, Dropout, "
    "BatchNorm1d, BatchNorm2d, BatchNormLIF, BatchNormNeuron, IF, LIF, ParametricLIF, CubaLIF, Leaky "
    "and Synaptic, and sums"
)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


class Scale(nn.Module):
    """``x * scale``, of x [T, B, ...] and ``scale`` that broadcasts to a timestep."""

    def __init__(self, scale: Tensor):
        super().__init__()
        self.scale = nn.Parameter(scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale
