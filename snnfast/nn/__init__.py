"""Modules: they hold parameters and state, and call the ops."""

from snnfast.nn.batch_norm import BatchNormLIF
from snnfast.nn.checkpoint import checkpoint_spikes
from snnfast.nn.fuse import Fusion, fuse
from snnfast.nn.neuron import IF, LIF, ParametricLIF

__all__ = [
    "IF",
    "LIF",
    "BatchNormLIF",
    "Fusion",
    "ParametricLIF",
    "checkpoint_spikes",
    "fuse",
]
