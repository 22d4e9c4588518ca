"""Modules: they hold parameters and state, and call the ops."""

from snnfast.nn.neuron import IF, LIF, ParametricLIF

__all__ = ["IF", "LIF", "ParametricLIF"]
