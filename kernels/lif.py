"""All timesteps of a spiking layer in one launch, forward and backward.

For t = 0 .. T-1, with CHARGE, FIRE and RESET of a neuron (snnfast/kernels/lif_step.py):

    H_t = charge(X_t, V_{t-1})      S_t = fire(H_t)      V_t = reset(H_t, S_t)

and back, t = T-1 .. 0:  dX_t, dV_{t-1} = adjoint(X_t, V_{t-1}, H_t, dS_t, dV_t).

Bytes per neuron and timestep, b those of one element of x: forward reads x and writes s, 2b;
backward reads x and ds and writes dx, 3b. A static input is read once; summed over time, its
gradient is written once. For T > 8 forward also writes V (4 bytes) before every 8th step but the
first, and backward reads it: 4/8 more each way.

The trick: V lives in registers from the first step to the last, and so do the H of 8 steps, in a
tuple that the compiler unrolls away. Backward therefore needs no H from forward. It recomputes the
H of a segment with forward's own code, from the kept V, and walks the segment backwards.

Tensors are dense in each timestep: neuron i of step t lies at t * stride + i. Up to 8
steps are unrolled, more run in a loop over segments of 8.

With stats and bias, x is normalised on the way in, X = (x - mean) scale + bias [+ residual],
b more bytes each way for a residual. A tile then lies along the channels (norm_lif.py), without
them it is any BLOCK neurons. Backward also adds up dX and dX (x - mean) over each channel, and
need not write dX; or it writes scale dX + b (x - mean) + c in its place.
"""

import triton
import triton.language as tl

from .norm_lif import MEAN, SCALE, B, C, keep_sum, normalise, per_channel, place, this_program


@triton.jit
def channel_of(first, lane, channels, inner):
    """The channel of every neuron of a tile."""
    # Two quotients of 64 bits for the tile; those of its neurons have the bits that ``inner`` has.
    run = first // inner
    beyond = lane - (inner - (first - run * inner)).to(inner.dtype)  # what is left of the run
    later = tl.where(beyond < 0, 0, beyond // inner + 1)
    return ((run % channels).to(channels.dtype) + later) % channels


@triton.jit
def _rate(rate, channel, inner, tau, factor, RATE: tl.constexpr, TILE: tl.constexpr):
    """tau and 1/tau of a tile: two numbers, or two tiles for a rate per channel.

    RATE: "number" (tau and factor as given), else how a tensor counts: "tau" or "factor", [] or
    [channels] (``channel`` is None for []).
    """
    if RATE != "number":
        if channel is None:
            value = tl.load(rate)
        elif TILE is None:
            value = tl.load(rate + channel)
        else:
            value = per_channel(rate, 0, channel, None, inner, TILE)
        factor = tl.div_rn(1.0, value) if RATE == "tau" else value
        tau = value
    return tau, factor


@triton.jit
def within(t, steps, WHOLE: tl.constexpr):
    """The step to read for step t: a step past the end reads the last one again, out of the cache,
    and its results are dropped. A predicate of its own would keep the load from being issued early.
    """
    return t if WHOLE else tl.minimum(t, steps - 1)


@triton.jit
def next_row(row, stride, t, steps, WHOLE: tl.constexpr):
    """The row of the step to read after t."""
    return row + (stride if WHOLE else tl.where(t + 1 < steps, stride, 0))


@triton.jit(do_not_specialize=["steps", "channels", "inner", "rows", "chunks"])
def lif_forward(
    x,  # [T, N], time stride x_stride
    v0,  # [N] float32, or None: V starts at r
    rate,  # [] or [channels] float32, or None
    s,  # [T, N]
    v,  # [N] or, where V_ALL, [T, N] float32, or None
    borders,  # [segments - 1, N] float32, or None
    stats,  # [4, channels] float32, or None: x is what comes in
    bias,  # [channels] float32, or None
    residual,  # [T, N], time stride residual_stride, or None
    steps: tl.int32,
    n: tl.int64,
    x_stride: tl.int64,
    residual_stride: tl.int64,
    rows,  # with stats: how the tile lies, as ``place`` has it; inner is its width
    chunks,
    channels,
    inner,
    tau,
    factor,
    theta,
    r,
    a,
    b,
    CHARGE: tl.constexpr,
    FIRE: tl.constexpr,
    RESET: tl.constexpr,
    FLAGS: tl.constexpr,
    RATE: tl.constexpr,
    STATIC: tl.constexpr,  # one x for all steps
    V_ALL: tl.constexpr,
    LONG: tl.constexpr,  # a loop over segments of STEPS steps; else one segment
    WHOLE: tl.constexpr,  # T fills its segments: no step needs a predicate
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,  # with stats, else None
):
    if TILE is None:
        first = tl.program_id(0).to(tl.int64) * BLOCK
        lane = tl.arange(0, BLOCK)
        inside = lane < tl.minimum(n - first, BLOCK).to(tl.int32)
        rate_channel = None if channels is None else channel_of(first, lane, channels, inner)
        mean_c, scale_c, bias_c = None, None, None
    else:
        program = tl.program_id(0)
        first, lane, inside, channel, _ = place(program, 0, rows, chunks, channels, inner, TILE)
        rate_channel = channel if TILE.rates else None
        mean_c = per_channel(stats, MEAN, channel, channels, inner, TILE)
        scale_c = per_channel(stats, SCALE, channel, channels, inner, TILE)
        bias_c = per_channel(bias, 0, channel, channels, inner, TILE)
    tau, factor = _rate(rate, rate_channel, inner, tau, factor, RATE, TILE)
    P = (tau, factor, theta, r, a, b)

    if v0 is not None:
        state = tl.load(v0 + first + lane, mask=inside)
    else:
        state = tl.full(lane.shape, 0.0, tl.float32) + r
    if STATIC:
        x_once = tl.load(x + first + lane, mask=inside)
    segments = tl.cdiv(steps, STEPS) if LONG else 1
    for k in range(segments):
        start = tl.cast(k, tl.int64) * STEPS
        # The loads of a segment stand first, to be in flight together.
        xs = ()
        residuals = ()
        for i in tl.static_range(STEPS):
            if STATIC:
                xs += (x_once,)
            else:
                row = x + within(start + i, steps, WHOLE) * x_stride + first
                xs += (tl.load(row + lane, mask=inside),)
            if residual is not None:
                row = residual + within(start + i, steps, WHOLE) * residual_stride + first
                residuals += (tl.load(row + lane, mask=inside),)
        for i in tl.static_range(STEPS):
            live = inside if WHOLE else tl.where(start + i < steps, inside, False)
            residual_t = None if residual is None else residuals[i]
            x_t = normalise(xs[i], residual_t, mean_c, scale_c, bias_c)
            h = CHARGE(x_t, state, P, FLAGS)
            spike = FIRE(h, P, FLAGS)
            after = RESET(h, spike, P, FLAGS)
            row = s + (start + i) * n + first
            tl.store(row + lane, spike.to(s.dtype.element_ty), mask=live)
            if V_ALL:
                tl.store(v + (start + i) * n + first + lane, after, mask=live)
            state = after if WHOLE else tl.where(start + i < steps, after, state)
        if borders is not None:
            row = borders + tl.cast(k, tl.int64) * n + first
            tl.store(row + lane, state, mask=tl.where(k + 1 < segments, inside, False))
    if v is not None:
        if not V_ALL:
            tl.store(v + first + lane, state, mask=inside)


@triton.jit(do_not_specialize=["steps", "channels", "inner", "rows", "chunks", "items"])
def lif_backward(
    x,  # [T, N], time stride x_stride
    v0,  # [N] float32, or None: V started at r
    rate,  # [] or [channels] float32, or None
    borders,  # [segments - 1, N] float32, or None for T <= STEPS
    ds,  # [T, N], time stride ds_stride, or None: zeros
    dv,  # [N] or, where V_ALL, [T, N] float32, or None: zeros
    dx,  # [T, N] or, where SUM, [N]; or None
    dv0,  # [N] float32, or None
    drate,  # float32, or None: [N] for a rate per channel (with stats: row 2 of sums), else one sum
    # per program
    stats,  # [4, channels] float32, or None: x is what comes in
    bias,  # [channels] float32, or None
    residual,  # [T, N], time stride residual_stride, or None
    sums,  # [2 or 3, slots] float32: dX and dX (x - mean) by ``place``'s slots; or None
    totals,  # [5, channels] float32: dx gets scale dX + b (x - mean) + c; or None: it gets dX
    steps: tl.int32,
    n: tl.int64,
    x_stride: tl.int64,
    ds_stride: tl.int64,
    residual_stride: tl.int64,
    rows,
    chunks,
    channels,
    inner,
    items,  # tiles of a program, where MANY
    tau,
    factor,
    theta,
    r,
    a,
    b,
    CHARGE: tl.constexpr,
    FIRE: tl.constexpr,
    RESET: tl.constexpr,
    ADJOINT: tl.constexpr,
    FLAGS: tl.constexpr,
    RATE: tl.constexpr,
    STATIC: tl.constexpr,
    SUM: tl.constexpr,  # dx is summed over time
    V_ALL: tl.constexpr,
    LONG: tl.constexpr,
    WHOLE: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,  # with stats, else None
    MANY: tl.constexpr,  # a program has several tiles, and adds up all of them
    BACKWARDS: tl.constexpr,
):
    program = this_program(BACKWARDS)
    if TILE is None:
        first = program.to(tl.int64) * BLOCK
        lane = tl.arange(0, BLOCK)
        inside = lane < tl.minimum(n - first, BLOCK).to(tl.int32)
        rate_channel = None if channels is None else channel_of(first, lane, channels, inner)
        mean_c, scale_c, bias_c = None, None, None
    else:
        first, lane, inside, channel, slot = place(program, 0, rows, chunks, channels, inner, TILE)
        rate_channel = channel if TILE.rates else None
        mean_c = per_channel(stats, MEAN, channel, channels, inner, TILE)
        scale_c = per_channel(stats, SCALE, channel, channels, inner, TILE)
        bias_c = per_channel(bias, 0, channel, channels, inner, TILE)
    tau, factor = _rate(rate, rate_channel, inner, tau, factor, RATE, TILE)
    P = (tau, factor, theta, r, a, b)

    zeros = tl.zeros(lane.shape, tl.float32)
    dx_sum = zeros
    drate_sum = zeros
    moment = zeros
    if totals is not None:
        b_c = per_channel(totals, B, channel, channels, inner, TILE)
        c_c = per_channel(totals, C, channel, channels, inner, TILE)
    for item in range(items if MANY else 1):
        if TILE is not None:
            first, _, inside, _, _ = place(program, item, rows, chunks, channels, inner, TILE)
        dstate = zeros
        if dv is not None:
            if not V_ALL:
                dstate = tl.load(dv + first + lane, mask=inside)
        if STATIC:
            x_once = tl.load(x + first + lane, mask=inside)
        segments = tl.cdiv(steps, STEPS) if LONG else 1
        for j in range(segments):
            k = segments - 1 - j
            start = tl.cast(k, tl.int64) * STEPS
            xs = ()
            dss = ()
            residuals = ()
            # From step to step rather than by products, which the loop over tiles would keep.
            x_row = x + start * x_stride + first
            ds_row = None if ds is None else ds + start * ds_stride + first
            residual_row = None if residual is None else residual + start * residual_stride + first
            for i in tl.static_range(STEPS):
                xs += (x_once if STATIC else tl.load(x_row + lane, mask=inside),)
                x_row = next_row(x_row, x_stride, start + i, steps, WHOLE)
                if ds is not None:
                    dss += (tl.load(ds_row + lane, mask=inside),)
                    ds_row = next_row(ds_row, ds_stride, start + i, steps, WHOLE)
                if residual is not None:
                    residuals += (tl.load(residual_row + lane, mask=inside),)
                    residual_row = next_row(residual_row, residual_stride, start + i, steps, WHOLE)

            # V before the segment.
            state = zeros + r
            if v0 is not None:
                state = tl.load(v0 + first + lane, mask=tl.where(k == 0, inside, False))
            if borders is not None:
                row = borders + (tl.cast(k, tl.int64) - 1) * n + first
                kept = tl.load(row + lane, mask=tl.where(k > 0, inside, False))
                state = tl.where(k > 0, kept, state)
            begin = state
            hs = ()
            for i in tl.static_range(STEPS):
                residual_t = None if residual is None else residuals[i]
                x_t = normalise(xs[i], residual_t, mean_c, scale_c, bias_c)
                h = CHARGE(x_t, state, P, FLAGS)
                state = RESET(h, FIRE(h, P, FLAGS), P, FLAGS)
                hs += (h,)

            if dx is not None:
                dx_row = dx + (start + STEPS - 1) * n + first
            for i in tl.static_range(STEPS - 1, -1, -1):
                live = inside if WHOLE else tl.where(start + i < steps, inside, False)
                residual_t = None if residual is None else residuals[i]
                x_t = normalise(xs[i], residual_t, mean_c, scale_c, bias_c)
                # From H rather than kept: V_{t-1} is needed for drate alone.
                before = begin if i == 0 else RESET(hs[i - 1], FIRE(hs[i - 1], P, FLAGS), P, FLAGS)
                ds_t = zeros if ds is None else dss[i].to(tl.float32)
                dv_t = dstate
                if dv is not None:
                    if V_ALL:
                        row = dv + within(start + i, steps, WHOLE) * n + first
                        dv_t = dv_t + tl.load(row + lane, mask=inside)
                dx_t, dv_t, drate_t = ADJOINT(x_t, before, hs[i], ds_t, dv_t, P, FLAGS)
                taken = start + i < steps
                dstate = dv_t if WHOLE else tl.where(taken, dv_t, dstate)
                if MANY or not WHOLE:
                    counted = live if MANY else taken
                    drate_t = tl.where(counted, drate_t, 0.0)
                    weight = tl.where(counted, dx_t, 0.0)
                else:
                    weight = dx_t
                dx_sum += weight
                drate_sum += drate_t
                if sums is not None and not SUM:
                    moment = tl.fma(weight, xs[i].to(tl.float32) - mean_c, moment)
                if dx is not None and not SUM:
                    if totals is not None:
                        centred = xs[i].to(tl.float32) - mean_c
                        dx_t = tl.fma(scale_c, dx_t, tl.fma(b_c, centred, c_c))
                    tl.store(dx_row + lane, dx_t.to(dx.dtype.element_ty), mask=live)
                    dx_row -= n

        if SUM:
            if sums is not None:  # x is the same at every step
                moment = dx_sum * (x_once.to(tl.float32) - mean_c)
            dx_t = dx_sum
            if totals is not None:
                centred = x_once.to(tl.float32) - mean_c
                dx_t = tl.fma(scale_c, dx_t, tl.fma(b_c, centred, c_c))
            tl.store(dx + first + lane, dx_t.to(dx.dtype.element_ty), mask=inside)
        if dv0 is not None:
            tl.store(dv0 + first + lane, dstate, mask=inside)
        if drate is not None and TILE is None:
            if rate_channel is not None:
                tl.store(drate + first + lane, drate_sum, mask=inside)
    if not MANY:  # else only what counts has been added
        dx_sum = tl.where(inside, dx_sum, 0.0)
        moment = tl.where(inside, moment, 0.0)
        drate_sum = tl.where(inside, drate_sum, 0.0)
    if sums is not None:
        keep_sum(sums, 0, dx_sum, slot, rows, chunks, channels, TILE)
        keep_sum(sums, 1, moment, slot, rows, chunks, channels, TILE)
    if drate is not None:
        if rate_channel is None:
            tl.store(drate + program, tl.sum(drate_sum))
        elif TILE is not None:
            keep_sum(drate, 2, drate_sum, slot, rows, chunks, channels, TILE)
