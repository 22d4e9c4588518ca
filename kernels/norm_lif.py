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
number a row or column, which a second, small reduction adds up in a fixed order.
"""

from typing import NamedTuple

import triton
import triton.language as tl


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
def place(rows, chunks, channels, width, TILE: tl.constexpr):
    """Where the program's tile lies: ``first`` and, from there, ``lane`` [rows, cols] with its mask
    ``inside``; the ``channel`` of a row or column, and its ``slot`` among the partial sums.

    rows: of the tile's kind in one timestep (B C chunks, or where channels are last B and what else
    stands before them); chunks: that a row of ``width * TILE.align`` neurons falls into.
    """
    row = tl.arange(0, TILE.rows)
    column = tl.arange(0, TILE.cols)
    width = width * TILE.align
    if TILE.last:
        block = tl.program_id(0) // chunks
        start = (tl.program_id(0) - block * chunks) * TILE.cols
        above = block.to(rows.dtype) * TILE.rows
        first = above.to(tl.int64) * width + start
        lane = row[:, None] * width + column[None, :]
        left = tl.minimum(rows - above, TILE.rows).to(tl.int32)
        inside = (row < left)[:, None] & (start + column < width)[None, :]
        slot = (block.to(tl.int64) * channels + start + column)[None, :]
        channel = (start + column)[None, :]
    else:
        above = tl.program_id(0).to(rows.dtype) * TILE.rows
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
def per_channel(values, channel, width, TILE: tl.constexpr):
    """Those of a tile's rows or columns, [rows, 1] or [1, cols]."""
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
def along(value, inside, TILE: tl.constexpr):
    """The sum of a tile over the neurons of each channel, [rows, 1] or [1, cols]."""
    return tl.sum(tl.where(inside, value, 0.0), axis=0 if TILE.last else 1, keep_dims=True)


@triton.jit
def keep_sum(parts, field, value, inside, slot, rows, channels, TILE: tl.constexpr):
    """The tile's sums over each channel into row ``field`` of parts [.., rows], or where channels
    are last [.., blocks of rows, channels]."""
    total = along(value, inside, TILE)
    if TILE.last:
        size = tl.cdiv(rows, TILE.rows).to(tl.int64) * channels
        # The slot of a column past the last channel belongs to the next block of rows.
        known = tl.max(inside.to(tl.int32), axis=0, keep_dims=True) > 0
    else:
        size = rows.to(tl.int64)
        known = slot < rows
    tl.store(parts + field * size + slot, total, mask=known)


@triton.jit(do_not_specialize=["steps", "rows", "chunks", "channels", "width"])
def norm_dy(
    y,  # [T, N], time stride y_stride
    dx,  # [T, N], time stride dx_stride
    dy,  # [T, N], time stride dy_stride; may be dx
    mean,  # [channels] float32, as a, b and c
    a,
    b,
    c,
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
):
    first, lane, inside, channel, _ = place(rows, chunks, channels, width, TILE)
    mean_c = per_channel(mean, channel, width, TILE)
    a_c = per_channel(a, channel, width, TILE)
    b_c = per_channel(b, channel, width, TILE)
    c_c = per_channel(c, channel, width, TILE)
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


@triton.jit
def rows_of(item, end, row, rows, TILE: tl.constexpr):
    """Which rows of a tile the item has, [rows, 1]: none from ``end`` on."""
    there = row < TILE.rows
    if TILE.last:
        there = row < rows - tl.cast(item, rows.dtype) * TILE.rows
    return tl.where(item < end, there[:, None], False)


@triton.jit(
    do_not_specialize=["steps", "items", "per", "groups", "rows", "chunks", "channels", "width"]
)
def norm_stats(
    y,  # [T, N], time stride y_stride
    parts,  # [4, channels, parts of a channel] float32: shift, mean beyond it, M2, count
    steps: tl.int32,
    y_stride: tl.int64,
    items,  # of B; where channels are last, of tiles of TILE.rows rows
    per,  # items of a program
    groups,  # of programs; items / per, rounded up
    rows,  # C chunks, or where channels are last B and what else stands before them
    chunks,
    channels,
    width: tl.int32,
    TILE: tl.constexpr,
    EVEN: tl.constexpr,  # no item is cut short, and their number is a multiple of ITEMS
    ITEMS: tl.constexpr,
    LONG: tl.constexpr,
    WHOLE: tl.constexpr,
    STEPS: tl.constexpr,
):
    """A program's share of its channels: sums of Y - k and of its square, k the mean of the first
    tile, so that an offset of the data costs no digits."""
    row = tl.arange(0, TILE.rows)
    column = tl.arange(0, TILE.cols)
    width = width * TILE.align
    across = chunks if TILE.last else tl.cdiv(rows, TILE.rows)
    group = tl.program_id(0) // across
    tile = tl.program_id(0) - group * across
    if TILE.last:
        channel = tile * TILE.cols + column
        known = (channel < width)[None, :]
        slot = (channel.to(tl.int64) * groups + group)[None, :]
        lane = row[:, None] * width + channel[None, :]
        inside = known & (row >= 0)[:, None]
        step = width.to(tl.int64) * TILE.rows
        size = channels.to(tl.int64) * groups
    else:
        index = tile * TILE.rows + row
        known = (index < rows)[:, None]
        slot = (index.to(tl.int64) * groups + group)[:, None]
        channel, start = split(index, chunks, TILE)
        lane = (channel * width + start)[:, None] + column[None, :]
        inside = known & (start[:, None] + column[None, :] < width)
        step = channels.to(tl.int64) * width
        size = rows.to(tl.int64) * groups
    begin = group.to(items.dtype) * per
    end = tl.minimum(begin + per, items)

    there = inside & rows_of(begin, end, row, rows, TILE)
    first_tile = tl.load(y + begin.to(tl.int64) * step + lane, mask=there).to(tl.float32)
    shift = along(first_tile, there, TILE)
    shift = shift / tl.maximum(along(tl.full(lane.shape, 1.0, tl.float32), there, TILE), 1.0)

    sums = tl.zeros(lane.shape, tl.float32)
    squares = tl.zeros(lane.shape, tl.float32)
    segments = tl.cdiv(steps, STEPS) if LONG else 1
    for item in range(begin, end, ITEMS):
        for k in range(segments):
            first = tl.cast(k, tl.int64) * STEPS
            ys = ()
            for j in tl.static_range(ITEMS):
                for i in tl.static_range(STEPS):
                    there = inside
                    if not EVEN:
                        there = inside & rows_of(item + j, end, row, rows, TILE)
                    t = first + i if WHOLE else tl.minimum(first + i, steps - 1)
                    tile_at = y + t * y_stride + (tl.cast(item, tl.int64) + j) * step
                    ys += (tl.load(tile_at + lane, mask=there),)
            for j in tl.static_range(ITEMS):
                for i in tl.static_range(STEPS):
                    d = ys[j * STEPS + i].to(tl.float32) - shift
                    if not EVEN:
                        d = tl.where(rows_of(item + j, end, row, rows, TILE), d, 0.0)
                    if not WHOLE:
                        d = tl.where(first + i < steps, d, 0.0)
                    sums += d
                    squares = tl.fma(d, d, squares)

    ones = along(tl.full(lane.shape, 1.0, tl.float32), inside, TILE)
    if TILE.last:
        of_channel = tl.minimum(rows - begin.to(rows.dtype) * TILE.rows, (end - begin) * TILE.rows)
        count = tl.zeros_like(ones) + steps.to(tl.float32) * of_channel.to(tl.float32)
    else:
        count = ones * (steps.to(tl.float32) * (end - begin).to(tl.float32))
    total = along(sums, inside, TILE)
    beyond = total / tl.maximum(count, 1.0)
    spread = tl.maximum(tl.fma(-total, beyond, along(squares, inside, TILE)), 0.0)
    tl.store(parts + slot, shift, mask=known)
    tl.store(parts + size + slot, beyond, mask=known)
    tl.store(parts + 2 * size + slot, spread, mask=known)
    tl.store(parts + 3 * size + slot, count, mask=known)


@triton.jit(do_not_specialize=["count", "channels"])
def norm_stats_finish(
    parts,  # [4, channels, count] float32, as norm_stats leaves them
    mean,  # [channels] float32
    var,  # [channels] float32
    count,
    channels,
    BLOCK: tl.constexpr,
):
    """A channel's mean and variance from those of its parts (Chan et al. 1979), in float64: there
    are few of them."""
    c = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    size = channels.to(tl.int64) * count
    parts = parts + c.to(tl.int64) * count
    weights = tl.zeros([BLOCK], tl.float64)
    sums = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        at = parts + start + lane
        inside = start + lane < count
        n = tl.load(at + 3 * size, mask=inside, other=0.0).to(tl.float64)
        shift = tl.load(at, mask=inside, other=0.0).to(tl.float64)
        weights += n
        sums += n * (shift + tl.load(at + size, mask=inside, other=0.0).to(tl.float64))
    total = tl.sum(weights)
    middle = tl.sum(sums) / total
    spread = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        at = parts + start + lane
        inside = start + lane < count
        n = tl.load(at + 3 * size, mask=inside, other=0.0).to(tl.float64)
        shift = tl.load(at, mask=inside, other=0.0).to(tl.float64)
        off = shift + tl.load(at + size, mask=inside, other=0.0).to(tl.float64) - middle
        squares = tl.load(at + 2 * size, mask=inside, other=0.0).to(tl.float64)
        spread += squares + n * (off * off)
    tl.store(mean + c, middle.to(tl.float32))
    tl.store(var + c, (tl.sum(spread) / total).to(tl.float32))
