"""Whether nodes of another class compute what a node does: both run on a few numbers, half of them
multiples of 1/20, where one rounding more or less shows."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from snnfast.backends.cpu.neuron import executed_by
from snnfast.program.trace import in_no_mode

_STEPS = 4


def twin(node: nn.Module, cls: type) -> nn.Module:
    """A node of class ``cls`` on the CPU with copies of the parameters, buffers, submodules and
    memories of ``node``, as after a reset, and with its other attributes; hooks stay behind."""
    other, fresh, own = object.__new__(cls), vars(nn.Module()), vars(node)
    vars(other).update({k: v for k, v in own.items() if k not in fresh} | fresh)
    for name in ("training", "_parameters", "_buffers", "_modules"):
        vars(other)[name] = copy.deepcopy(own[name])
    for name, rest in (("_memories", "_memories_rv"), ("_memories_rv", "_memories_rv")):
        vars(other)[name] = copy.deepcopy(own[rest])
    # On the meta device, where a large model may be built, there are no numbers yet.
    return nn.Module._apply(
        other, lambda t: torch.zeros_like(t, device="cpu") if t.is_meta else t.cpu()
    )


def step_shape(node: nn.Module) -> tuple[int, ...]:
    """Of a timestep [N, C, ...] that the node's parameters fit, also those of a channel."""
    rows = [p.shape for p in (*node.parameters(), *node.buffers()) if p.numel() > 1]
    if not rows:
        return 3, 5, 2, 4
    return (3, rows[0].numel(), 2, 4)[: max(2, len(rows[0]) + (rows[0][0] > 1))]


def numbers(node: nn.Module, *shape: int) -> Tensor:
    """Inputs that make the node fire, of a generator of their own."""
    generator = torch.Generator().manual_seed(0)
    theta = getattr(node, "v_threshold", 1.0)
    scale = float(theta) if isinstance(theta, (int, float)) and 0 < theta < 100 else 1.0
    x = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    x = scale * (0.4 + 1.5 * x)
    half = x.shape[-1] // 2
    x[..., :half] = (x[..., :half] * 20).round() / 20
    return x


def difference(
    node: nn.Module, plain: type, faster: type, *, sequences: bool, merged: int = 0,
    changes: Iterable[dict] = ({},),
) -> str | None:  # fmt: skip
    """In what nodes of the two classes differ; None where outputs, memories and gradients are the
    same: three calls, a reset in front of the last, in training and in evaluation, and with each
    of ``changes`` of its attributes. ``sequences``: a call takes all timesteps, ``merged`` of them
    in the batch."""
    # A program is not worth its compilation here, and the executors are bit-equal.
    with in_no_mode(), executed_by("interpreted"):
        for change in changes:
            for training in (True, False):
                how = change, training, sequences, merged
                try:
                    theirs = _run(twin(node, plain), *how)
                except Exception as error:
                    return f"it does not take such an input ({type(error).__name__})"
                differs = _compared(theirs, _run(twin(node, faster), *how))
                if differs is not None:
                    return f"{differs} in {'training' if training else 'evaluation'}"
    return None


def _run(node, change, training, sequences, merged):
    """What three calls leave: ({what: value}, gradients)."""
    node.train(training)
    for name, value in change.items():
        setattr(node, name, value)
    left, inputs, total = {}, [], 0.0
    shape = step_shape(node)
    lead = (merged * shape[0], *shape[1:]) if merged else (_STEPS, *shape)
    for call, x in enumerate(numbers(node, 3, *lead) if sequences else numbers(node, 6, *shape)):
        if call == (2 if sequences else 4):
            node.reset()
        inputs.append(x.clone().requires_grad_())
        out = node.forward(inputs[-1])
        now = {"outputs": out, **vars(node)["_memories"], "v_seq": getattr(node, "v_seq", None)}
        left |= {(name, call): value for name, value in now.items()}
        total = total + _weighed(out) + _weighed(vars(node)["_memories"]["v"])
    wanted = [*inputs, *node.parameters()]
    grads = [None] * len(wanted)
    if isinstance(total, Tensor) and total.requires_grad:
        grads = torch.autograd.grad(total, wanted, allow_unused=True)
    return left, grads


def _weighed(value):
    if not isinstance(value, Tensor) or not value.requires_grad:
        return 0.0
    weights = torch.arange(value.numel(), device=value.device, dtype=value.dtype).remainder(7)
    return (value * (weights - 2).view(value.shape)).sum()


def _compared(theirs, ours) -> str | None:
    (left, grads), (ours_left, ours_grads) = theirs, ours
    if left.keys() != ours_left.keys():
        return "other memories"
    for (name, _), a in left.items():
        b = ours_left[name, _]
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            if isinstance(a, Tensor) or isinstance(b, Tensor) or a != b:
                return f"another {name}"
        elif a.shape != b.shape or a.dtype != b.dtype:
            return f"{name} of another shape or dtype"
        elif not torch.equal(a, b):
            return f"{name} by up to {(a - b).abs().max():.1g}"
    for a, b in zip(grads, ours_grads, strict=True):
        a, b = (t if t is not None else torch.zeros(()) for t in (a, b))
        if not bool((a - b).abs().max() <= 1e-4 * a.abs().max().clamp(min=1)):
            return f"gradients by up to {(a - b).abs().max():.1g}"
    return None
