"""exp, log, tanh, sigmoid and powers as LLVM IR: of floats to 1 or 2 ulp by polynomials, for all
numbers; of doubles by the C library. ``lanes`` is llvm.py's, which writes the operations."""

import math

_ROUND = 12582912.0
"""1.5 * 2^23: adding it rounds a float to a whole number, which its last bits then hold."""


def _polynomial(lanes, x: str, *coefficients: float) -> str:
    """The highest power first."""
    y = lanes.number(coefficients[0])
    for c in coefficients[1:]:
        y = lanes.call("fma", y, x, lanes.number(c))
    return y


def _clamped(lanes, x: str, low: float, high: float) -> str:
    """A NaN passes."""
    for how, bound in (("olt", low), ("ogt", high)):
        outside = lanes.compare(how, x, lanes.number(bound))
        x = lanes.select(outside, lanes.number(bound), x)
    return x


def exp(lanes, x: str) -> str:
    """x = n ln2 + f, a polynomial in f, and n added to the exponent in two parts, each of which is
    the exponent of a normal number, so that a denormal result is rounded once."""
    if lanes.real == "double":
        return lanes.call("exp", x)
    x = _clamped(lanes, x, -104.0, 89.0)
    shifted = lanes.add(lanes.mul(x, lanes.number(1.44269504)), lanes.number(_ROUND))
    n = lanes.sub(shifted, lanes.number(_ROUND))
    f = lanes.call("fma", n, lanes.number(-0.693359375), x)
    f = lanes.call("fma", n, lanes.number(2.12194440e-4), f)
    y = _polynomial(
        lanes, f, 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2,
        1.6666665459e-1, 5.0000001201e-1,
    )  # fmt: skip
    y = lanes.add(lanes.call("fma", lanes.mul(y, f), f, f), lanes.number(1.0))
    whole = lanes.integers("sub", lanes.bits(shifted), lanes.whole(0x4B400000))
    half = lanes.integers("ashr", whole, lanes.whole(1))
    for part in (half, lanes.integers("sub", whole, half)):
        exponent = lanes.integers("add", part, lanes.whole(127))
        y = lanes.mul(y, lanes.from_bits(lanes.integers("shl", exponent, lanes.whole(23))))
    return y


def log(lanes, x: str) -> str:
    """x = 2^n m with m in sqrt(1/2)..sqrt(2), a polynomial in m - 1."""
    if lanes.real == "double":
        return lanes.call("log", x)
    tiny = lanes.compare("olt", x, lanes.number(2.0**-126))
    normal = lanes.select(tiny, lanes.mul(x, lanes.number(2.0**23)), x)
    # Taking the bits of sqrt(1/2) away rounds n to where m falls around 1.
    bits = lanes.integers("sub", lanes.bits(normal), lanes.whole(0x3F3504F3))
    power = lanes.integers("ashr", bits, lanes.whole(23))
    n = lanes.code.let(f"sitofp {lanes.integer} {power} to {lanes.kind}")
    n = lanes.sub(n, lanes.select(tiny, lanes.number(23.0), lanes.number(0.0)))
    mantissa = lanes.integers("and", bits, lanes.whole(0x007FFFFF))
    m = lanes.from_bits(lanes.integers("add", mantissa, lanes.whole(0x3F3504F3)))
    f = lanes.sub(m, lanes.number(1.0))
    square = lanes.mul(f, f)
    y = _polynomial(
        lanes, f, 7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1,
        1.4249322787e-1, -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )  # fmt: skip
    y = lanes.mul(lanes.mul(y, f), square)
    y = lanes.call("fma", n, lanes.number(-2.12194440e-4), y)
    y = lanes.call("fma", square, lanes.number(-0.5), y)
    y = lanes.call("fma", n, lanes.number(0.693359375), lanes.add(f, y))
    zero, infinity = lanes.number(0.0), lanes.number(math.inf)
    y = lanes.select(lanes.compare("oeq", x, zero), lanes.number(-math.inf), y)
    y = lanes.select(lanes.compare("olt", x, zero), lanes.number(math.nan), y)
    y = lanes.select(lanes.compare("oeq", x, infinity), infinity, y)
    return lanes.select(lanes.compare("uno", x, x), x, y)


def sigmoid(lanes, x: str) -> str:
    """1 / (1 + exp(-x))."""
    one = lanes.number(1.0)
    e = exp(lanes, lanes.code.let(f"fneg {lanes.kind} {x}"))
    return lanes.div(one, lanes.add(one, e))


def tanh(lanes, x: str) -> str:
    """A polynomial near 0, 1 - 2 / (exp(2 |x|) + 1) with x's sign elsewhere."""
    if lanes.real == "double":
        return lanes.call("tanh", x)
    size, one = lanes.call("fabs", x), lanes.number(1.0)
    e = exp(lanes, lanes.add(size, size))
    far = lanes.sub(one, lanes.div(lanes.number(2.0), lanes.add(e, one)))
    far = lanes.call("copysign", far, x)
    square = lanes.mul(x, x)
    near = _polynomial(
        lanes, square, -5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1,
        -3.33332819422e-1,
    )  # fmt: skip
    near = lanes.call("fma", lanes.mul(near, square), x, x)
    return lanes.select(lanes.compare("olt", size, lanes.number(0.625)), near, far)


def power(lanes, x: str, exponent: float) -> str:
    """x ** exponent, a constant: exp2(exponent log2 |x|) in double, the sign and the ends apart."""
    if lanes.real == "double" or not math.isfinite(exponent):
        return lanes.call("pow", x, lanes.number(exponent))
    size = lanes.call("fabs", x)
    wide = lanes.of("double")
    y = _exp2(wide, wide.mul(_log2(wide, _convert(lanes, "fpext", size, wide)),
                             wide.number(exponent)))  # fmt: skip
    y = _convert(wide, "fptrunc", y, lanes)
    zero, infinity = lanes.number(0.0), lanes.number(math.inf)
    ends = (zero, infinity) if exponent > 0 else (infinity, zero)
    for at, end in zip((zero, infinity), ends, strict=True):
        y = lanes.select(lanes.compare("oeq", size, at), end, y)
    if exponent == 0.0:
        return lanes.number(1.0)
    if exponent != int(exponent):
        below = lanes.compare("olt", x, zero)
        finite = lanes.compare("one", size, infinity)
        both = lanes.code.let(f"and {lanes.truth} {below}, {finite}")
        y = lanes.select(both, lanes.number(math.nan), y)
    elif exponent % 2:
        y = lanes.call("copysign", y, x)
    return lanes.select(lanes.compare("uno", x, x), x, y)


def _convert(lanes, how: str, x: str, to) -> str:
    return lanes.code.let(f"{how} {lanes.kind} {x} to {to.kind}")


def _log2(wide, x: str) -> str:
    """Of a positive normal double, to some 2^-40: x = 2^n m as in ``log``, and log(m) the series
    of 2 atanh(f), f = (m - 1) / (m + 1)."""
    half = 0x3FE6A09E667F3BCD  # sqrt(1/2)
    bits = wide.integers("sub", wide.bits(x), wide.whole(half))
    # n + 1024 in the last bits of 2^52, where no bits but a float's are wanted.
    raised = wide.integers("add", bits, wide.whole(1024 << 52))
    power = wide.integers("lshr", raised, wide.whole(52))
    power = wide.from_bits(wide.integers("or", power, wide.whole(0x433 << 52)))
    n = wide.sub(power, wide.number(2.0**52 + 1024.0))
    mantissa = wide.integers("and", bits, wide.whole((1 << 52) - 1))
    m = wide.from_bits(wide.integers("add", mantissa, wide.whole(half)))
    one = wide.number(1.0)
    f = wide.div(wide.sub(m, one), wide.add(m, one))
    square = wide.mul(f, f)
    scale = 2.0 / math.log(2.0)
    y = _polynomial(wide, square, *(scale / k for k in range(17, 0, -2)))
    return wide.call("fma", y, f, n)


def _exp2(wide, x: str) -> str:
    """To some 2^-37, between 2^-200 and 2^200."""
    magic = 1.5 * 2.0**52
    x = _clamped(wide, x, -200.0, 200.0)
    shifted = wide.add(x, wide.number(magic))
    f = wide.mul(wide.sub(x, wide.sub(shifted, wide.number(magic))), wide.number(math.log(2.0)))
    y = _polynomial(wide, f, *(1.0 / math.factorial(k) for k in range(10, -1, -1)))
    exponent = wide.integers("add", wide.bits(shifted), wide.whole(1023))
    return wide.mul(y, wide.from_bits(wide.integers("shl", exponent, wide.whole(52))))
