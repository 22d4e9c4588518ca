"""The operations of a neuron's program that Triton has otherwise, on tiles of float32.

Exact as IEEE rounds them: quotient, root, minimum and maximum, which keep a NaN. exp, log, tanh and
sigmoid are good to 2 ulp, where Triton's own exp loses one for every binary digit of x. Powers are
taken in float64, as nothing shorter is good enough.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from .surrogate import INTERPRET, reciprocal


@triton.jit
def narrowed(value, DTYPE: tl.constexpr):
    """``value`` rounded to a dtype; Triton's interpreter cuts off what bfloat16 has no room for."""
    if INTERPRET and DTYPE == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        nearest = bits.to(tl.float32, bitcast=True)
        value = tl.where(value == value, nearest, value)
    return value.to(DTYPE)


@triton.jit
def minimum(x, y):
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def maximum(x, y):
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def negate(x):
    """-x; Triton's own is 0 - x, which makes +0 of +0."""
    return x * -1.0


@triton.jit
def exp(x):
    if INTERPRET:
        y = tl.exp(x.to(tl.float64)).to(tl.float32)
    else:
        y = libdevice.exp(x)
    return y


@triton.jit
def log(x):
    if INTERPRET:
        y = tl.log(x.to(tl.float64)).to(tl.float32)
    else:
        y = libdevice.log(x)
    return y


@triton.jit
def tanh(x):
    if INTERPRET:
        # (1 - e) / (1 + e), and x itself where 1 - e would cancel.
        d = x.to(tl.float64)
        e = tl.exp(tl.abs(d) * -2.0)
        y = tl.where(d < 0.0, e - 1.0, 1.0 - e) / (1.0 + e)
        y = tl.where(tl.abs(d) < 1e-4, d - d * d * d / 3.0, y).to(tl.float32)
    else:
        y = libdevice.tanh(x)
    return y


@triton.jit
def sigmoid(x):
    """By way of e = exp(-|x|): 1 / (1 + e) or e / (1 + e), with what the sum in float32 lost."""
    e = exp(negate(tl.abs(x)))
    if INTERPRET:  # whose fma rounds twice
        z = (1.0 / (1.0 + e.to(tl.float64))).to(tl.float32)
    else:
        y = 1.0 + e
        z = reciprocal(y)
        remainder = tl.fma(negate(e - (y - 1.0)), z, tl.fma(negate(y), z, 1.0))
        z = tl.fma(remainder, z, z)
    return tl.where(x >= 0.0, z, e * z)


@triton.jit
def power(x, exponent):
    """x to the power of a number other than 0."""
    wide = x.to(tl.float64)
    y = tl.exp(tl.log(tl.abs(wide)) * exponent)
    half = exponent * 0.5
    odd = tl.where(tl.floor(half) == half, 1.0, -1.0)
    below = tl.where(tl.floor(exponent) == exponent, odd * y, float("nan"))
    return tl.where(wide < 0.0, below, y).to(tl.float32)
