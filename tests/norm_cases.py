"""What the tests of norm_lif share: inputs, the specification, and one check of a call against it.
The neurons are those of lif_cases.py."""

import functools
import math
from typing import Any, NamedTuple

import lif_cases
import pytest
import torch
import torch.nn.functional as F
from backends import HALF
from bounds import assert_gradient
from lif_cases import LAYOUTS, Forward, agreement, assert_same, forward

import snnfast
from snnfast import reference
from snnfast.ops.select import implementation

NEURONS = [
    {},
    {"tau": 1.7, "v_reset": None, "detach_reset": True, "surrogate": "atan"},
    {"tau": 1.25, "decay_input": False, "v_reset": -0.1, "surrogate": "rect"},
    {"tau": math.inf},
    {"tau": 2.0},
    {"tau": 1.7, "decay_input": False, "v_reset": None, "surrogate": "atan"},
    {"tau": math.inf, "detach_reset": True, "surrogate": "rect"},
    {"tau": 3.0, "decay_input": False, "v_reset": -0.2},
    {"tau": 1.3, "v_reset": None, "detach_reset": True, "v_threshold": 0.8,
     "surrogate": "fast_sigmoid"},
    {"tau": math.inf, "v_reset": None},
]  # fmt: skip
_ROUNDING, _NEAR = 2.0**-21, 1e-5
"""What the rounding of statistics moves X by, four units in the last place of 1; and more."""


def axis(layer) -> int:
    """That of the channels of y."""
    return 1 if "timesteps" in layer else 2


def charge(y, residual, weight, bias, statistics=None, eps=1e-5, axis=2):
    """X, what the neurons are charged with: y normalised by the statistics, or by its own."""
    mean, var = statistics or reference.channel_stats(y, axis)
    scale = weight * reference.inverse_std(var, eps)
    return reference.normalise(y, mean, scale, bias, axis) + residual


def specification(y, residual, weight, bias, v0=None, *, statistics=None, eps=1e-5, **layer):
    """The call of snnfast.norm_lif straight from the specification: (s, v)."""
    x = charge(y, residual, weight, bias, statistics, eps, axis(layer))
    return lif_cases.specification(x, v0, **layer)


def rows(channels, generator, dtype):
    """weight, bias and running statistics."""
    drawn = torch.randn(4, channels, generator=generator)
    weight, bias, mean, var = (t.to(dtype) for t in drawn)
    return {"weight": weight.abs() + 0.5, "bias": bias, "running_mean": mean,
            "running_var": var.abs() + 0.5}  # fmt: skip


class Case(NamedTuple):
    """Inputs and what is expected of them."""

    inputs: dict[str, torch.Tensor]
    fixed: dict[str, torch.Tensor]
    """Inputs that need no gradient."""
    running: dict[str, torch.Tensor | None]
    ds: torch.Tensor | None
    dv: torch.Tensor | None
    layer: dict[str, Any]
    s: torch.Tensor
    """By the specification in the arithmetic of the dtype, as v."""
    v: torch.Tensor
    sure: torch.Tensor
    """Neurons that fire at the same steps whatever the rounding of the statistics."""
    own: dict[str, torch.Tensor]
    """The gradients in that arithmetic..."""
    exact: dict[str, torch.Tensor]
    """...and in float64."""
    scales: dict[str, float]
    through: torch.Tensor
    """The gradient of y if the statistics were constants."""
    after: dict[str, torch.Tensor]
    """The running statistics by torch's batch norm in float64."""


@functools.lru_cache(maxsize=64)
def case(T=4, shape=(3, 5, 7, 3), dtype="float32", layout="contiguous", training=False,
         static=False, residual=False, affine=True, tracked=True, fixed=(), rate=None,
         channels=False, v0=False, state=False, state_used=True, spikes_used=True, momentum=0.1,
         eps=1e-5, seed=0, **neuron) -> Case:  # fmt: skip
    """``rate``: "tau" or "inv_tau" as a tensor, [] or [C]; ``tracked``: running statistics are
    given; ``fixed``: names of inputs that need no gradient; ``neuron``: arguments of lif."""
    generator = torch.Generator().manual_seed(seed)
    draw = functools.partial(torch.randn, generator=generator)
    dtype = getattr(torch, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def laid(t):
        return LAYOUTS[layout](t)[0] if static else LAYOUTS[layout](t)

    y = laid((2 * draw(T, *shape) + 0.7).to(dtype))
    step, count = y.shape[-len(shape) :], shape[1]
    inputs = {"y": y}
    if residual:
        inputs["residual"] = laid(draw(T, *shape).to(dtype))
    running = rows(count, generator, wide)
    vectors = {name: running.pop(name) for name in ("weight", "bias")}
    if affine:
        inputs |= vectors
    if v0:
        inputs["v0"] = draw(step).to(wide) * 0.5
    if rate:
        drawn = torch.rand((count,) if channels else (), generator=generator).to(wide)
        inputs[rate] = 1.1 + 3 * drawn if rate == "tau" else 0.1 + 0.8 * drawn
    running = running if tracked else dict.fromkeys(running)
    constant = None if training or not tracked else tuple(running.values())
    timesteps = {"timesteps": T} if static else {}
    layer = neuron | {"return_state": state} | timesteps

    absent = {"residual": torch.zeros_like(y), "weight": torch.ones(count).to(wide),
              "bias": torch.zeros(count).to(wide)}  # fmt: skip
    whole = {name: inputs.get(name, absent.get(name)) for name in [*inputs, *absent]}
    doubles = {name: t.double() for name, t in whole.items()}
    singles = doubles if dtype == torch.float64 else {k: t.float() for k, t in whole.items()}
    statistics = constant and tuple(t.double() for t in constant)
    every = {"eps": eps} | neuron | timesteps | {"return_state": "all"}
    runs = [forward(specification, singles, statistics=constant, **every),
            forward(specification, doubles, statistics=statistics, **every)]  # fmt: skip

    def neurons(leaves, constant, run=None, shift=0.0):
        """What the normalisation leaves of a call: ``run``, or the one with X shifted."""
        leaves = {name: t.detach() for name, t in leaves.items()}
        x = charge(*(leaves.pop(name) for name in ("y", "residual", "weight", "bias")),
                   constant, eps, axis(layer))  # fmt: skip
        leaves = {"x": x + shift} | leaves
        if run is not None:
            return Forward(leaves, run.s.detach(), run.v.detach())
        return forward(lif_cases.specification, leaves,
                       **neuron | timesteps | {"return_state": "all"})  # fmt: skip

    seen = [neurons(singles, constant, runs[0]), neurons(doubles, statistics, runs[1])]
    if statistics is None:
        seen += [neurons(doubles, None, shift=shift) for shift in (_NEAR, -_NEAR)]
    sure = agreement(seen, **neuron)
    sure |= torch.tensor(not getattr(neuron.get("surrogate"), "spiking", True))
    assert sure.double().mean() > 0.95 or sure.numel() < 40
    runs = [run if state == "all" else run._replace(v=run.v[-1]) for run in runs]
    ds = (draw(T, *shape) * sure).to(dtype) if spikes_used else None
    dv = None
    if state and state_used:
        dv = (draw((T, *shape) if state == "all" else shape) * sure).to(wide)
    own, exact = (run.backward(ds, dv) for run in runs)
    if statistics is None:
        moved = doubles | {"bias": doubles["bias"] + _ROUNDING}
        moved = forward(specification, moved, **every | {"return_state": state}).backward(ds, dv)
        own = {n: max(own[n], moved[n], key=lambda t: (t - exact[n]).abs().max()) for n in exact}

    # A sum over neurons and steps is as uncertain as its terms are large, however small it is, and
    # once as the factor that they share.
    places = [-1 if d == axis(layer) else 1 for d in range(y.dim())]
    over = [d for d in range(y.dim()) if d != axis(layer)]
    mean, var = statistics or reference.channel_stats(doubles["y"], axis(layer))
    unit = (doubles["y"] - mean.view(places)) / (var + eps).sqrt().view(places)
    dx, scales = exact["residual"], {}
    through = dx * (doubles["weight"] / (var + eps).sqrt()).view(places)
    for name, terms in (("weight", dx * unit), ("bias", dx)):
        scales[name] = terms.norm().item() * math.sqrt(T) + exact[name].abs().max().item() / 2
    if statistics is None:
        shared = through.mean(over, keepdim=True), (through * unit).mean(over, keepdim=True)
        scales["y"] = sum(t.abs() for t in (through, shared[0], shared[1] * unit)).max().item()
    if rate:
        terms = dict(doubles)
        terms[rate] = terms[rate].view(-1, *[1] * (len(step) - 2)).expand(step)
        terms = forward(
            specification, terms, statistics=statistics, **every | {"return_state": state}
        )
        scales[rate] = terms.backward(ds, dv)[rate].norm().item() * math.sqrt(T)
        scales[rate] += exact[rate].abs().max().item()  # two factors: it is that of 1/tau

    after = {name: t.double().clone() for name, t in running.items()} if tracked else {}
    if training and tracked:
        values = doubles["y"].expand(T, *shape) if static else doubles["y"]
        F.batch_norm(values.flatten(0, 1), *after.values(), training=True, momentum=momentum)
    layer |= {"training": training, "momentum": momentum, "eps": eps}
    kept = {name: inputs.pop(name) for name in fixed}
    return Case(inputs, kept, running, ds, dv, layer, runs[0].s.detach(), runs[0].v.detach(), sure,
                own, exact, scales, through, after)  # fmt: skip


def on(backend, inputs, layout=None):
    """The inputs on the backend's device, with the strides that they have."""
    if backend.device == "cpu":
        return dict(inputs)
    laid = LAYOUTS.get(layout, lambda t: t)
    moved = {name: t if t is None else t.to(backend.device) for name, t in inputs.items()}
    return moved | {name: laid(moved[name]) for name in ("y", "residual") if name in moved}


def call(backend, wanted: Case, layout=None) -> tuple[Forward, dict]:
    """That case on a backend: forward, and the running statistics after it."""
    running = {n: None if t is None else t.clone() for n, t in on(backend, wanted.running).items()}
    fixed = {"weight": None, "bias": None} | on(backend, wanted.fixed, layout)
    leaves = on(backend, wanted.inputs, layout)
    fixed = {name: t for name, t in fixed.items() if name not in leaves}
    ours = forward(snnfast.norm_lif, leaves, **fixed, **running, **wanted.layer,
                   backend=backend.name)  # fmt: skip
    return ours, running


def ways(backend, wanted: Case):
    """Of which dtypes backend computes dX again in its second pass: as it does, and of none."""
    if backend.name == "reference":
        return [None]
    given, can = {**wanted.inputs, **wanted.fixed}, implementation(backend.name).recomputes_dx
    return [can, ()] if given["y"].dtype in can and "residual" not in given else [()]


def check(backend, **arguments):
    """One call on a backend, forward and backward, against the specification."""
    wanted, static, found = case(**arguments), arguments.get("static"), []
    layout = None if static else arguments.get("layout")
    for again in ways(backend, wanted):
        with pytest.MonkeyPatch.context() as patch:
            if again is not None:
                patch.setattr(implementation(backend.name), "recomputes_dx", again)
            found.append(_check(backend, wanted, again, layout))
    for name, gradient in found[0].items():  # sums differ where dX is summed over time
        assert name == "y" or static or torch.equal(gradient, found[-1][name]), name


def _check(backend, wanted, again, layout):
    ours, running = call(backend, wanted, layout)
    own_statistics = wanted.layer["training"] or None in wanted.running.values()
    y = {**wanted.inputs, **wanted.fixed}["y"]
    double = y.dtype == torch.float64
    assert ours.s.dtype == y.dtype and ours.s.shape == wanted.s.shape
    s = ours.s.detach().cpu()
    if own_statistics:
        assert not ((s != wanted.s.to(y.dtype)) & wanted.sure).any()
    else:
        assert_same(s, wanted.s.to(y.dtype))
    if wanted.layer["return_state"]:
        v, expected = ours.v.detach().cpu(), wanted.v
        assert v.dtype == expected.dtype
        if own_statistics:
            near = 1e-12 if double else 1e-5
            v, expected = (t * wanted.sure for t in (v, expected))
            torch.testing.assert_close(v, expected, rtol=near, atol=near)
        else:
            assert_same(v, expected)
    if layout == "channels_last" and backend.name != "reference":
        assert all(n == 1 or a == b for n, a, b in zip(s.shape, s.stride(), y.stride()))
    for name, expected in wanted.after.items():
        near = {"rtol": 1e-12, "atol": 1e-14} if double else {"rtol": 1e-6, "atol": 1e-7}
        near = near if wanted.layer["training"] else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(running[name].cpu().double(), expected, **near, msg=name)

    ds, dv = (None if d is None else d.to(backend.device) for d in (wanted.ds, wanted.dv))
    gradients = ours.backward(ds, dv)
    for name, gradient in gradients.items():
        slack = 1e-5 if backend.device == "cuda" else 0.0  # approximate exponentials
        if backend.name == "reference" and "timesteps" in wanted.layer and y.dtype in HALF:
            slack = 2e-2  # autograd adds up over time in the dtype of x
        read = wanted.through if name == "y" and again == () else None
        assert_gradient(name, gradient, wanted.own[name], wanted.exact[name],
                        wanted.scales.get(name), slack, read=read)  # fmt: skip
    return gradients


def check_statistics(backend, T, shape, layout, offset, outlier, dtype):
    """Those of the batch are torch's to rounding of the spread, wherever the values lie, also where
    a channel's first one lies far from all others; and so is what the running ones make of them."""
    generator = torch.Generator().manual_seed(3)
    y = 2 * torch.randn(T, *shape, generator=generator) + offset
    y[0, 0].view(shape[1], -1)[:, 0] += 2 * outlier
    y = LAYOUTS[layout](y.to(getattr(torch, dtype)))
    given = rows(shape[1], generator, torch.float32)
    for momentum in (1.0, 0.3):
        ours = {n: given[n].to(backend.device, copy=True) for n in ("running_mean", "running_var")}
        exact = [given[name].double() for name in ours]
        F.batch_norm(y.double().flatten(0, 1), *exact, training=True, momentum=momentum)
        snnfast.norm_lif(y.to(backend.device), weight=None, bias=None, **ours, training=True,
                         momentum=momentum, backend=backend.name)  # fmt: skip
        mean, var = (t.cpu().double() for t in ours.values())
        spread = reference.channel_stats(y.double(), 2)[1].sqrt()
        assert ((mean - exact[0]).abs() <= 2e-7 * (exact[0].abs() + spread)).all()
        torch.testing.assert_close(var, exact[1], rtol=1e-6, atol=0)
