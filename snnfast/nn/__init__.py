"""Modules: they hold parameters and state, and call the ops."""

from snnfast.nn.batch_norm import BatchNormLIF
from snnfast.nn.checkpoint import checkpoint_spikes
from snnfast.nn.fuse import Fusion, fuse
from snnfast.nn.neuron import IF, LIF, Neuron, ParametricLIF

__all__ = [
    "IF",
    "LIF",
    "BatchNormLIF",
    "Fusion",
    "Neuron",
    "ParametricLIF",
    "checkpoint_spikes",
    "fuse",
]
