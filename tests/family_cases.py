"""The neurons of ``snnfast.neurons``: one row each, with what a call may choose."""

from typing import NamedTuple

import torch

from snnfast import neurons


class Row(NamedTuple):
    scale: float
    """How strong an input makes it fire now and then."""
    options: tuple[dict, ...] = ()
    """Other parameters than the defaults."""


_RESETS = ({"v_reset": None}, {"v_reset": -0.3, "detach_reset": True})
# A soft reset does not call those back that run away.
_CALM = ({"v_reset": None, "tau": 8.0}, _RESETS[1])
_SNNTORCH = ({"reset_mechanism": "zero"}, {"reset_mechanism": "none"})
_AT_ONCE = (*_SNNTORCH, *({**how, "reset_delay": False} for how in ({}, *_SNNTORCH)))
# Times by which dividing and multiplying with the inverse are the same.
_BINARY = {"tau_syn": 2.0**-7, "tau_mem": 2.0**-6, "dt": 2.0**-10}

ROWS = {
    "adaptive_lif": Row(40.0, ({"detach_reset": True},)),
    "adaptive_qif": Row(2.0, (*_CALM, {"a": 0.3, "b": 0.2, "w_rest": 0.1})),
    "adex": Row(8.0, ({"delta_t": 0.3}, {"detach_reset": True}, {"v_reset": 0.1})),
    "alpha": Row(2.0, ({"reset_mechanism": "subtract"}, {"reset_mechanism": "none"})),
    "clif": Row(1.5),
    "cuba_lif": Row(
        20.0,
        (_BINARY, {**_BINARY, "r": 2.0, "w_in": 0.5, "v_leak": -0.2, "v_reset": 0.1}, *_RESETS),
    ),
    "eif": Row(2.0, (*_CALM, {"delta_t": 0.5})),
    "glif": Row(1.5, ({"alpha": 0.9, "beta": 0.2, "gamma": 0.3},)),
    "heterogeneous_lif": Row(2.0, (*_RESETS, {"decay_input": False}, {"tau": 5.0})),
    "ilif": Row(3.0, ({"levels": 2, "v_threshold": 0.7}, {"detach_reset": True})),
    "izhikevich": Row(60.0, ({"a": 0.1, "d": 2.0}, {"dt": 0.5}, {"detach_reset": True})),
    "klif": Row(2.0, (*_RESETS, {"k": 1.5, "scale_reset": True}, {"decay_input": False})),
    "lapicque": Row(2.0, (*_SNNTORCH, {"R": 2.0, "C": 3.0}, {"R": 2.0}, {"C": 3.0})),
    "leaky": Row(1.0, _AT_ONCE),
    "liaf": Row(
        2.0,
        (*_RESETS, {"activation": "tanh"}, {"activation": "sigmoid", "threshold_related": True}),
    ),
    "lif": Row(
        2.0,
        (
            *_RESETS,
            {"decay_input": False},
            {"tau": float("inf")},
            {"inv_tau": 0.3},
            {"beta": 0.3, "fire": ">"},
            {"v_rest": 0.2},
            {"detach_state": True},
        ),
    ),
    "norse_lif": Row(8.0, ({"v_reset": -0.3, "v_leak": -0.1}, *_RESETS)),
    "qif": Row(2.0, _CALM),
    "synaptic": Row(0.7, _AT_ONCE),
    "ternary_lif": Row(1.5, (*_RESETS, {"decay_input": True, "amplitude": 1.3})),
}

CASES = [(name, options) for name, row in ROWS.items() for options in ({}, *row.options)]
"""(neuron, parameters), of each with its defaults first."""


def neuron(name: str):
    return getattr(neurons, name)


def inputs(name: str, shape=(12, 3, 4, 10), dtype=torch.float32) -> torch.Tensor:
    """A current that wanders, so that neurons rest and fire."""
    x = torch.randn(shape, dtype=dtype) + torch.randn(shape[1:], dtype=dtype) / 2
    return x * ROWS[name].scale


def as_tensors(name: str, options: dict, dtype=torch.float32, but=(), channels=None) -> dict:
    """The parameters of a case with each number as a tensor [] that requires gradient; or one that
    differs between the channels [C]."""
    parameters = neuron(name).defaults | options
    for key, value in parameters.items():
        if isinstance(value, float) and key not in but:
            value = torch.tensor(value, dtype=dtype)
            if channels is not None:
                value = value * torch.linspace(0.95, 1.05, channels, dtype=dtype)
            parameters[key] = value.requires_grad_()
    return parameters
