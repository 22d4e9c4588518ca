"""The peers' own modules with the equations of ours, each as its users run it over time.

In ``MODULES`` each entry makes, for T steps, a layer x [T, ...] -> outputs [T, ...] with our
numbers. Where an entry is missing no package that we know has that neuron.
"""

import importlib
import inspect
import operator
from collections.abc import Callable

import torch
from neuron_case import bound, surrogate
from peers import INSTALL, ROUNDING, Contender
from torch import Tensor, nn

from snnfast.program.ir import LEAVES, Program


def _snntorch(kind: str, states: int, **numbers) -> Callable:
    """A module that is called once per step, with its states."""

    def make(steps: int) -> Callable[[Tensor], Tensor]:
        surrogate = importlib.import_module("snntorch.surrogate")
        kinds = importlib.import_module("snntorch")
        module = getattr(kinds, kind)(**numbers, spike_grad=surrogate.atan(alpha=2.0))

        def layer(x):
            module.to(x.device)
            now, outputs = [torch.zeros_like(x[0]) for _ in range(states)], []
            for x_t in x:
                s, *now = module(x_t, *now)
                outputs.append(s)
            return torch.stack(outputs)

        return layer

    return make


def _jelly(module: str):
    return importlib.import_module(f"spikingjelly.activation_based.{module}")


def _spikingjelly(
    kind: str, surrogate: str = "Sigmoid", gradient: tuple = (), **numbers
) -> Callable:
    """A node over all steps at once; what it would learn is held fixed."""

    def make(steps: int) -> Callable[[Tensor], Tensor]:
        numbers["surrogate_function"] = getattr(_jelly("surrogate"), surrogate)(*gradient)
        timed = {"T": steps} if kind == "GatedLIFNode" else {}
        # In mode 'm' a LIAFNode gives its spikes.
        mode = "s" if kind == "LIAFNode" else "m"
        node = getattr(_jelly("neuron"), kind)(**timed, **numbers, step_mode=mode)
        node.requires_grad_(False)
        for name in ("alpha", "beta", "gamma") if timed else ():
            nn.init.zeros_(getattr(node, name))

        def layer(x):
            node.to(x.device)
            s = node(x) if mode == "m" else torch.stack([node(x_t) for x_t in x])
            node.reset()
            return s

        return layer

    return make


def _norse(make_module: Callable) -> Callable:
    def make(steps: int) -> Callable[[Tensor], Tensor]:
        module = make_module(importlib.import_module("norse.torch"))
        return lambda x: module.to(x.device)(x)[0]

    return make


def _norse_izhikevich(norse):
    """Ours has Izhikevich's regular spiking: d = 8, at rest v = c."""
    behaviour = norse.functional.izhikevich.create_izhikevich_spiking_behavior(
        a=0.02, b=0.2, c=-65.0, d=8.0, v_rest=-65.0, u_rest=-65.0
    )
    return norse.Izhikevich(behaviour)


SPIKINGJELLY, SNNTORCH, NORSE = "SpikingJelly", "snnTorch", "Norse"
MODULES: dict[str, tuple[str, Callable]] = {
    "adaptive_qif": (SPIKINGJELLY, _spikingjelly("IzhikevichNode")),
    "alpha": (SNNTORCH, _snntorch("Alpha", 3, alpha=0.9, beta=0.8)),
    "clif": (SPIKINGJELLY, _spikingjelly("ComplementaryLIFNode", "Rect", (1.0,))),
    "eif": (SPIKINGJELLY, _spikingjelly("EIFNode")),
    "glif": (SPIKINGJELLY, _spikingjelly("GatedLIFNode", init_linear_decay=0.0625)),
    "ilif": (SPIKINGJELLY, _spikingjelly("ILIFNode", "MultiLevelSpikeCount", (4,))),
    "izhikevich": (NORSE, _norse(_norse_izhikevich)),
    "klif": (SPIKINGJELLY, _spikingjelly("KLIFNode")),
    "lapicque": (SNNTORCH, _snntorch("Lapicque", 1, beta=0.9)),
    "leaky": (SNNTORCH, _snntorch("Leaky", 1, beta=0.9)),
    "liaf": (SPIKINGJELLY, _spikingjelly("LIAFNode", act=torch.relu, threshold_related=False)),
    "lif": (SPIKINGJELLY, _spikingjelly("LIFNode", "ATan", (2.0,))),
    "norse_lif": (NORSE, _norse(lambda norse: norse.LIF())),
    "qif": (SPIKINGJELLY, _spikingjelly("QIFNode")),
    "synaptic": (SNNTORCH, _snntorch("Synaptic", 2, alpha=0.9, beta=0.8)),
    "ternary_lif": (
        SPIKINGJELLY,
        _spikingjelly("TernaryLIFNode", tau=4.0 / 3.0, decay_input=False),
    ),
}  # fmt: skip


def peer(name: str, steps: int) -> Contender | str:
    """The module of the package that has the neuron, or why there is none."""
    if name not in MODULES:
        return "no package has a module with these equations"
    package, make = MODULES[name]
    try:
        return Contender(package, "peer", make(steps), tolerance=ROUNDING)
    except ImportError as error:
        return f"{package} does not import ({error}): {INSTALL}"


_SIGNS = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv,
    "neg": operator.neg, "ge": operator.ge, "gt": operator.gt, "le": operator.le,
    "lt": operator.lt, "eq": operator.eq, "ne": operator.ne, "and": operator.and_,
    "or": operator.or_, "not": operator.invert,
}  # fmt: skip


def _core(program: Program, inputs: int, states: int, spike: Callable) -> Callable:
    """The step as FlexSN takes it: a function of tensors by position, numbers as numbers."""

    def core(*tensors):
        values = []
        for op, args, number in program.nodes:
            if op in LEAVES:
                values.append(tensors[int(number) + inputs * (op == "state")])
            elif op == "const":
                values.append(number)
            elif op == "spike":
                values.append(spike(values[args[0]]))
            else:
                function = _SIGNS.get(op) or getattr(torch, op)
                values.append(function(*(values[a] for a in args)))
        return tuple(values[r] for r in program.results)

    kind = inspect.Parameter.POSITIONAL_ONLY
    names = [inspect.Parameter(f"t{k}", kind) for k in range(inputs + states)]
    core.__signature__ = inspect.Signature(names)
    return core


def flexsn(name: str) -> Contender | str:
    """SpikingJelly's generator of CUDA kernels for neurons, of our program with its surrogate."""
    try:
        return Contender("SpikingJelly FlexSN", "peer", _flexsn(name), tolerance=ROUNDING)
    except ImportError as error:
        return f"SpikingJelly does not import ({error}): {INSTALL}"


def _flexsn(name: str) -> Callable[[Tensor], Tensor]:
    ours = surrogate(name)
    numbers = {key: value for key, value in vars(ours).items() if key != "spiking"}
    spike = getattr(_jelly("surrogate"), type(ours).__name__)(**numbers)
    call = bound(name, torch.zeros(1, 1), "reference")
    step, rest = call.plan.step, call.rest
    # A core may hold a function, not a module.
    core = _core(step.forward, step.inputs, step.states, lambda u: spike(u))
    node = _jelly("neuron").FlexSN(core, num_states=step.states, step_mode="m")

    def layer(x):
        node.states = tuple(torch.full_like(x[0], number) for number in rest)
        s = node(x)
        node.reset()
        return s

    return layer
