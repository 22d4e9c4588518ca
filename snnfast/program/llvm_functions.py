"""exp, log, tanh, sigmoid and powers as LLVM IR. Of floats they are computed in double by short
series and rounded once, for all numbers; where ``lanes`` is loose exp and sigmoid stay in float, to
some ulp. Of doubles the C library has them. ``lanes`` is llvm.py's, which writes the operations."""

import math

_FORMATS = {"float": (23, 127), "double": (52, 1023)}
"""Bits of the mantissa, and what is added to the exponent."""
_EXP2 = (0.00015403512749296772, 0.001339073547819869, 0.009618237493768859, 0.05550357433634863,
         0.2402264979496625, 0.6931471879266925)  # fmt: skip
"""Fitted: (2^f - 1) / f for |f| <= 1/2, to 2^-26 of 2^f - 1 and 2^-27 of 2^f."""
_ROOT = 0x3FE6A09E667F3BCD
"""The bits of sqrt(1/2)."""


def exp(lanes, x: str) -> str:
    if lanes.real == "double":
        return lanes.call("exp", x)
    return _ending_in_zero(lanes, x, lambda wide, v: _exp(wide, v, math.log2(math.e)))


def log(lanes, x: str) -> str:
    if lanes.real == "double":
        return lanes.call("log", x)
    y = _in_double(lanes, x, lambda wide, v: wide.mul(_log2(wide, v), wide.number(math.log(2.0))))
    zero, infinity = lanes.number(0.0), lanes.number(math.inf)
    y = lanes.select(lanes.compare("oeq", x, zero), lanes.number(-math.inf), y)
    y = lanes.select(lanes.compare("olt", x, zero), lanes.number(math.nan), y)
    y = lanes.select(lanes.compare("oeq", x, infinity), infinity, y)
    return lanes.select(lanes.compare("uno", x, x), x, y)


def sigmoid(lanes, x: str) -> str:
    """1 / (1 + exp(-x))."""
    if lanes.real == "double":
        one = lanes.number(1.0)
        return lanes.div(one, lanes.add(one, exp(lanes, lanes.negated(x))))

    def wide_sigmoid(wide, v: str) -> str:
        return _inverse(wide, wide.add(wide.number(1.0), _exp(wide, v, -math.log2(math.e))))

    return _ending_in_zero(lanes, x, wide_sigmoid)


def tanh(lanes, x: str) -> str:
    """(e - 1) / (e + 1) of e = exp(2 x)."""
    if lanes.real == "double":
        return lanes.call("tanh", x)

    def wide_tanh(wide, v: str) -> str:
        power, rest = _exp2_parts(wide, wide.mul(v, wide.number(2.0 * math.log2(math.e))))
        less = wide.call("fma", power, rest, wide.sub(power, wide.number(1.0)))
        return wide.mul(less, _inverse(wide, wide.add(less, wide.number(2.0))))

    y = _in_double(lanes, _clamped(lanes, x, 20.0), wide_tanh)  # 1 from there on
    return lanes.call("copysign", y, x)  # of 0


def power(lanes, x: str, exponent: float) -> str:
    """x ** exponent, a constant: exp2(exponent log2 |x|), the sign and the ends apart."""
    exponent = lanes.rounded(exponent)
    if lanes.real == "double" or not math.isfinite(exponent):
        return lanes.call("pow", x, lanes.number(exponent))
    if exponent == 0.0:
        return lanes.number(1.0)
    size = lanes.call("fabs", x)

    def wide_power(wide, v: str) -> str:
        y = wide.mul(_log2(wide, v), wide.number(exponent))
        return _exp(wide, _clamped(wide, y, 300.0), 1.0)

    y = _in_double(lanes, size, wide_power)
    zero, infinity = lanes.number(0.0), lanes.number(math.inf)
    ends = (zero, infinity) if exponent > 0 else (infinity, zero)
    for at, end in zip((zero, infinity), ends, strict=True):
        y = lanes.select(lanes.compare("oeq", size, at), end, y)
    if exponent != int(exponent):
        below, finite = lanes.compare("olt", x, zero), lanes.compare("olt", size, infinity)
        refused = lanes.code.let(f"and {lanes.truth} {below}, {finite}")
        y = lanes.select(refused, lanes.number(math.nan), y)
    elif exponent % 2:
        y = lanes.call("copysign", y, x)
    return lanes.select(lanes.compare("uno", x, x), x, y)


def _ending_in_zero(lanes, x: str, function) -> str:
    """A function that is 0 in float for all x below -110. Loose it is for those below -87, where it
    leaves the normal numbers, with which alone a processor is quick."""
    if not lanes.loose:
        return _in_double(lanes, _clamped(lanes, x, 110.0), function)
    y = function(lanes, _clamped(lanes, x, 87.0))
    below = lanes.compare("olt", x, lanes.number(-87.0))
    return lanes.select(below, lanes.number(0.0), y)


def _in_double(lanes, x: str, function) -> str:
    wide = lanes.of("double")
    return wide.converted("fptrunc", function(wide, lanes.converted("fpext", x, wide)), lanes)


def _polynomial(lanes, x: str, coefficients) -> str:
    """The highest power first."""
    highest, *others = coefficients
    y = lanes.number(highest)
    for c in others:
        y = lanes.call("fma", y, x, lanes.number(c))
    return y


def _inverse(wide, y: str) -> str:
    """1 / y to some 2^-46, 0 where y is beyond float: a float's quotient and a Newton step, in less
    than half the time of a division."""
    if wide.loose:
        return wide.div(wide.number(1.0), y)
    narrow = wide.of("float")
    r = narrow.div(narrow.number(1.0), wide.converted("fptrunc", y, narrow))
    r = narrow.converted("fpext", r, wide)
    return wide.mul(r, wide.call("fma", wide.negated(y), r, wide.number(2.0)))


def _clamped(lanes, x: str, limit: float) -> str:
    """x between -limit and limit; a NaN passes."""
    for how, bound in (("olt", -limit), ("ogt", limit)):
        x = lanes.select(lanes.compare(how, x, lanes.number(bound)), lanes.number(bound), x)
    return x


def _exp(wide, x: str, by: float) -> str:
    """2 ** (by x)."""
    power, rest = _exp2_parts(wide, x if by == 1.0 else wide.mul(x, wide.number(by)))
    return wide.call("fma", power, rest, power)


def _exp2_parts(wide, y: str) -> tuple[str, str]:
    """2^y = power (1 + rest), |rest| < 1/2, of y = n + f."""
    # A sum that is rounded to a whole number, whose last bits are n as an exponent has it.
    mantissa, bias = _FORMATS[wide.real]
    magic = wide.number(1.5 * 2.0**mantissa + bias)
    shifted = wide.add(y, magic)
    f = wide.sub(y, wide.sub(shifted, magic))
    power = wide.from_bits(wide.integers("shl", wide.bits(shifted), wide.whole(mantissa)))
    return power, wide.mul(f, _polynomial(wide, f, _EXP2))


def _log2(wide, x: str) -> str:
    """Of a positive normal double, to some 2^-39: x = 2^n m with m in sqrt(1/2)..sqrt(2), and the
    series of log(m) = 2 atanh(f), f = (m - 1) / (m + 1)."""
    # Taking the bits of sqrt(1/2) away rounds n to where m falls around 1.
    bits = wide.integers("sub", wide.bits(x), wide.whole(_ROOT))
    # n + 1024 as the last bits of a double 2^52.
    raised = wide.integers("add", bits, wide.whole(1024 << 52))
    count = wide.integers("lshr", raised, wide.whole(52))
    count = wide.from_bits(wide.integers("or", count, wide.whole(0x433 << 52)))
    n = wide.sub(count, wide.number(2.0**52 + 1024.0))
    mantissa = wide.integers("and", bits, wide.whole((1 << 52) - 1))
    m = wide.from_bits(wide.integers("add", mantissa, wide.whole(_ROOT)))
    one = wide.number(1.0)
    f = wide.mul(wide.sub(m, one), _inverse(wide, wide.add(m, one)))
    scale = 2.0 / math.log(2.0)
    series = _polynomial(wide, wide.mul(f, f), (scale / k for k in range(15, 0, -2)))
    return wide.call("fma", series, f, n)
