"""Neurons that a program defines: as machine code where llvmlite is installed, else interpreted."""

from snnfast.backends.cpu import compiled, interpreted, launch


def executor():
    """The module that runs programs."""
    return compiled if compiled.available() else interpreted


def neuron_forward(*arguments) -> None:
    executor().neuron_forward(*arguments)


def neuron_backward(*arguments) -> None:
    executor().neuron_backward(*arguments)


def details() -> str:
    if launch.available():
        return launch.details()
    how = "as machine code" if executor() is compiled else "interpreted, without snnfast[jit]"
    return f"{launch.details()}; neurons {how}"
