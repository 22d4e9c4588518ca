"""Modules: they hold parameters and state, and call the ops."""

from snnfast.nn.batch_norm import BatchNormLIF, BatchNormNeuron
from snnfast.nn.checkpoint import checkpoint_spikes
from snnfast.nn.family import (
    CLIF,
    EIF,
    GLIF,
    ILIF,
    KLIF,
    LIAF,
    QIF,
    AdaptiveLIF,
    AdaptiveQIF,
    AdEx,
    Alpha,
    CubaLIF,
    HeterogeneousLIF,
    Izhikevich,
    Lapicque,
    Leaky,
    NorseLIF,
    Synaptic,
    TernaryLIF,
)
from snnfast.nn.fuse import Fusion, fuse
from snnfast.nn.neuron import IF, LIF, Neuron, ParametricLIF
from snnfast.nn.over_time import OverTime
from snnfast.nn.plan import plan
from snnfast.nn.unroll import unroll

__all__ = [
    "CLIF",
    "EIF",
    "GLIF",
    "IF",
    "ILIF",
    "KLIF",
    "LIAF",
    "LIF",
    "QIF",
    "AdEx",
    "AdaptiveLIF",
    "AdaptiveQIF",
    "Alpha",
    "BatchNormLIF",
    "BatchNormNeuron",
    "CubaLIF",
    "Fusion",
    "HeterogeneousLIF",
    "Izhikevich",
    "Lapicque",
    "Leaky",
    "Neuron",
    "NorseLIF",
    "OverTime",
    "ParametricLIF",
    "Synaptic",
    "TernaryLIF",
    "checkpoint_spikes",
    "fuse",
    "plan",
    "unroll",
]
