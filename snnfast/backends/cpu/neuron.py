"""Neurons that a program defines: as machine code where llvmlite is installed, else interpreted."""

from contextlib import contextmanager

from snnfast.backends.cpu import compiled, interpreted, launch

_asked = []


def executors() -> dict:
    """The modules that can run programs here by their names, the fastest first."""
    found = {"compiled": compiled} if compiled.available() else {}
    return {**found, "interpreted": interpreted}


def executor():
    """The module that runs programs."""
    return _asked[-1] if _asked else compiled if compiled.available() else interpreted


@contextmanager
def executed_by(name: str):
    """Runs the programs of a block that way, backward too; for tests and measurements."""
    _asked.append(executors()[name])
    try:
        yield
    finally:
        _asked.pop()


def neuron_forward(*arguments) -> None:
    executor().neuron_forward(*arguments)


def neuron_backward(*arguments) -> None:
    executor().neuron_backward(*arguments)


def details() -> str:
    if launch.available():
        return launch.details()
    how = "as machine code" if executor() is compiled else "interpreted, without snnfast[jit]"
    return f"{launch.details()}; neurons {how}"
