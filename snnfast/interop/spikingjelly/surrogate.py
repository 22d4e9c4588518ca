"""SpikingJelly's surrogate functions: modules that fire at x >= 0 and have a gradient of their own.

The formulas are those of ``snnfast.surrogate`` where it has them; written out are the others.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from snnfast import surrogate as formulas


def heaviside(x: Tensor) -> Tensor:
    return (x >= 0).to(x)


class SurrogateFunctionBase(nn.Module):
    """A surrogate with one number: define ``spiking_function(x, alpha)``, whose backward is the
    gradient, and ``primitive_function(x, alpha)``, which stands in where not ``spiking``."""

    def __init__(self, alpha, spiking: bool = True):
        super().__init__()
        self.spiking = spiking
        self.alpha = alpha

    def set_spiking_mode(self, spiking: bool) -> None:
        self.spiking = spiking

    def extra_repr(self):
        return f"alpha={self.alpha}, spiking={self.spiking}"

    @staticmethod
    def spiking_function(x, alpha):
        raise NotImplementedError("a surrogate must define spiking_function(x, alpha)")

    @staticmethod
    def primitive_function(x, alpha):
        raise NotImplementedError("a surrogate must define primitive_function(x, alpha)")

    def forward(self, x: Tensor):
        return (self.spiking_function if self.spiking else self.primitive_function)(x, self.alpha)


class MultiArgsSurrogateFunctionBase(nn.Module):
    """A surrogate with several numbers, of which ``forward`` is to be defined."""

    def __init__(self, spiking: bool, *args, **kwargs):
        super().__init__()
        self.spiking = spiking

    def set_spiking_mode(self, spiking: bool) -> None:
        self.spiking = spiking


@dataclass(frozen=True)
class _Own(formulas.Surrogate):
    """A formula that snnfast has not; nothing is checked of its numbers."""

    ID = None


@dataclass(frozen=True)
class _PiecewiseLeakyReLU(_Own):
    """As snnfast's, but with a gradient of 1/w inside, where its primitive rises by 1/(2w)."""

    w: float = 1.0
    c: float = 0.01

    def gradient(self, x):
        return torch.where(x.abs() < self.w, 1 / self.w, self.c).to(x)

    def primitive(self, x):
        return formulas.PiecewiseLeakyReLU(w=self.w, c=self.c).primitive(x)


@dataclass(frozen=True)
class _SquarewaveFourierSeries(_Own):
    n: int = 2
    T_period: float = 8

    def _terms(self, function, x):
        w, first = math.pi * 2 / self.T_period, torch.zeros_like(x)
        return sum((function(2 * i - 1.0, w * x) for i in range(1, self.n)), first)

    def gradient(self, x):
        return self._terms(lambda k, wx: torch.cos(k * wx), x) * (4 / self.T_period)

    def primitive(self, x):
        return 0.5 + 2 / math.pi * self._terms(lambda k, wx: torch.sin(k * wx) / k, x)


@dataclass(frozen=True)
class _FakeNumericalGradient(_Own):
    alpha: float = 0.3

    def gradient(self, x):
        return torch.clamp_max((heaviside(x) * 2 - 1) / x, self.alpha)


@dataclass(frozen=True)
class _LogTailedReLU(_Own):
    alpha: float = 0.0

    def gradient(self, x):
        return torch.where(x > 1, 1 / x, torch.where(x <= 0, self.alpha, 1.0)).to(x)

    def primitive(self, x):
        below = torch.where(x > 0, x, self.alpha * x)
        return torch.where(x > 1, torch.log(x.clamp(min=1)) + 1, below)


def _numbers(formula) -> dict:
    """{its numbers: their defaults}"""
    return {field.name: field.default for field in fields(formula) if field.name != "spiking"}


def _with(formula, numbers) -> formulas.Surrogate:
    values = (n.item() if isinstance(n, Tensor) else n for n in numbers)
    return formula(**dict(zip(_numbers(formula), values)))


def _function(name: str, formula) -> type[torch.autograd.Function]:
    """``apply(x, *numbers)``: 1 where x >= 0, with the gradient of ``formula``."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, *numbers):
            ctx.save_for_backward(x)
            ctx.formula = _with(formula, numbers)
            ctx.numbers = len(numbers)
            return heaviside(x)

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return grad * ctx.formula.gradient(x), *[None] * ctx.numbers

    Function.__name__ = Function.__qualname__ = name
    return Function


class _Made:
    """A surrogate of a formula: its functions take the numbers in the order of the formula's."""

    @classmethod
    def of(cls, formula, function_name: str):
        """(the module, the function that is its spike)"""

        def primitive(x, *numbers):
            return _with(formula, numbers).primitive(x)

        def backward(grad, x, *numbers):
            return grad * _with(formula, numbers).gradient(x)

        name, function = formula.__name__.removeprefix("_"), _function(function_name, formula)
        members = {
            "NUMBERS": _numbers(formula),
            "spiking_function": staticmethod(function.apply),
            "primitive_function": staticmethod(primitive),
            "backward": staticmethod(backward),
        }
        about = {"__module__": __name__, "__qualname__": name, "__doc__": formula.__doc__}
        return type(name, (cls,), members | about), function


class _OneNumber(_Made, SurrogateFunctionBase):
    def __init__(self, alpha=None, spiking: bool = True):
        super().__init__(self.NUMBERS["alpha"] if alpha is None else alpha, spiking)


class _Numbers(_Made, MultiArgsSurrogateFunctionBase):
    def __init__(self, *numbers, spiking: bool = True, **by_name):
        if len(numbers) > len(self.NUMBERS):
            *numbers, spiking = numbers
        super().__init__(spiking)
        given = self.NUMBERS | dict(zip(self.NUMBERS, numbers)) | by_name
        if len(given) > len(self.NUMBERS):
            ours = ", ".join(self.NUMBERS)
            who, unknown = type(self).__name__, [n for n in by_name if n not in self.NUMBERS]
            raise TypeError(f"{who}: arguments must be among {ours}, spiking, got {unknown[0]}")
        for name, value in given.items():
            setattr(self, name, value)

    def extra_repr(self):
        numbers = [f"{name}={getattr(self, name)}" for name in self.NUMBERS]
        return ", ".join([*numbers, f"spiking={self.spiking}"])

    def forward(self, x: Tensor):
        function = self.spiking_function if self.spiking else self.primitive_function
        return function(x, *(getattr(self, name) for name in self.NUMBERS))


class _SpikingFirst(_Numbers):
    def __init__(self, spiking: bool = True, *numbers, **by_name):
        super().__init__(*numbers, spiking=spiking, **by_name)


PiecewiseQuadratic, piecewise_quadratic = _OneNumber.of(
    formulas.PiecewiseQuadratic, "piecewise_quadratic"
)
PiecewiseExp, piecewise_exp = _OneNumber.of(formulas.PiecewiseExp, "piecewise_exp")
Sigmoid, sigmoid = _OneNumber.of(formulas.Sigmoid, "sigmoid")
SoftSign, soft_sign = _OneNumber.of(formulas.SoftSign, "soft_sign")
ATan, atan = _OneNumber.of(formulas.ATan, "atan")
NonzeroSignLogAbs, nonzero_sign_log_abs = _OneNumber.of(
    formulas.NonzeroSignLogAbs, "nonzero_sign_log_abs"
)
Erf, erf = _OneNumber.of(formulas.Erf, "erf")
QPseudoSpike, q_pseudo_spike = _OneNumber.of(formulas.QPseudoSpike, "q_pseudo_spike")
FakeNumericalGradient, fake_numerical_gradient = _OneNumber.of(
    _FakeNumericalGradient, "fake_numerical_gradient"
)
LogTailedReLU, log_tailed_relu = _OneNumber.of(_LogTailedReLU, "log_tailed_relu")
S2NN, s2nn = _Numbers.of(formulas.S2NN, "s2nn")
PiecewiseLeakyReLU, piecewise_leaky_relu = _Numbers.of(_PiecewiseLeakyReLU, "piecewise_leaky_relu")
SquarewaveFourierSeries, squarewave_fourier_series = _Numbers.of(
    _SquarewaveFourierSeries, "squarewave_fourier_series"
)
LeakyKReLU, leaky_k_relu = _SpikingFirst.of(formulas.LeakyKReLU, "leaky_k_relu")
