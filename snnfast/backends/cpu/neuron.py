"""Neurons that a program defines: as machine code where llvmlite is installed, else interpreted."""

from snnfast.backends.cpu import compiled, interpreted


def executor():
    """The module that runs programs."""
    return compiled if compiled.available() else interpreted


def neuron_forward(*arguments) -> None:
    executor().neuron_forward(*arguments)


def neuron_backward(*arguments) -> None:
    executor().neuron_backward(*arguments)
