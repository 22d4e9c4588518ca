"""Sequences whose time does not come first, seen as [T, ...]; and their results as they are."""

from torch import Tensor

from snnfast.ops import validation as check

FIRST, MERGED = 0, "merged"


def check_time_axis(op: str, time_axis) -> None:
    merged = isinstance(time_axis, str) and time_axis == MERGED
    if not merged and (isinstance(time_axis, bool) or not isinstance(time_axis, int)):
        raise ValueError(f"{op}: time_axis must be an int or 'merged', got {time_axis!r}")


def along(time_axis, function, sequences: dict, *, timesteps, return_state, **arguments):
    """``function(**sequences, timesteps=..., return_state=..., **arguments)`` of sequences (or
    None) whose time is on ``time_axis``, or with MERGED in front of the batch on one axis with it,
    [timesteps * N, ...]; its sequences are views in that layout."""
    op = function.__name__
    check_time_axis(op, time_axis)
    merged = time_axis == MERGED
    if merged and timesteps is None:
        raise TypeError(f"{op}: timesteps must be an int where time_axis is 'merged', got None")
    if merged:
        check.check_int(op, "timesteps", timesteps, 1)
    moved = {
        name: None if t is None else _time_first(op, name, t, time_axis, timesteps)
        for name, t in sequences.items()
    }
    timesteps = None if merged else timesteps
    result = function(**moved, timesteps=timesteps, return_state=return_state, **arguments)

    def back(t: Tensor) -> Tensor:
        return t.flatten(0, 1) if merged else t.movedim(0, time_axis)

    if not return_state:
        return back(result)
    s, v = result
    return back(s), back(v) if return_state == "all" else v


def time_first(x: Tensor, time_axis, timesteps) -> Tensor:
    """A view [T, ...] of a sequence in that layout."""
    if time_axis == MERGED:
        return x.unflatten(0, (timesteps, x.shape[0] // timesteps))
    return x.movedim(time_axis, 0)


def _time_first(op: str, name: str, x, time_axis, timesteps) -> Tensor:
    check.check_input(op, name, x)
    if time_axis == MERGED:
        if x.dim() == 0 or x.shape[0] % timesteps:
            raise ValueError(
                f"{op}: {name} must have timesteps * N on its first axis, timesteps = {timesteps}, "
                f"got shape {tuple(x.shape)}"
            )
        return time_first(x, time_axis, timesteps)
    axes = x.dim() + (timesteps is not None)  # of the result
    if not axes:
        raise ValueError(f"{op}: {name} must have an axis of time, got a scalar")
    if not -axes <= time_axis < axes:
        raise ValueError(
            f"{op}: time_axis must be an axis of {name}, in {-axes}..{axes - 1}, got {time_axis}"
        )
    return time_first(x, time_axis, timesteps) if timesteps is None else x
