"""What ``fuse`` runs in place of a batch norm and a neuron, and when it may."""

import warnings
from functools import partial
from types import SimpleNamespace

import torch.distributed as dist
from torch import Tensor, nn

from snnfast.nn import peers
from snnfast.nn._trace import has_hooks
from snnfast.nn.batch_norm import normalised
from snnfast.nn.neuron import IF, LIF, Neuron, ParametricLIF
from snnfast.nn.stateful import Stateful
from snnfast.ops.lif import lif
from snnfast.ops.norm_lif import norm_lif
from snnfast.ops.norm_neuron import norm_neuron as norm_any
from snnfast.ops.validation import state_dtype

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
NEURONS = (LIF, IF, ParametricLIF, Neuron)


def is_neuron(module: nn.Module) -> bool:
    """Whether ``fuse`` knows it, or may."""
    return isinstance(module, Stateful) or peers.is_neuron(module)


def refusal(module: nn.Module, kinds: tuple) -> str | None:
    """Why the calls of a batch norm or a neuron must not be replaced."""
    name = type(module).__name__
    # The classes of the family are a Neuron each, and no more than that.
    family = isinstance(module, Neuron) and type(module).__module__.startswith("snnfast.")
    known = peers.is_norm(type(module)) if kinds is NORMS else peers.is_neuron(module)
    if not known and type(module) not in kinds and not (family and Neuron in kinds):
        return f"{name} is not one of {', '.join(kind.__name__ for kind in kinds)}"
    if has_hooks(module):
        return f"{name} has hooks"
    if "forward" in vars(module):
        return f"{name} has a forward of its own"
    if isinstance(module, Neuron) and len(module.neuron.inputs) > 1:
        return f"{name} has {len(module.neuron.inputs)} inputs"
    if getattr(module, "time_axis", 0) != 0:
        return f"{name} has time_axis={module.time_axis!r}"
    if isinstance(module, Stateful):
        return f"{name} returns its state" if module.return_state else None
    if kinds is NEURONS:
        why = module._behind_refusal()
        return None if why is None else f"{name}: {why}"
    if not module.eps > 0:
        return f"eps must be > 0, got {module.eps}"
    if module.momentum is not None and not 0 <= module.momentum <= 1:
        return f"momentum must be in 0..1, got {module.momentum}"
    return None


def _obstacle(norm, neuron, y, x, residual, shapes, swapped) -> str | None:
    """Why the fused op cannot take this call, or None."""
    why = refusal(norm, NORMS) or refusal(neuron, NEURONS)
    if why is not None:
        return why
    if x is None:
        return f"{type(neuron).__name__} takes no such call"
    folded = _is_folded(y, x, swapped)
    timestep = _swap(y) if swapped and y.dim() > 2 else y
    if not folded and (x.shape != timestep.shape or (swapped and y.dim() < 3)):
        return f"{list(y.shape)} -> {list(x.shape)} does more than split time from the batch"
    channels = (t.dim() for t in (*neuron.parameters(), *neuron.buffers()))
    if not (folded and not swapped) and any(channels):
        return "a parameter per channel needs an axis for the batch"
    if y.numel() == 0 and _group(norm) is None:  # else other ranks would wait: the op refuses it
        return "the input is empty"
    if norm.running_mean is not None and norm.running_mean.dtype != state_dtype(y):
        return f"running statistics must be {state_dtype(y)}, got {norm.running_mean.dtype}"
    if residual is not None:
        if not isinstance(residual, Tensor) or residual.dtype != y.dtype:
            return f"what is added must be a tensor of {y.dtype}"
        if residual.shape not in shapes:
            return f"what is added must not be broadcast, got shape {list(residual.shape)}"
    return None


def _is_folded(y: Tensor, x: Tensor, swapped: bool) -> bool:
    """Whether x [T, B, C, ...] is y [T B, C, ...] but for axes behind the channels, that may be
    fewer or more; with the last two exchanged, those, too, are the same."""
    if swapped:
        return x.dim() == y.dim() + 1 and y.dim() > 2 and x.shape[2:] == _swap(y).shape[1:]
    shape = x.shape
    return x.dim() > 2 and (shape[0] * shape[1], shape[2]) == y.shape[:2]


def _group(norm):
    """The ranks that share the statistics, by SyncBatchNorm's rule."""
    if isinstance(norm, nn.SyncBatchNorm) and norm.training:
        if dist.is_available() and dist.is_initialized():
            group = norm.process_group or dist.group.WORLD
            return group if dist.get_world_size(group) > 1 else None
    return None


def warn_unfused(what: str, why: str, norms) -> None:
    """What torch's SyncBatchNorm sends to its peers is not what the fused op does."""
    if any(_group(norm) is not None for norm in norms):
        why += "; on every rank it must, or they wait for each other"
    warnings.warn(f"fuse: {what} runs unfused: {why}", stacklevel=3)


def norm_neuron(norm, neuron, given: Tensor, shaped: Tensor, residual, swapped: bool = False):
    """neuron(norm(given) reshaped as ``shaped``, a reshape of ``given``, + residual), fused where
    possible; ``swapped``: with the last two axes exchanged before it is reshaped."""
    many = peers.is_norm(type(norm)) and norm.step_mode == "m" and given.dim() > 2
    y = given.flatten(0, 1) if many else given
    x = neuron._behind_steps(shaped) if peers.is_neuron(neuron) else shaped
    shapes = given.shape, y.shape, shaped.shape
    why = _obstacle(norm, neuron, y, x, residual, shapes, swapped)
    s = None
    if why is not None:
        warn_unfused("a block", why, [norm])
    else:
        norm._check_input_dim(y)
        s = _fused(norm, neuron, x, residual, not _is_folded(y, x, swapped), swapped)
    if s is not None:
        return s.reshape(shaped.shape)
    n = norm(given)
    n = _swap(n) if swapped else n
    if residual is not None and residual.shape == n.shape:
        return neuron((n + residual).reshape(shaped.shape))
    n = n.reshape(shaped.shape)
    return neuron(n if residual is None else n + residual)


def _swap(x: Tensor) -> Tensor:
    return x.transpose(-1, -2)


def _fused(norm, neuron, x, residual, single: bool, swapped: bool):
    """The spikes of x, the input of the norm as the neuron sees it; None where a neuron of another
    package has to run by its own forward. ``single``: without an axis for the batch, [T, C, ...],
    where the op is given one."""
    group = _group(norm)

    def for_op(t, axis):
        t = _swap(t) if swapped else t
        return t.unsqueeze(axis) if single else t

    def for_neuron(t, axis):
        t = t.squeeze(axis) if single else t
        return _swap(t) if swapped else t

    def behind(op, again=False):
        op = norm_lif if op is lif else partial(norm_any, op)
        op = normalised(_as_now(norm) if again else norm, op, process_group=group)

        def run(x, v0=None, *, return_state, **arguments):
            x = for_op(x, 1)
            name = "states" if "states" in arguments else "v0"
            state = _each(partial(for_op, axis=0), arguments.pop(name, v0))
            added = None if residual is None else residual.reshape(x.shape)
            result = op(x, added, return_state=return_state, **{name: state}, **arguments)
            if not (single or swapped):
                return result
            s, v = result if return_state else (result, None)
            s = _each(partial(for_neuron, axis=1), s)
            axis = int(return_state == "all")
            # A state must not be a view: it is detached in place.
            v = _each(lambda t: for_neuron(t, axis).clone(), v)
            return (s, v) if return_state else s

        return run

    if peers.is_neuron(neuron):
        reads = () if residual is None else (residual,)
        return neuron._behind(x, behind, reads if group is None else None)
    any_kind = isinstance(neuron, Neuron)
    op = behind(neuron.neuron if any_kind else lif)
    return neuron._run(op, (x,) if any_kind else x, None, None)


def _as_now(norm):
    """What gives the same as ``norm`` does now, whatever becomes of it, and changes nothing."""
    names = ("weight", "bias", "running_mean", "running_var")
    rows = {k: None if (row := getattr(norm, k)) is None else row.clone() for k in names}
    fixed = {k: getattr(norm, k) for k in ("training", "momentum", "eps")}
    return SimpleNamespace(track_running_stats=False, **fixed, **rows)


def _each(change, value):
    """``change`` of a tensor, or of each in a tuple; None stays."""
    if value is None:
        return None
    if isinstance(value, (tuple, list)):
        return tuple(_each(change, one) for one in value)
    return change(value)
