"""Every surrogate's gradient g(x), x = H - theta, on a tile of float32.

The table, its identifiers and the sources of the formulas stand in snnfast/surrogate/. Exponents
are <= 0, so that nothing overflows. These are gradients, so the hardware's approximate reciprocal
and 2^x will do: one instruction each, where Triton's own division and exp take five, most of them
to keep denormals. The interpreter knows no assembly, and gets the plain form.
"""

import triton
import triton.language as tl

INTERPRET = tl.constexpr(bool(triton.knobs.runtime.interpret))
LOG2_E = tl.constexpr(1.4426950408889634)

STRAIGHT_THROUGH = tl.constexpr(0)
SIGMOID = tl.constexpr(1)
ATAN = tl.constexpr(2)
PIECEWISE_QUADRATIC = tl.constexpr(3)
PIECEWISE_EXP = tl.constexpr(4)
SOFT_SIGN = tl.constexpr(5)
SUPER_SPIKE = tl.constexpr(6)
FAST_SIGMOID = tl.constexpr(7)
ERF = tl.constexpr(8)
RECT = tl.constexpr(9)
LEAKY_K_RELU = tl.constexpr(10)
S2NN = tl.constexpr(11)
Q_PSEUDO_SPIKE = tl.constexpr(12)
NONZERO_SIGN_LOG_ABS = tl.constexpr(13)
PIECEWISE_LEAKY_RELU = tl.constexpr(14)


@triton.jit
def reciprocal(y):
    """1 / y, to an ulp."""
    if INTERPRET:
        z = 1.0 / y
    else:
        z = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [y], dtype=tl.float32, is_pure=True, pack=1
        )
    return z


@triton.jit
def exp2(x):
    """2^x, to two ulp."""
    if INTERPRET:
        z = tl.exp2(x)
    else:
        z = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return z


@triton.jit
def sigmoid_gradient(x, a):
    """a s(ax) (1 - s(ax)), through e = exp(-|ax|): a e / (1 + e)^2."""
    e = exp2(tl.abs(x) * (-LOG2_E * a))
    y = reciprocal(1.0 + e)
    return a * y * (e * y)


@triton.jit
def gradient(x, a, b, ID: tl.constexpr):
    """g(x) of the surrogate ID; a and b are its parameters in the order of the table."""
    if ID == STRAIGHT_THROUGH:
        g = tl.full(x.shape, 1.0, tl.float32)
    elif ID == SIGMOID:
        g = sigmoid_gradient(x, a)
    elif ID == ATAN:
        y = 1.5707963267948966 * a * x
        g = (a * 0.5) * reciprocal(tl.fma(y, y, 1.0))
    elif ID == PIECEWISE_QUADRATIC:
        y = a - a * a * tl.abs(x)
        g = tl.where(y < 0.0, 0.0, y)
    elif ID == PIECEWISE_EXP:
        g = (a * 0.5) * exp2(tl.abs(x) * (-LOG2_E * a))
    elif ID == SOFT_SIGN:
        y = reciprocal(1.0 / a + tl.abs(x))
        g = (0.5 / a) * y * y
    elif ID == SUPER_SPIKE:
        y = reciprocal(1.0 + tl.abs(x))
        g = a * y * y
    elif ID == FAST_SIGMOID:
        y = reciprocal(tl.fma(tl.abs(x), a, 1.0))
        g = y * y
    elif ID == ERF:
        y = a * x
        g = (a * 0.5641895835477563) * exp2(y * y * -LOG2_E)
    elif ID == RECT:
        g = tl.where(tl.abs(x) < 0.5 / a, a, 0.0)
    elif ID == LEAKY_K_RELU:
        g = tl.where(x >= 0.0, b, a)
    elif ID == S2NN:
        g = tl.where(x < 0.0, sigmoid_gradient(x, a), b * reciprocal(tl.abs(x) + 1.0))
    elif ID == Q_PSEUDO_SPIKE:
        g = exp2(-a * tl.log2(tl.fma(tl.abs(x), 2.0 / (a - 1.0), 1.0)))
    elif ID == NONZERO_SIGN_LOG_ABS:
        g = reciprocal(1.0 / a + tl.abs(x))
    else:
        tl.static_assert(ID == PIECEWISE_LEAKY_RELU, "unknown surrogate")
        g = tl.where(tl.abs(x) < a, 0.5 / a, b)
    return g
