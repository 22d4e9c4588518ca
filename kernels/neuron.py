"""All timesteps of neurons that a program defines, in one launch, forward and backward.

For t = 0 .. T-1, with FORWARD and ADVANCE of a step (its source: snnfast/program/triton_source.py),

    outputs_t, states_t = FORWARD(inputs_t, states_{t-1}, params)      states_t = ADVANCE(the same)

and back, t = T-1 .. 0, dparams being added up,

    dinputs_t, dstates_{t-1}, dparams = ADJOINT(inputs_t, states_{t-1}, params, douts_t, dstates_t)

The walk is that of lif.py: states live in registers from the first step to the last. Backward takes
segments of 8 steps from the states at their borders; it runs ADVANCE through one, holding the state
before each step, and walks back through it.

Bytes per neuron and timestep, b those of one element of x: forward b for each input and output;
backward b for each input, output and gradient of an input. A static input is read once; summed over
time, its gradient is written once. For T > 8, 4/8 more each way for every state.

What a step has several of comes in tuples. Tensors are dense in each timestep: neuron i of step t
lies at t * stride + i.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .lif import channel_of, within
from .operations import narrowed


class Layout(NamedTuple):
    """What a kernel is compiled for besides the step. To Triton 3.6 its fields are plain numbers,
    which a static_range does not take."""

    inputs: int
    outputs: int
    states: int
    params: int
    static: tuple[bool, ...]  # of each input: one for all steps
    summed: tuple[bool, ...]  # of each gradient of an input: summed over time
    per_channel: tuple[bool, ...]  # of each param
    every: bool  # states, or their gradients, of every step, not of the last
    long: bool  # a loop over segments; else one segment
    whole: bool  # T fills its segments: no step needs a predicate
    steps: int  # of a segment
    block: int  # neurons of a program


@triton.jit
def _tile(n, L: tl.constexpr):
    """Where a program's neurons lie."""
    first = tl.program_id(0).to(tl.int64) * L.block
    lane = tl.arange(0, L.block)
    inside = lane < tl.minimum(n - first, L.block).to(tl.int32)
    return first, lane, inside


@triton.jit
def _params(params, first, lane, channels, inner, L: tl.constexpr):
    """Numbers, and tiles of those per channel."""
    found = ()
    if channels is not None:
        channel = channel_of(first, lane, channels, inner)
    for k in tl.static_range(tl.constexpr(L.params)):
        if L.per_channel[k]:
            found += (tl.load(params[k] + channel),)
        else:
            found += (tl.load(params[k]),)
    return found


@triton.jit
def _rows(rows, strides, t, steps, first, lane, inside, COUNT: tl.constexpr, L: tl.constexpr):
    """Step t of several sequences; zeros of one that is None."""
    found = ()
    for k in tl.static_range(COUNT):
        if rows[k] is None:
            found += (tl.zeros(lane.shape, tl.float32),)
        else:
            row = rows[k] + within(t, steps, L.whole) * strides[k] + first
            found += (tl.load(row + lane, mask=inside),)
    return found


@triton.jit
def _inputs(inputs, strides, once, t, steps, first, lane, inside, L: tl.constexpr):
    """Step t of the inputs; ``once``: those that are the same at every step."""
    found = ()
    for k in tl.static_range(tl.constexpr(L.inputs)):
        if L.static[k]:
            found += (once[k],)
        else:
            row = inputs[k] + within(t, steps, L.whole) * strides[k] + first
            found += (tl.load(row + lane, mask=inside),)
    return found


@triton.jit
def _begin(states, rest, first, lane, inside, L: tl.constexpr):
    """The states before the first step."""
    found = ()
    for k in tl.static_range(tl.constexpr(L.states)):
        if states[k] is None:
            found += (tl.zeros(lane.shape, tl.float32) + rest[k],)
        else:
            found += (tl.load(states[k] + first + lane, mask=inside),)
    return found


@triton.jit
def _repeated(value, COUNT: tl.constexpr):
    found = ()
    for _ in tl.static_range(COUNT):
        found += (value,)
    return found


@triton.jit
def _selected(taken, values, others, COUNT: tl.constexpr, WHOLE: tl.constexpr):
    """``values`` where the step is one of the sequence, else ``others``."""
    found = ()
    for k in tl.static_range(COUNT):
        found += (values[k] if WHOLE else tl.where(taken, values[k], others[k]),)
    return found


@triton.jit
def walk_forward(
    inputs,  # [T, N] each, time strides ``strides``
    strides,
    states,  # [N] float32 each, or None: starts at ``rest``
    rest,
    params,  # [] or [channels] float32 each
    outputs,  # [T, N] each
    news,  # [N] or, where every, [T, N] float32 each, or None
    borders,  # [states, segments - 1, N] float32, stride ``border_stride``, or None
    border_stride,
    steps,
    n,
    channels,
    inner,
    numbers,  # the step's constants
    FORWARD: tl.constexpr,
    L: tl.constexpr,
):
    first, lane, inside = _tile(n, L)
    p = _params(params, first, lane, channels, inner, L)
    state = _begin(states, rest, first, lane, inside, L)
    once = _rows(inputs, strides, 0, steps, first, lane, inside, L.inputs, L)
    segments = tl.cdiv(steps, L.steps) if L.long else 1
    for k in range(segments):
        start = tl.cast(k, tl.int64) * L.steps
        # The loads of a segment stand first, to be in flight together.
        xs = ()
        for i in tl.static_range(tl.constexpr(L.steps)):
            xs += (_inputs(inputs, strides, once, start + i, steps, first, lane, inside, L),)
        for i in tl.static_range(tl.constexpr(L.steps)):
            taken = start + i < steps
            live = inside if L.whole else tl.where(taken, inside, False)
            results = FORWARD(xs[i], state, p, numbers)
            row = (start + i) * n + first
            for j in tl.static_range(tl.constexpr(L.outputs)):
                value = narrowed(results[j], outputs[j].dtype.element_ty)
                tl.store(outputs[j] + row + lane, value, mask=live)
            after = results[L.outputs :]
            for j in tl.static_range(tl.constexpr(L.states)):
                if L.every:
                    if news[j] is not None:
                        tl.store(news[j] + row + lane, after[j], mask=live)
            state = _selected(taken, after, state, L.states, L.whole)
        if borders is not None:
            row = borders + tl.cast(k, tl.int64) * n + first
            for j in tl.static_range(tl.constexpr(L.states)):
                inner_border = tl.where(k + 1 < segments, inside, False)
                tl.store(row + j * border_stride + lane, state[j], mask=inner_border)
    if not L.every:
        for j in tl.static_range(tl.constexpr(L.states)):
            if news[j] is not None:
                tl.store(news[j] + first + lane, state[j], mask=inside)


@triton.jit
def walk_backward(
    inputs,  # [T, N] each, time strides ``strides``
    strides,
    states,  # [N] float32 each, or None: started at ``rest``
    rest,
    params,  # [] or [channels] float32 each
    borders,  # [states, segments - 1, N] float32, stride ``border_stride``, or None for one segment
    border_stride,
    douts,  # [T, N] each, time strides ``dout_strides``, or None: zeros
    dout_strides,
    dnews,  # [N] or, where every, [T, N] float32 each, or None: zeros
    dinputs,  # [T, N] or, where summed, [N] each, or None
    dstates,  # [N] float32 each, or None
    dparams,  # float32 each: [N] for a param per channel, else one sum per program; or None
    steps,
    n,
    channels,
    inner,
    numbers,
    ADVANCE: tl.constexpr,
    ADJOINT: tl.constexpr,
    ID: tl.constexpr,  # of the surrogate
    L: tl.constexpr,
):
    first, lane, inside = _tile(n, L)
    p = _params(params, first, lane, channels, inner, L)
    zero = tl.zeros(lane.shape, tl.float32)
    dx_sums = _repeated(zero, L.inputs)
    dp_sums = _repeated(zero, L.params)
    dstate = ()
    for j in tl.static_range(tl.constexpr(L.states)):
        if dnews[j] is None or L.every:
            dstate += (zero,)
        else:
            dstate += (tl.load(dnews[j] + first + lane, mask=inside),)
    once = _rows(inputs, strides, 0, steps, first, lane, inside, L.inputs, L)
    initial = _begin(states, rest, first, lane, inside, L)
    segments = tl.cdiv(steps, L.steps) if L.long else 1
    for back in range(segments):
        k = segments - 1 - back
        start = tl.cast(k, tl.int64) * L.steps
        xs = ()
        dss = ()
        for i in tl.static_range(tl.constexpr(L.steps)):
            xs += (_inputs(inputs, strides, once, start + i, steps, first, lane, inside, L),)
            dss += (
                _rows(douts, dout_strides, start + i, steps, first, lane, inside, L.outputs, L),
            )
        state = initial
        if borders is not None:
            kept = ()
            for j in tl.static_range(tl.constexpr(L.states)):
                row = borders + j * border_stride + (tl.cast(k, tl.int64) - 1) * n + first
                value = tl.load(row + lane, mask=tl.where(k > 0, inside, False))
                kept += (tl.where(k > 0, value, initial[j]),)
            state = kept
        befores = ()  # the states before every step
        for i in tl.static_range(tl.constexpr(L.steps)):
            befores += (state,)
            if i + 1 < L.steps:
                state = ADVANCE(xs[i], state, p, numbers)

        for i in tl.static_range(tl.constexpr(L.steps - 1), -1, -1):
            taken = start + i < steps
            live = inside if L.whole else tl.where(taken, inside, False)
            dv = dstate
            if L.every:
                dv = ()
                for j in tl.static_range(tl.constexpr(L.states)):
                    if dnews[j] is None:
                        dv += (dstate[j],)
                    else:
                        row = dnews[j] + within(start + i, steps, L.whole) * n + first
                        dv += (dstate[j] + tl.load(row + lane, mask=inside),)
            found = ADJOINT(xs[i], befores[i], p, dss[i], dv, numbers, ID)
            sums = ()
            for j in tl.static_range(tl.constexpr(L.inputs)):
                dx = found[j]
                if dinputs[j] is not None and not L.summed[j]:
                    row = dinputs[j] + (start + i) * n + first
                    dx_t = narrowed(dx, dinputs[j].dtype.element_ty)
                    tl.store(row + lane, dx_t, mask=live)
                sums += (dx_sums[j] + (dx if L.whole else tl.where(taken, dx, 0.0)),)
            dx_sums = sums
            dstate = _selected(taken, found[L.inputs :], dstate, L.states, L.whole)
            sums = ()
            for j in tl.static_range(tl.constexpr(L.params)):
                dp = found[L.inputs + L.states + j]
                sums += (dp_sums[j] + (dp if L.whole else tl.where(taken, dp, 0.0)),)
            dp_sums = sums

    for j in tl.static_range(tl.constexpr(L.inputs)):
        if dinputs[j] is not None and L.summed[j]:
            dx = narrowed(dx_sums[j], dinputs[j].dtype.element_ty)
            tl.store(dinputs[j] + first + lane, dx, mask=inside)
    for j in tl.static_range(tl.constexpr(L.states)):
        if dstates[j] is not None:
            tl.store(dstates[j] + first + lane, dstate[j], mask=inside)
    for j in tl.static_range(tl.constexpr(L.params)):
        if dparams[j] is not None:
            if L.per_channel[j]:
                tl.store(dparams[j] + first + lane, dp_sums[j], mask=inside)
            else:
                total = tl.sum(tl.where(inside, dp_sums[j], 0.0))
                tl.store(dparams[j] + tl.program_id(0), total)
