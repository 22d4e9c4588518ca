"""What the LIF tests share: inputs, the specification, and one check of a call against it."""

import functools
import itertools
import math
from typing import Any, NamedTuple

import torch
from backends import HALF
from bounds import assert_gradient

import snnfast
from snnfast import reference
from snnfast import surrogate as surrogates

TAUS = (1.1, 1.7, 2.0, 5.0, math.inf)
RESETS = (0.0, -0.3, None)
SURROGATES = tuple(surrogates.TABLE)
CHARGES = [
    {"tau": tau, "v_reset": v_reset, "decay_input": decay_input}
    for tau, v_reset, decay_input in itertools.product(TAUS, RESETS, (True, False))
]


def permuted(x, order):
    """x with the same values, stored in another order of its axes."""
    inverse = [order.index(d) for d in range(x.dim())]
    return x.permute(order).contiguous().permute(inverse)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: permuted(x, [0, 1, *range(3, x.dim()), 2]),
    "batch_last": lambda x: permuted(x, [0, 2, 3, 4, 1]),
    "every second step": lambda x: x.repeat_interleave(2, 0)[::2],
    "padded": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "batch first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "not dense": lambda x: torch.stack([x, x], -1)[..., 0],
    "expanded": lambda x: x[:1].expand_as(x),
    "a channel axis of 1": lambda x: x[:, :, :1],
}


def specification(x, v0=None, *, tau=2.0, inv_tau=None, v_threshold=1.0, v_reset=0.0,
                  decay_input=True, detach_reset=False, surrogate="sigmoid", timesteps=None,
                  return_state="all"):  # fmt: skip
    """The call of snnfast.lif straight from the specification: (s, v), whatever the state asked
    for. tau, or inv_tau, may be of any shape that fits the neurons."""
    s, states = reference.lif(
        x,
        v0,
        rate=tau if inv_tau is None else inv_tau,
        divide=inv_tau is None,
        v_threshold=v_threshold,
        v_reset=v_reset,
        decay_input=decay_input,
        detach_reset=detach_reset,
        surrogate=surrogates.resolve(surrogate),
        timesteps=timesteps,
    )
    return s, states[1:] if return_state == "all" else states[-1]


def grads(run, inputs, cotangents):
    """Gradients of run(*inputs), a tensor or tuple, along the cotangents (None where unused)."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    outputs = run(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return torch.autograd.grad(outputs, leaves, cotangents)


class Forward(NamedTuple):
    """A call of ``lif`` on inputs named as its arguments."""

    leaves: dict[str, torch.Tensor]
    s: torch.Tensor
    v: torch.Tensor | None

    def backward(self, ds, dv) -> dict[str, torch.Tensor]:
        """The gradients of the inputs along ds and dv, each where it is not None."""
        along = [(o, d.to(o)) for o, d in ((self.s, ds), (self.v, dv)) if d is not None]
        outputs, cotangents = zip(*along)
        found = torch.autograd.grad(outputs, list(self.leaves.values()), cotangents)
        return dict(zip(self.leaves, found))


def forward(lif, inputs, **layer) -> Forward:
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    out = lif(**leaves, **layer)
    return Forward(leaves, *(out if isinstance(out, tuple) else (out, None)))


class Case(NamedTuple):
    """Inputs and what is expected of them."""

    inputs: dict[str, torch.Tensor]
    ds: torch.Tensor | None
    dv: torch.Tensor | None
    layer: dict[str, Any]
    s: torch.Tensor
    """By the specification in the arithmetic of the dtype, as v: spikes and states equal these."""
    v: torch.Tensor
    own: dict[str, torch.Tensor]
    """The gradients in that arithmetic..."""
    exact: dict[str, torch.Tensor]
    """...and in float64."""
    scales: dict[str, float]
    healthy: torch.Tensor
    """Neurons that only ever see finite numbers."""


@functools.lru_cache(maxsize=64)
def case(T=4, shape=(1, 11, 31), dtype="float32", layout="contiguous", rate=None, channels=False,
         v0=False, state=False, spikes_used=True, values="random", mean=0.6,
         seed=0, **neuron) -> Case:  # fmt: skip
    """``rate``: "tau" or "inv_tau" as a tensor, [] or [C]; ``values``: random about ``mean``, on
    the threshold or with infinities; ``neuron``: arguments of snnfast.lif."""
    generator = torch.Generator().manual_seed(seed)
    draw = functools.partial(torch.randn, generator=generator)
    dtype, static = getattr(torch, dtype), layout == "static"
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = draw(T, *shape) * 1.5 + mean
    if values == "on the threshold":
        x = (2 * x).round() / 2
    if values == "infinite":
        for stride, value in ((17, math.inf), (19, -math.inf), (23, math.nan), (29, 3e38)):
            x.view(-1)[::stride] = value
    x = x[0] if static else LAYOUTS[layout](x)
    shape = x.shape if static else x.shape[1:]
    inputs = {"x": x.to(dtype)}
    if v0:
        inputs["v0"] = draw(shape).to(wide)
    if rate:
        drawn = torch.rand((shape[1],) if channels else (), generator=generator).to(wide)
        inputs[rate] = 1.1 + 3 * drawn if rate == "tau" else 0.1 + 0.8 * drawn
    layer = neuron | {"return_state": state} | ({"timesteps": T} if static else {})

    def doubled():
        return {name: t.double() for name, t in inputs.items()}

    singles = inputs if dtype == torch.float64 else {k: t.float() for k, t in inputs.items()}
    healthy = torch.ones(shape, dtype=torch.bool)
    if values == "infinite":
        healthy = (x.isfinite() & (x.abs() < 1e30)).all(0)
    runs = [forward(specification, each, **layer | {"return_state": "all"})
            for each in (singles, doubled())]  # fmt: skip
    agree = agreement(runs, **neuron)
    assert values != "random" or agree.double().mean() > 0.9 or agree.numel() < 20
    ds = (draw(T, *shape) * agree).to(dtype) if spikes_used else None
    dv = draw((T, *shape) if state == "all" else shape) * agree if state else None
    runs = [run if state == "all" else run._replace(v=run.v[-1]) for run in runs]
    own, exact = (run.backward(ds, dv) for run in runs)
    scales = {}
    if rate:
        # A sum over neurons and steps is as uncertain as its terms are large, however small it is.
        terms = doubled()
        terms[rate] = terms[rate].view(-1, *[1] * (len(shape) - 2)).expand(shape)
        terms = forward(specification, terms, **layer).backward(ds, dv)[rate]
        scales[rate] = terms.norm().item() * math.sqrt(T)
    s, v = runs[0].s.detach(), runs[0].v.detach()
    return Case(inputs, ds, dv, layer, s, v, own, exact, scales, healthy)


@torch.no_grad()
def agreement(runs, **neuron) -> torch.Tensor:
    """The neurons that all runs let fire at the same steps, and find on the same side of a jump of
    g: the gradients of the others are another function's."""
    (s, g), *others = ((run.s, _surrogate_gradient(run.v, **run.leaves, **neuron)) for run in runs)
    same = [(s == t) & ~((g - h).abs() > 1e-3) for t, h in others]
    return torch.stack(same).all(0).all(0)


def _surrogate_gradient(v, x, v0=None, *, tau=2.0, inv_tau=None, v_threshold=1.0, v_reset=0.0,
                        decay_input=True, surrogate="sigmoid", **rest):  # fmt: skip
    """g at every step, from the states after every step."""
    r, rate = v_reset or 0.0, tau if inv_tau is None else inv_tau
    before = torch.cat([(torch.full_like(v[0], r) if v0 is None else v0)[None], v[:-1]])
    if isinstance(rate, torch.Tensor) and rate.dim():
        rate = rate.view(-1, *[1] * (v.dim() - 3))
    h = reference.charge(x.to(v.dtype), before, r, rate, inv_tau is None, decay_input)
    return surrogates.resolve(surrogate).gradient(h - v_threshold)


def check(backend, **arguments):
    """One call on a backend, forward and backward, against the specification."""
    wanted = case(**arguments)
    layout = LAYOUTS.get(arguments.get("layout"), lambda x: x)
    inputs = {name: t.to(backend.device) for name, t in wanted.inputs.items()}
    inputs["x"] = layout(inputs["x"]) if "cuda" in backend.device else inputs["x"]
    ds, dv = (None if t is None else t.to(backend.device) for t in (wanted.ds, wanted.dv))
    ours = forward(snnfast.lif, inputs, **wanted.layer, backend=backend.name)

    x = wanted.inputs["x"]
    assert ours.s.dtype == x.dtype and ours.s.shape == wanted.s.shape
    assert_same(ours.s, wanted.s.to(x.dtype))
    if wanted.layer["return_state"]:
        assert ours.v.dtype == wanted.v.dtype
        assert_same(ours.v, wanted.v)
    if arguments.get("layout") in ("channels_last", "batch_last") and backend.name != "reference":
        assert ours.s.stride() == x.stride()
    for name, gradient in ours.backward(ds, dv).items():
        own, exact = wanted.own[name], wanted.exact[name]
        if not wanted.healthy.all():
            gradient = gradient.cpu()
            assert torch.equal(gradient.isnan(), own.isnan()), name
            gradient, own, exact = (t[..., wanted.healthy] for t in (gradient, own, exact))
        slack = 0.0
        if backend.device == "cuda":  # whose reciprocal and exponential are approximate, by 2 ulp
            slack = 1e-5
        elif backend.name == "reference" and "timesteps" in wanted.layer and x.dtype in HALF:
            slack = 2e-2  # autograd adds up over time in the dtype of x
        assert_gradient(name, gradient, own, exact, wanted.scales.get(name), slack)


def assert_same(ours, expected):
    torch.testing.assert_close(
        ours.detach().cpu(), expected.detach(), rtol=0, atol=0, equal_nan=True
    )
