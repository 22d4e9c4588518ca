"""What runs a SpikingJelly node by ``snnfast.lif``: all of its attributes are read at each call,
and V is left as the node's own forward leaves it.

A node is anything with SpikingJelly's names: ``_memories`` with "v", ``v_threshold``, ``v_reset``,
``detach_reset``, ``surrogate_function``, and what its charge reads (``tau`` and ``decay_input``, or
``w``). State and arithmetic are float32 whatever the input's dtype.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from snnfast import surrogate as surrogates
from snnfast.interop.spikingjelly._later import Later, Memories
from snnfast.interop.spikingjelly._surrogates import firing
from snnfast.ops.lif import lif
from snnfast.ops.validation import in_checkpoint, state_dtype, transformed


class Unlike(Exception):
    """Says why a call is not one of ``lif``: the node's own forward is to run instead."""


class FirstStep(Unlike):
    """The next call will be one again."""


class Version(NamedTuple):
    """What the versions of SpikingJelly differ in."""

    name: str
    scales: bool
    """Without decay_input, and where V resets to 0 or softly, V leaks as V (1 - 1/tau)."""
    own_evaluation: bool
    """In evaluation a hard reset leaks as V - (V - r)/tau all the same, and spikes have no
    gradient (but for ParametricLIFNode)."""
    resizes: bool
    """A V of another shape than the input's starts anew; elsewhere it is an error."""
    keeps: bool
    """V of every step stays in any case."""
    doubles: bool
    """A V that is a number enters the first step in double precision."""


V12 = Version("0.0.0.0.12", True, False, False, True, True)
V14 = Version("0.0.0.0.14", True, True, False, False, False)
V2 = Version("2.0.0", False, False, True, False, False)
VERSIONS = (V12, V14, V2)

Charge = Callable[[object, Tensor, bool], dict]
"""(node, x, whether V leaks as V (1 - 1/tau)) -> the arguments of ``lif`` that say how V leaks."""


def integrates(node, x: Tensor, scaled: bool) -> dict:
    return {"tau": math.inf}


def leaks(node, x: Tensor, scaled: bool) -> dict:
    tau, decay_input = node.tau, bool(node.decay_input)
    if type(tau) not in (float, int) or not 1 <= tau < math.inf:
        raise Unlike(f"tau is {tau!r}")
    # For a power of two both ways of the leak round alike.
    if decay_input or not scaled or math.frexp(tau)[0] == 0.5:
        return {"tau": tau, "decay_input": decay_input}
    return {"beta": 1.0 - 1.0 / tau}


def learns(node, x: Tensor, scaled: bool) -> dict:
    w = vars(node)["_parameters"].get("w")
    w = node.w if w is None else w
    if w.dim():
        raise Unlike(f"w is {list(w.shape)}, not []")
    rate = w.sigmoid()
    if node.decay_input or not scaled:
        return {"inv_tau": rate.to(state_dtype(x)), "decay_input": bool(node.decay_input)}
    return {"beta": (1.0 - rate).to(state_dtype(x))}


_AT_THRESHOLD = {"surrogate": surrogates.LeakyKReLU(leak=0.0, k=0.0), "fire": ">="}
"""How a node fires whose surrogate function is not called; its spikes have no gradient."""


class Behind(NamedTuple):
    """A norm in front of a node, as ``snnfast.nn.fuse`` hands it over (snnfast.nn.peers)."""

    op: Callable
    reads: "tuple[Tensor, ...] | None"


def multi_step(
    node, x: Tensor, version: Version, charge: Charge, every: bool, behind: Behind | None = None
):
    """(spikes [T, ...] of x [T, ...], V after each step where ``every``, else None), from the
    node's V on, which is left after the last step. Raises Unlike before anything has changed.
    What is ``behind`` a norm has that of x as its input.

    Where a version always has V of every step it is a Later, to be put among the memories."""
    check_sequence(x)
    memories = vars(node)["_memories"]
    if "v_threshold" in memories:
        theta, v_reset = memories["v_threshold"], memories["v_reset"]
    else:
        theta, v_reset = node.v_threshold, node.v_reset
    theta = row("v_threshold", theta, x) if isinstance(theta, Tensor) else theta
    if type(theta) in (float, int) and not -math.inf < theta < math.inf:
        if theta != math.inf or v_reset is None:
            raise Unlike(f"v_threshold is {theta}, v_reset {v_reset}")
    if type(v_reset) not in (float, int, type(None)):
        raise Unlike(f"v_reset is {v_reset!r}")
    evaluates = version.own_evaluation and charge is not learns and not node.training
    fires = _AT_THRESHOLD
    if not evaluates:
        surrogate, fire = fires_by(node)
        fires = {"surrogate": surrogate, "fire": fire}
    scaled = version.scales and (v_reset is None or (v_reset == 0 and not evaluates))
    leak = charge(node, x, scaled)
    r = 0.0 if v_reset is None else float(v_reset)
    if version.doubles:
        refuse_number(node, "v", r)
    v = start(node, "v", x, r, version.resizes)
    if v_reset is not None and not node.training:
        _refuse_infinite(x, behind)
    arguments = {
        "v_threshold": theta, "v_reset": v_reset, "detach_reset": bool(node.detach_reset),
        **leak, **fires,
    }  # fmt: skip
    op = lif if behind is None else behind.op(lif)
    chosen, steps = functools.partial(op, x, v, **arguments), None
    if every and not (version.keeps and _stay(x, v, theta, behind)):
        s, steps = chosen(return_state="all")
        memories["v"] = steps[-1].clone()
    else:
        s, memories["v"] = chosen(return_state=True)
        if every:
            reads, again = (x,) if v is None else (x, v), chosen
            if behind is not None:
                reads += behind.reads
                again = functools.partial(behind.op(lif, again=True), x, v, **arguments)
            steps = Later(lambda: again(return_state="all")[1], reads)
            if type(memories) is not Memories:
                vars(node)["_memories"] = Memories(memories)
    return s.detach() if evaluates else s, steps


def _refuse_infinite(x: Tensor, behind: Behind | None) -> None:
    """Unlike where theirs makes NaN of it: it resets the V that has fired by a product. A V of
    -inf does not fire; behind a norm it may be one of inf."""
    if x.is_cpu and not torch.compiler.is_compiling() and x.numel():  # where to look is no wait
        if not x.max().item() < math.inf or (behind and x.min().item() == -math.inf):
            raise Unlike("x is not finite")


def _stay(x: Tensor, v: Tensor | None, theta, behind: Behind | None) -> bool:
    """Whether it can be told that they do not change, and nothing is traced."""
    if torch.compiler.is_compiling() or isinstance(theta, Tensor) or x.is_inference():
        return False
    if behind is not None:
        if behind.reads is None or any(map(Tensor.is_inference, behind.reads)):
            return False
    return v is None or not v.is_inference()


def single_step(node, x: Tensor, version: Version, charge: Charge) -> Tensor:
    """Spikes of one timestep."""
    if not isinstance(x, Tensor):
        raise Unlike(f"x is a {type(x).__name__}")
    s, _ = multi_step(node, x.unsqueeze(0), version, charge, False)
    return s.squeeze(0)


def refuse_number(node, name: str, r: float) -> None:
    """Unlike for a memory that is another number than ``r``, which would be rounded too early."""
    v = vars(node)["_memories"][name]
    if type(v) in (float, int) and v != r:
        raise FirstStep(f"{name} is the number {v}, which is one of double precision there")


def start(node, name: str, x: Tensor, r: float, resizes: bool) -> Tensor | None:
    """The memory ``name`` before the first step of x [T, ...]; None where it is all ``r``, but in a
    checkpoint, whose second run begins at the V that the first left and must keep no more."""
    v, shape = vars(node)["_memories"][name], x.shape[1:]
    if resizes and isinstance(v, Tensor) and v.shape != shape:
        v = r
    number = type(v) in (float, int)
    if number and v == r and not in_checkpoint():
        return None
    dtype = state_dtype(x)
    if number:
        return torch.full(shape, v, dtype=dtype, device=x.device)
    if not isinstance(v, Tensor):
        raise Unlike(f"{name} is a {type(v).__name__}")
    if v.shape != shape:
        if v.dim():
            raise ValueError(
                f"{type(node).__name__}: {name} must have the shape of a timestep {tuple(shape)}, "
                f"got {tuple(v.shape)} from the calls before; functional.reset_net(model) goes "
                "between inputs of other sizes"
            )
        v = v.expand(shape)
    if v.dtype != dtype or v.device != x.device:
        v = v.to(x.device, dtype)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling() and v.is_inference():
        v = v.clone()  # which autograd would not keep
    return v


def check_sequence(x) -> None:
    """Unlike for what is no current of floating point over time."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise Unlike(f"x is a {x.dtype if isinstance(x, Tensor) else type(x).__name__}")
    if x.dim() == 0 or not x.shape[0]:
        raise Unlike("x has no timestep")
    if transformed(x):
        raise Unlike("a transform of torch.func sees what PyTorch computes")


def fires_by(node) -> tuple[surrogates.Surrogate, str]:
    """(the surrogate, ">=" or ">") of a node; Unlike where kernels have none such."""
    function = vars(node)["_modules"].get("surrogate_function")
    fires = firing(node.surrogate_function if function is None else function)
    if fires.why_not is not None:
        raise Unlike(fires.why_not)
    return fires.surrogate, fires.fire


def row(name: str, p: Tensor, x: Tensor) -> Tensor:
    """A parameter that every neuron of x [T, B, C, ...] shares, or those of a channel, as [] or
    [C]."""
    p = p.to(state_dtype(x))
    if p.numel() == 1:
        return p.reshape(())
    shape = (1,) * (x.dim() - 1 - p.dim()) + tuple(p.shape)
    if len(shape) == x.dim() - 1 and len(shape) > 1 and shape[1] == p.numel() == x.shape[2]:
        return p.reshape(-1)
    raise Unlike(f"{name} is {list(p.shape)}, neither one number nor one for each channel")
