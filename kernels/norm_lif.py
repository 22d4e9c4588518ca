"""What BatchNorm adds to the kernels of lif.py, and the kernels that stand beside them.

    X = (Y - mean) scale + bias [+ R]        a rounding for each operation, unfused, as everywhere
    statistics: mean and biased variance of a channel over steps and neurons
    dY = a dX + b (Y - mean) + c             a, b, c per channel

Bytes per neuron and timestep, b those of one element of y: statistics read y, b; the second pass
reads y and dX and writes dY, 3b. The first pass, and the second one without a residual, are
lif_backward's.

The trick: a tile is two-dimensional, rows of memory by columns, and a channel is a whole row (its
pixels lie side by side) or a whole column (channels last). So mean, scale and bias are loaded once
a row or column for all timesteps, and a sum over a channel is a sum along the other axis: one
number a row or column, which a second, small reduction adds up in a fixed order
(norm_statistics.py).
"""

from typing import NamedTuple

import triton
import triton.language as tl

MEAN, VAR, INV_STD, SCALE = (tl.constexpr(row) for row in range(4))
"""The rows of ``stats`` [4, channels]..."""
SUM, MOMENT, DWEIGHT, B, C = (tl.constexpr(row) for row in range(5))
"""...and of ``totals`` [5, channels], as in snnfast/backends/spec.py."""


class Tile(NamedTuple):
    """How a program's tile [rows, cols] lies over one timestep; all compile-time."""

    rows: int
    cols: int
    last: bool  # channels are columns; else rows, of ``width`` neurons each
    chunked: bool  # a row of ``width`` takes several of the tile's
    align: int  # divides ``width``; a power of two
    rates: bool  # the neuron's rate is one per channel, too


@triton.jit
def split(index, chunks, TILE: tl.constexpr):
    """Where the chunks numbered ``index`` lie: in which row of ``width`` neurons, all of the same
    channel, and from which of its columns on."""
    if TILE.chunked:
        row = index // chunks
        start = (index - row * chunks) * TILE.cols
    else:
        row = index
        start = tl.zeros_like(index)
    return row, start


@triton.jit
def place(program, item, rows, chunks, channels, width, TILE: tl.constexpr):
    """Where the program's tile lies: ``first`` and, from there, ``lane`` [rows, cols] with its mask
    ``inside``; the ``channel`` of a row or column, and its ``slot`` among the partial sums.

    rows: of the tile's kind in one timestep (B C chunks, or where channels are last B and what else
    stands before them); chunks: that a row of ``width * TILE.align`` neurons falls into; item:
    which of its tiles, where channels are last: all programs walk through memory together.
    """
    row = tl.arange(0, TILE.rows)
    column = tl.arange(0, TILE.cols)
    width = width * TILE.align
    if TILE.last:
        group = program // chunks
        start = (program - group * chunks) * TILE.cols
        block = item * (tl.num_programs(0) // chunks) + group
        above = block.to(rows.dtype) * TILE.rows
        first = above.to(tl.int64) * width + start
        lane = row[:, None] * width + column[None, :]
        left = tl.minimum(rows - above, TILE.rows).to(tl.int32)
        inside = (row < left)[:, None] & (start + column < width)[None, :]
        slot = (group.to(tl.int64) * channels + start + column)[None, :]
        channel = (start + column)[None, :]
    else:
        above = program.to(rows.dtype) * TILE.rows
        left = tl.minimum(rows - above, TILE.rows).to(tl.int32)
        slot = (above.to(tl.int64) + row)[:, None]
        if TILE.chunked:
            begin = above // chunks
            row, start = split((above - begin * chunks).to(tl.int32) + row, chunks, TILE)
        else:
            begin = above
            start = tl.zeros_like(row)
        first = begin.to(tl.int64) * width
        lane = (row * width + start)[:, None] + column[None, :]
        inside = (tl.arange(0, TILE.rows) < left)[:, None]
        inside = inside & (start[:, None] + column[None, :] < width)
        channel = (((begin % channels).to(tl.int32) + row) % channels)[:, None]
    return first, lane, inside, channel, slot


@triton.jit
def this_program(BACKWARDS: tl.constexpr):
    """Its number; from the last one down for a pass that reads what the pass before it has read,
    whose end is still in the L2 cache."""
    program = tl.program_id(0)
    return tl.num_programs(0) - 1 - program if BACKWARDS else program


@triton.jit
def per_channel(values, row: tl.constexpr, channel, channels, width, TILE: tl.constexpr):
    """Row ``row`` of ``values`` [.., channels] for a tile's rows or columns, [rows, 1] or
    [1, cols]."""
    if row != 0:
        # Channels last are a row of neurons, of whose width a divisor is known.
        values += row * tl.cast(width * TILE.align if TILE.last else channels, tl.int64)
    if TILE.last:
        found = tl.load(values + channel, mask=channel < width * TILE.align)
    else:
        found = tl.load(values + channel)
    return found


@triton.jit
def normalise(y, residual, mean, scale, bias):
    """X of a tile in float32; y itself where mean is None."""
    x = y.to(tl.float32)
    if mean is not None:
        x = (x - mean) * scale + bias
        if residual is not None:
            x = x + residual.to(tl.float32)
    return x


@triton.jit
def keep_sum(parts, field, value, slot, rows, chunks, channels, TILE: tl.constexpr):
    """The program's sums over each channel into row ``field`` of parts [.., rows], or where
    channels are last [.., programs of a channel, channels]."""
    total = tl.sum(value, axis=0 if TILE.last else 1, keep_dims=True)
    if TILE.last:
        groups = tl.num_programs(0) // chunks
        size = groups.to(tl.int64) * channels
        # The slot of a column past the last channel belongs to the next program.
        known = slot < (tl.program_id(0) // chunks + 1).to(tl.int64) * channels
    else:
        size = rows.to(tl.int64)
        known = slot < rows
    tl.store(parts + field * size + slot, total, mask=known)


@triton.jit(do_not_specialize=["steps", "rows", "chunks", "channels", "width"])
def norm_dy(
    y,  # [T, N], time stride y_stride
    dx,  # [T, N], time stride dx_stride
    dy,  # [T, N], time stride dy_stride; may be dx
    stats,  # [4, channels] float32
    totals,  # [5, channels] float32
    steps: tl.int32,
    y_stride: tl.int64,
    dx_stride: tl.int64,
    dy_stride: tl.int64,
    rows,
    chunks,
    channels,
    width,
    TILE: tl.constexpr,
    LONG: tl.constexpr,
    WHOLE: tl.constexpr,
    STEPS: tl.constexpr,
    BACKWARDS: tl.constexpr,
):
    program = this_program(BACKWARDS)
    first, lane, inside, channel, _ = place(program, 0, rows, chunks, channels, width, TILE)
    mean_c = per_channel(stats, MEAN, channel, channels, width, TILE)
    a_c = per_channel(stats, SCALE, channel, channels, width, TILE)
    b_c = per_channel(totals, B, channel, channels, width, TILE)
    c_c = per_channel(totals, C, channel, channels, width, TILE)
    segments = tl.cdiv(steps, STEPS) if LONG else 1
    for k in range(segments):
        start = tl.cast(k, tl.int64) * STEPS
        ys = ()
        dxs = ()
        for i in tl.static_range(STEPS):
            t = start + i if WHOLE else tl.minimum(start + i, steps - 1)
            ys += (tl.load(y + t * y_stride + first + lane, mask=inside),)
            dxs += (tl.load(dx + t * dx_stride + first + lane, mask=inside),)
        for i in tl.static_range(STEPS):
            live = inside if WHOLE else tl.where(start + i < steps, inside, False)
            centred = ys[i].to(tl.float32) - mean_c
            dy_t = tl.fma(a_c, dxs[i].to(tl.float32), tl.fma(b_c, centred, c_c))
            row = dy + (start + i) * dy_stride + first
            tl.store(row + lane, dy_t.to(dy.dtype.element_ty), mask=live)
