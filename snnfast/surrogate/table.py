"""Those that kernels know by their number: the same stand in ``csrc/include/surrogate.h`` and
``kernels/surrogate.py``."""

import math
from dataclasses import dataclass

import torch

from snnfast.surrogate.base import Surrogate


@dataclass(frozen=True)
class StraightThrough(Surrogate):
    """g(x) = 1 (Bengio et al. 2013, arXiv 1308.3432)."""

    ID = 0
    NAME = "straight_through"

    def _check(self):
        pass

    def params(self):
        return 0.0, 0.0

    def gradient(self, x):
        return torch.ones_like(x)

    def primitive(self, x):
        return x


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """g(x) = a s(ax) (1 - s(ax)), s the logistic function. SpikingJelly's default."""

    ID = 1
    NAME = "sigmoid"
    alpha: float = 4.0

    def gradient(self, x):
        s = torch.sigmoid(self.alpha * x)
        return self.alpha * s * (1 - s)

    def primitive(self, x):
        return torch.sigmoid(self.alpha * x)


@dataclass(frozen=True)
class ATan(Surrogate):
    """g(x) = (a/2) / (1 + (pi a x / 2)^2) (Fang et al. 2021, arXiv 2007.05785)."""

    ID = 2
    NAME = "atan"
    alpha: float = 2.0

    def gradient(self, x):
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * x) ** 2)

    def primitive(self, x):
        return torch.atan(math.pi / 2 * self.alpha * x) / math.pi + 0.5


@dataclass(frozen=True)
class PiecewiseQuadratic(Surrogate):
    """g(x) = max(0, a - a^2 |x|), the triangle (Esser et al. 2016, arXiv 1603.08270)."""

    ID = 3
    NAME = "piecewise_quadratic"
    alpha: float = 1.0

    def gradient(self, x):
        return torch.clamp(self.alpha - self.alpha**2 * x.abs(), min=0)

    def primitive(self, x):
        y = torch.clamp(self.alpha * x, -1, 1)
        return y - 0.5 * y * y.abs() + 0.5


@dataclass(frozen=True)
class PiecewiseExp(Surrogate):
    """g(x) = (a/2) exp(-a |x|) (Shrestha and Orchard 2018, SLAYER, arXiv 1810.08646)."""

    ID = 4
    NAME = "piecewise_exp"
    alpha: float = 1.0

    def gradient(self, x):
        return self.alpha / 2 * torch.exp(-self.alpha * x.abs())

    def primitive(self, x):
        e = torch.exp(-self.alpha * x.abs()) / 2
        return torch.where(x < 0, e, 1 - e)


@dataclass(frozen=True)
class SoftSign(Surrogate):
    """g(x) = 1 / (2 a (1/a + |x|)^2) (SpikingJelly's SoftSign)."""

    ID = 5
    NAME = "soft_sign"
    alpha: float = 2.0

    def gradient(self, x):
        return 1 / (2 * self.alpha * (1 / self.alpha + x.abs()) ** 2)

    def primitive(self, x):
        return 0.5 * self.alpha * x / (1 + self.alpha * x.abs()) + 0.5


@dataclass(frozen=True)
class SuperSpike(Surrogate):
    """g(x) = a / (1 + |x|)^2 (Zenke and Ganguli 2018, arXiv 1705.11146)."""

    ID = 6
    NAME = "super_spike"
    alpha: float = 1.0

    def gradient(self, x):
        return self.alpha / (1 + x.abs()) ** 2

    def primitive(self, x):
        return self.alpha * x / (1 + x.abs()) + 0.5


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """g(x) = 1 / (k |x| + 1)^2 (snnTorch's ``fast_sigmoid``)."""

    ID = 7
    NAME = "fast_sigmoid"
    slope: float = 25.0

    def params(self):
        return float(self.slope), 0.0

    def gradient(self, x):
        return 1 / (self.slope * x.abs() + 1) ** 2

    def primitive(self, x):
        return x / (self.slope * x.abs() + 1) + 0.5


@dataclass(frozen=True)
class Erf(Surrogate):
    """g(x) = (a / sqrt(pi)) exp(-a^2 x^2), the Gaussian (Yin et al. 2021, arXiv 2103.12593)."""

    ID = 8
    NAME = "erf"
    alpha: float = 2.0

    def gradient(self, x):
        return self.alpha / math.sqrt(math.pi) * torch.exp(-((self.alpha * x) ** 2))

    def primitive(self, x):
        return 0.5 * torch.erfc(-self.alpha * x)


@dataclass(frozen=True)
class Rect(Surrogate):
    """g(x) = a [|x| < 1/(2a)], the rectangle of width 1/a (Wu et al. 2018, arXiv 1706.02609)."""

    ID = 9
    NAME = "rect"
    alpha: float = 1.0

    def gradient(self, x):
        return self.alpha * (x.abs() < 0.5 / self.alpha).to(x.dtype)

    def primitive(self, x):
        return torch.clamp(self.alpha * x + 0.5, 0, 1)


@dataclass(frozen=True)
class LeakyKReLU(Surrogate):
    """g(x) = k where x >= 0, else leak (SpikingJelly's LeakyKReLU)."""

    ID = 10
    NAME = "leaky_k_relu"
    leak: float = 0.0
    k: float = 1.0

    def _check(self):
        pass

    def params(self):
        return float(self.leak), float(self.k)

    def gradient(self, x):
        k = torch.full_like(x, self.k)
        return torch.where(x >= 0, k, torch.full_like(x, self.leak))

    def primitive(self, x):
        return torch.where(x >= 0, self.k * x, self.leak * x)


@dataclass(frozen=True)
class S2NN(Surrogate):
    """g(x) = a s(ax) (1 - s(ax)) where x < 0, else b / (x + 1) (arXiv 2201.10879)."""

    ID = 11
    NAME = "s2nn"
    alpha: float = 4.0
    beta: float = 1.0

    def params(self):
        return float(self.alpha), float(self.beta)

    def gradient(self, x):
        s = torch.sigmoid(self.alpha * x)
        return torch.where(x < 0, self.alpha * s * (1 - s), self.beta / (x.abs() + 1))

    def primitive(self, x):
        s = torch.sigmoid(self.alpha * x)
        return torch.where(x < 0, s, self.beta * torch.log(x.abs() + 1) + 0.5)


@dataclass(frozen=True)
class QPseudoSpike(Surrogate):
    """g(x) = (1 + 2 |x| / (a - 1))^(-a), a > 1 (Herranz-Celotti and Rouat, arXiv 2202.00282)."""

    ID = 12
    NAME = "q_pseudo_spike"
    alpha: float = 2.0

    def _check(self):
        self._positive(self.alpha, 1.0)

    def gradient(self, x):
        return (1 + 2 / (self.alpha - 1) * x.abs()) ** -self.alpha

    def primitive(self, x):
        tail = 0.5 * (1 + 2 / (self.alpha - 1) * x.abs()) ** (1 - self.alpha)
        return torch.where(x < 0, tail, 1 - tail)


@dataclass(frozen=True)
class NonzeroSignLogAbs(Surrogate):
    """g(x) = 1 / (1/a + |x|) (SpikingJelly's NonzeroSignLogAbs)."""

    ID = 13
    NAME = "nonzero_sign_log_abs"
    alpha: float = 1.0

    def gradient(self, x):
        return 1 / (1 / self.alpha + x.abs())

    def primitive(self, x):
        y = torch.log(self.alpha * x.abs() + 1)
        return torch.where(x < 0, -y, y)


@dataclass(frozen=True)
class PiecewiseLeakyReLU(Surrogate):
    """g(x) = 1/(2w) where |x| < w, else c (SpikingJelly's PiecewiseLeakyReLU)."""

    ID = 14
    NAME = "piecewise_leaky_relu"
    w: float = 1.0
    c: float = 0.01

    def params(self):
        return float(self.w), float(self.c)

    def gradient(self, x):
        inside = torch.full_like(x, 1 / (2 * self.w))
        return torch.where(x.abs() < self.w, inside, torch.full_like(x, self.c))

    def primitive(self, x):
        y = torch.clamp(x, -self.w, self.w)
        return y / (2 * self.w) + 0.5 + self.c * (x - y)
