"""The neurons of other packages, run over time: what ``snnfast.neurons`` is compared with."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch


def package(name: str):
    return pytest.importorskip(name, reason="make peers installs it")


class Peer(NamedTuple):
    run: Callable
    """(x, parameters as ours are called) -> outputs, and the states after the last step."""
    surrogate: str
    numbers: tuple[str, ...] | None = None
    """Its parameters are tensors, but for these; None: all are numbers."""
    has: Callable[[dict], bool] = lambda parameters: True
    """Whether it can do what these parameters ask for."""


def _over_time(step, x, states):
    """``step(x_t, *states)`` -> (s, *states), over time."""
    outputs = []
    for x_t in x:
        s, *states = step(x_t, *states)
        outputs.append(s)
    return torch.stack(outputs), *states


def _snntorch(kind: str, states: int):
    def run(x, parameters):
        atan = package("snntorch.surrogate").atan(alpha=2.0)
        if kind == "Lapicque":
            both = parameters["R"] is not None and parameters["C"] is not None
            parameters = {k: False if v is None else v for k, v in parameters.items()}
            parameters["beta"] = False if both else parameters["beta"]
        module = getattr(package("snntorch"), kind)(spike_grad=atan, **parameters)
        return _over_time(module, x, [torch.zeros_like(x[0])] * states)

    return Peer(run, "atan", numbers=())


def _as_norse_resets(parameters) -> bool:
    return parameters["v_reset"] is not None and not parameters["detach_reset"]


def _norse(kind: str, *more: str):
    """``more``: its states besides v and i."""

    def run(x, parameters):
        module = package(f"norse.torch.functional.{kind}")
        camel = {"lif": "LIF", "lif_adex": "LIFAdEx"}[kind]
        step = getattr(module, f"{kind}_feed_forward_step")
        state = getattr(module, f"{camel}FeedForwardState")
        dt = parameters.pop("dt")
        parameters.pop("detach_reset")
        if "delta_t" in parameters:
            parameters["delta_T"] = parameters.pop("delta_t")
        p = getattr(module, f"{camel}Parameters")(method="super", alpha=100.0, **parameters)

        def one(x_t, *states):
            s, after = step(x_t, state(*states), p, dt)
            return s, *(getattr(after, name) for name in ("v", "i", *more))

        rest = torch.zeros_like(x[0])
        return _over_time(one, x, (p.v_leak.expand_as(x[0]), *[rest] * (1 + len(more))))

    return Peer(run, "super_spike", ("dt",), _as_norse_resets)


def _cuba_lif(x, p):
    """A NIR graph's node as Norse runs it: two leaky boxes."""
    current = package("norse.torch.functional.leaky_integrator_box")
    potential = package("norse.torch.functional.lif_box")
    leak = current.LIBoxParameters(tau_mem_inv=1 / p["tau_syn"], v_leak=torch.tensor(0.0))
    box = potential.LIFBoxParameters(
        tau_mem_inv=1 / p["tau_mem"], v_leak=p["v_leak"], v_th=p["v_threshold"],
        v_reset=p["v_reset"], method="super", alpha=100.0,
    )  # fmt: skip

    def step(x_t, v, i):
        y, i = current.li_box_feed_forward_step(
            p["w_in"] * x_t, current.LIBoxState(i), leak, p["dt"]
        )
        s, state = potential.lif_box_feed_forward_step(
            p["r"] * y, potential.LIFBoxFeedForwardState(v), box, p["dt"]
        )
        return s, state.v, i.v

    return _over_time(step, x, (p["v_leak"].expand_as(x[0]), torch.zeros_like(x[0])))


def _izhikevich(x, p):
    norse = package("norse.torch.functional.izhikevich")
    numbers = norse.IzhikevichParameters(
        p["a"], p["b"], p["c"], p["d"], v_th=p["v_th"], tau_inv=1000.0 * p["dt"], method="super"
    )

    def step(x_t, v, u):
        s, state = norse.izhikevich_feed_forward_step(
            x_t, norse.IzhikevichState(v, u), numbers, 0.001
        )
        return s, state.v, state.u

    start = (p["c"], p["b"] * p["c"])
    return _over_time(step, x, [torch.full_like(x[0], number) for number in start])


def _jelly():
    package("spikingjelly.activation_based.neuron")
    return package("spikingjelly.activation_based")


def _spikingjelly(kind: str, states=("v",), surrogate="Sigmoid", names=None):
    """``names``: what is called otherwise there."""

    def run(x, parameters):
        jelly = _jelly()
        arguments = {(names or {}).get(k, k): v for k, v in parameters.items()}
        amplitude, k = arguments.pop("amplitude", 1.0), arguments.pop("k", None)
        if kind == "ILIFNode":
            function = jelly.surrogate.MultiLevelSpikeCount(arguments.pop("levels"))
        else:
            function = getattr(jelly.surrogate, surrogate)()
        if "act" in arguments:
            arguments["act"] = getattr(torch, arguments["act"])
        node = getattr(jelly.neuron, kind)(surrogate_function=function, **arguments)
        if k is not None:
            node.k.data.fill_(k)
        # Called with several steps at once, a LIAFNode gives its spikes.
        node.step_mode = "s" if kind == "LIAFNode" else "m"
        s = torch.stack([node(x_t) for x_t in x]) if node.step_mode == "s" else node(x)
        return s * amplitude, *(getattr(node, state) for state in states)

    return Peer(run, surrogate.lower())


def _glif(x, p):
    jelly = _jelly()

    def step(x_t, v, s):
        s, v = jelly.functional.gated_lif_step(
            x_t, v, s, **p, surrogate_function=jelly.surrogate.Sigmoid()
        )
        return s, v, s

    return _over_time(step, x, [torch.zeros_like(x[0])] * 2)


def _as_boxes(parameters) -> bool:
    """They take inverse times: the same where those are exact."""
    return _as_norse_resets(parameters) and math.frexp(parameters["dt"])[0] == 0.5


PEERS = {
    "adaptive_qif": _spikingjelly("IzhikevichNode", ("v", "w")),
    "adex": _norse("lif_adex", "a"),
    "alpha": _snntorch("Alpha", 3),
    "clif": _spikingjelly("ComplementaryLIFNode", ("v", "m"), "Rect"),
    "cuba_lif": Peer(_cuba_lif, "super_spike", ("dt",), _as_boxes),
    "eif": _spikingjelly("EIFNode", names={"delta_t": "delta_T"}),
    "glif": Peer(_glif, "sigmoid", ()),
    "ilif": _spikingjelly("ILIFNode", surrogate="Rect"),
    "izhikevich": Peer(_izhikevich, "super_spike", has=lambda p: not p["detach_reset"]),
    "klif": _spikingjelly("KLIFNode"),
    "lapicque": _snntorch("Lapicque", 1),
    "leaky": _snntorch("Leaky", 1),
    "liaf": _spikingjelly("LIAFNode", names={"activation": "act"}),
    "norse_lif": _norse("lif"),
    "qif": _spikingjelly("QIFNode"),
    "synaptic": _snntorch("Synaptic", 2),
    "ternary_lif": _spikingjelly("TernaryLIFNode"),
}
"""{a name of snnfast.neurons: who else has it}."""
