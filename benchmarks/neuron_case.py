"""One point of the neuron benchmark: a neuron by its definition, as bench_lif.py looks at LIF."""

from functools import partial

import lif_case
import torch
from lif_case import Subject
from peers import ROUNDING, Contender
from torch import Tensor

from snnfast import neurons
from snnfast.ops.neuron import Bound, Definition
from snnfast.surrogate import ATan, Surrogate, resolve

SURROGATES = {
    "clif": "rect",
    "ilif": "rect",
    "norse_lif": "super_spike",
    "izhikevich": "super_spike",
} | dict.fromkeys(("lif", "leaky", "synaptic", "lapicque", "alpha"), ATan(alpha=2.0))
"""Those of the peers; the others have the sigmoid."""

INPUTS = {
    "adaptive_lif": (10.0, 40.0),
    "cuba_lif": (6.0, 20.0),
    "ilif": (1.0, 3.0),
    "izhikevich": (20.0, 60.0),
    "norse_lif": (3.0, 8.0),
}
"""Mean and deviation of an input that makes it fire now and then; the others have LIF's."""

ANALOG = ("liaf",)
_INEXACT = ("exp", "log", "tanh", "sigmoid", "pow")


def definition(name: str) -> Definition:
    """A neuron of ``snnfast.neurons``."""
    return getattr(neurons, name)


def surrogate(name: str) -> Surrogate:
    return resolve(SURROGATES.get(name, "sigmoid"))


def layer(name: str, backend: str):
    """x -> outputs on one backend."""
    return partial(definition(name), surrogate=surrogate(name), backend=backend)


def bound(name: str, x: Tensor, backend: str) -> Bound:
    """That call of x, checked: its program and where its states start."""
    return definition(name).bind(
        (x,), {}, states=None, surrogate=surrogate(name), timesteps=None, return_state=False,
        backend=backend,
    )  # fmt: skip


def exact(name: str) -> bool:
    """Whether every backend computes the same bits."""
    nodes = definition(name).program.step.forward.nodes
    return not any(node.op in _INEXACT for node in nodes)


def subject(name: str) -> Subject:
    mean, std = INPUTS.get(name, (0.5, 1.5))
    tolerance = 0.0 if exact(name) else ROUNDING
    return Subject(name, layer(name, "reference"), mean, std, name in ANALOG, tolerance)


class Case(lif_case.Case):
    """A neuron's, by its name."""

    def __init__(self, name: str, *args):
        self.subject = subject(name)
        super().__init__(*args)
        self.where = {"neuron": name, "states": len(definition(name).states), **self.where}


def torch_loop(name: str) -> Contender:
    """The definition called once per timestep in PyTorch."""
    return Contender("torch loop", "peer", layer(name, "reference"))


def compiled_loop(name: str) -> Contender:
    """The same through torch.compile (inductor), for exactly this shape."""
    torch._dynamo.reset()
    compiled = torch.compile(layer(name, "reference"), dynamic=False)
    return Contender("torch.compile'd loop", "peer", compiled, tolerance=ROUNDING, compiled=True)


def tuned(backend: str) -> Contender:
    """``snnfast.lif``, of which the program of ``neurons.lif`` is measured against."""
    return Contender(f"snnfast.lif {backend}", "probe", lif_case.ours(backend).layer)
