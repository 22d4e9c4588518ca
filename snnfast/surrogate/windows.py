"""Those that no kernel has by number: their formula is traced into the program that runs."""

import math
from dataclasses import dataclass

import torch

from snnfast.surrogate.base import Surrogate


@dataclass(frozen=True)
class Scaled(Surrogate):
    """g(x) = amplitude h(x + offset), h the gradient of ``of``.

    >>> Scaled(PiecewiseQuadratic(), 0.3)  # 0.3 max(0, 1 - |x|) (Rathi et al. 2020)
    >>> Scaled(Rect(), offset=0.2)         # [|H| < 1/2] where v_threshold is 0.2
    """

    NAME = "scaled"
    of: Surrogate
    amplitude: float = 1.0
    offset: float = 0.0

    def _check(self):
        pass

    def gradient(self, x):
        return self.amplitude * self.of.gradient(x + self.offset)

    def primitive(self, x):
        return self.amplitude * self.of.primitive(x + self.offset)


@dataclass(frozen=True)
class InclusiveRect(Surrogate):
    """g(x) = a [|x| <= 1/(2a)], the rectangle with its edges (Meng et al. 2023, arXiv 2302.14311;
    Huang et al. 2024, arXiv 2402.04663)."""

    NAME = "inclusive_rect"
    alpha: float = 1.0

    def gradient(self, x):
        return self.alpha * (x.abs() <= 0.5 / self.alpha).to(x.dtype)

    def primitive(self, x):
        return torch.clamp(self.alpha * x + 0.5, 0, 1)


@dataclass(frozen=True)
class TanhWindow(Surrogate):
    """g(x) = t (1 - tanh(t x)^2) / (2 tanh(t/2)) where |x| <= 1/2, else 0 (Guo et al. 2023, MPBN,
    arXiv 2308.08359)."""

    NAME = "tanh_window"
    t: float = 3.0

    def params(self):
        return float(self.t), 0.0

    def gradient(self, x):
        slope = (1 - torch.tanh(self.t * x) ** 2) * (self.t / (2 * math.tanh(self.t / 2)))
        return slope * (x.abs() <= 0.5).to(x.dtype)

    def primitive(self, x):
        y = torch.tanh(self.t * torch.clamp(x, -0.5, 0.5))
        return y / (2 * math.tanh(self.t / 2)) + 0.5


@dataclass(frozen=True)
class InverseQuadratic(Surrogate):
    """g(x) = 1 / (1 + a x^2), ATan's window of height 1 (Hagenaars et al. 2021, arXiv
    2106.01862)."""

    NAME = "inverse_quadratic"
    alpha: float = 10.0

    def gradient(self, x):
        return 1 / (1 + self.alpha * x * x)

    def primitive(self, x):
        root = math.sqrt(self.alpha)
        return torch.atan(root * x) / root + 0.5


@dataclass(frozen=True)
class MultiGaussian(Surrogate):
    """g(x) = gamma ((1 + h) N(x; 0, sigma) - h N(x; sigma, s sigma) - h N(x; -sigma, s sigma)), N
    the normal density (Yin et al. 2021, arXiv 2103.12593)."""

    NAME = "multi_gaussian"
    sigma: float = 0.5
    h: float = 0.15
    s: float = 6.0
    gamma: float = 0.5

    def _check(self):
        self._positive(self.sigma), self._positive(self.s)

    def _parts(self):
        """(weight, mean, deviation)."""
        wide = self.s * self.sigma
        return (
            (1 + self.h, 0.0, self.sigma),
            (-self.h, self.sigma, wide),
            (-self.h, -self.sigma, wide),
        )

    def gradient(self, x):
        densities = (
            weight / (math.sqrt(2 * math.pi) * d) * torch.exp((x - m) ** 2 * (-0.5 / d**2))
            for weight, m, d in self._parts()
        )
        return self.gamma * sum(densities)

    def primitive(self, x):
        tails = (
            weight * 0.5 * torch.erfc((m - x) / (math.sqrt(2) * d))
            for weight, m, d in self._parts()
        )
        return self.gamma * sum(tails)
