"""SpikingJelly's nodes of three versions, and what two models do with the same inputs."""

import copy
import itertools

import torch
from live import live
from peer_neurons import package

VERSIONS = ("0.0.0.0.12", "0.0.0.0.14", "2.0.0")
KINDS = ("IFNode", "LIFNode", "ParametricLIFNode")


def module(version: str, name: str = "neuron"):
    """One of SpikingJelly's modules."""
    if version == "2.0.0":
        return package(f"spikingjelly.activation_based.{name}")
    return getattr(live(version), name)


def node(version: str, kind: str = "LIFNode", mode: str = "m", tau: float | None = None, **options):
    """A node that takes all timesteps ("m") or one ("s")."""
    if kind == "IFNode":
        options.pop("decay_input", None)
    elif tau is not None:
        options["init_tau" if kind == "ParametricLIFNode" else "tau"] = tau
    if version != "0.0.0.0.12":
        options["step_mode"] = mode
    elif mode == "m":
        kind = f"MultiStep{kind}"
    return getattr(module(version), kind)(**options)


def options(*, leaks=(2.0, 3.0), resets=(0.0, None, -0.15), detached=(False, True)):
    """Arguments of LIF nodes: each of the values with each decay_input."""
    for tau, decay_input, v_reset, detach_reset in itertools.product(
        leaks, (True, False), resets, detached
    ):
        yield {
            "tau": tau, "decay_input": decay_input, "v_reset": v_reset,
            "detach_reset": detach_reset,
        }  # fmt: skip


def currents(*shape: int, grid: bool = False, seed: int = 0) -> torch.Tensor:
    """Random ones, or multiples of 1/20 (rounded to float32 once)."""
    x = 0.5 + 1.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (20 * x).round() / 20 if grid else x


def called(model, x, steps: bool = False):
    """What the model gives; ``steps``: called with one timestep after the other."""
    return torch.stack([model(x_t) for x_t in x]) if steps else model(x)


def states(model) -> list:
    """The memories of all nodes, with v_seq."""
    found = []
    for m in model.modules():
        if hasattr(m, "_memories"):
            found += [*m._memories.values(), getattr(m, "v_seq", None)]
    return found


def check_same(ours, theirs, x, *, steps=False, rtol=1e-5, kept=True) -> None:
    """Both models give the same outputs and states, bit for bit, and the same gradients."""
    given = [x.clone().requires_grad_() for _ in range(2)]
    results = [called(m, t, steps) for m, t in zip((ours, theirs), given)]
    assert torch.equal(*results) and results[0].dtype == results[1].dtype
    if kept:
        check_states(ours, theirs)
    if not results[1].requires_grad:
        assert not results[0].requires_grad
        return
    weights = currents(*results[0].shape, seed=7)
    both = []
    for model, t, s in zip((ours, theirs), given, results):
        wanted = [t, *model.parameters()]
        both.append(torch.autograd.grad((s * weights).sum(), wanted, allow_unused=True))
    for a, b in zip(*both):
        assert (a is None) == (b is None)
        if a is not None:
            scale = max(1.0, float(b.abs().max()))
            assert float((a - b).abs().max()) <= rtol * scale
    for model in (ours, theirs):
        for m in model.modules():
            if hasattr(m, "_memories"):
                m.detach()


def check_states(ours, theirs) -> None:
    pairs = list(zip(states(ours), states(theirs), strict=True))
    assert pairs
    for a, b in pairs:
        if isinstance(b, torch.Tensor):
            assert torch.equal(a, b) and a.dtype == b.dtype
        else:
            assert a == b and type(a) is type(b)


def fresh(model):
    """A copy, and another."""
    return copy.deepcopy(model), copy.deepcopy(model)
