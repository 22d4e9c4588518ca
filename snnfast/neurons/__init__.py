"""The neurons of the field, each a few lines of PyTorch, called as ``snnfast.neuron`` says."""

from snnfast.neurons.currents import adaptive_lif, cuba_lif, norse_lif
from snnfast.neurons.deep import clif, glif, heterogeneous_lif, ilif, klif, liaf, ternary_lif
from snnfast.neurons.nonlinear import adaptive_qif, adex, eif, izhikevich, qif
from snnfast.neurons.snntorch import alpha, lapicque, leaky, synaptic
from snnfast.ops.lif_definition import lif

__all__ = [
    "adaptive_lif",
    "adaptive_qif",
    "adex",
    "alpha",
    "clif",
    "cuba_lif",
    "eif",
    "glif",
    "heterogeneous_lif",
    "ilif",
    "izhikevich",
    "klif",
    "lapicque",
    "leaky",
    "liaf",
    "lif",
    "norse_lif",
    "qif",
    "synaptic",
    "ternary_lif",
]
