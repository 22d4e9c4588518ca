"""What all surrogates are."""

import math
from dataclasses import dataclass, fields
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """Base of all surrogates. ``spiking=False`` puts the primitive in place of the step.

    The formula of a subclass of your own is traced and runs in the one launch of a layer; it may be
    made of what ``snnfast.neuron`` has. Any other formula runs on the reference backend, which
    ``auto`` then picks: several operations a timestep, and all of their results kept for backward.
    To pickle a module that has one, define the class in a module that can be imported.

        >>> @dataclass(frozen=True)
        ... class Cauchy(snnfast.surrogate.Surrogate):
        ...     gamma: float = 1.0
        ...
        ...     def gradient(self, x):          # any shape -> the same shape and dtype
        ...         return 1 / (math.pi * self.gamma * (1 + (x / self.gamma) ** 2))
        >>> snnfast.nn.LIF(surrogate=Cauchy(gamma=0.5))
    """

    ID: ClassVar[int | None] = None
    """The number by which kernels know the formula; None: they do not."""
    NAME: ClassVar[str]
    _own: ClassVar[bool] = False
    spiking: bool = True

    def __init_subclass__(cls):
        cls._own = not cls.__module__.startswith(f"{__package__}.")
        if cls._own:  # a subclass of ATan, too, may have another formula
            cls.ID = None

    def __post_init__(self):
        if not isinstance(self.spiking, bool):
            kind = type(self.spiking).__name__
            raise TypeError(f"surrogate: spiking must be True or False, got {kind}")
        if self._own:
            return
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "spiking":
                continue
            if field.name == "of":  # the one that Scaled changes
                if not isinstance(value, Surrogate):
                    kind = type(value).__name__
                    raise TypeError(f"surrogate: of must be a snnfast.surrogate object, got {kind}")
                if not value.spiking:
                    raise ValueError(
                        "surrogate: of must be spiking, got a smooth twin; spiking=False is for "
                        f"{type(self).__name__} itself"
                    )
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(
                    f"surrogate: {field.name} must be a number, got {type(value).__name__}"
                )
            if not math.isfinite(value):
                raise ValueError(f"surrogate: {field.name} must be finite, got {value}")
        self._check()

    def _check(self) -> None:
        """Refuse parameters for which the formula is undefined; most want one positive number."""
        self._positive(self.params()[0])

    def _positive(self, value: float, bound: float = 0.0) -> None:
        if not value > bound:
            raise ValueError(
                f"surrogate: the parameter of {self.NAME} must be > {bound:g}, got {value}"
            )

    def params(self) -> tuple[float, float]:
        """The two numbers that the kernels take; unused ones are 0."""
        return float(self.alpha), 0.0

    def gradient(self, x: Tensor) -> Tensor:
        """g(x), elementwise, in x's dtype."""
        raise NotImplementedError(f"surrogate: {type(self).__name__} must define gradient(x)")

    def primitive(self, x: Tensor) -> Tensor:
        """A primitive of g, elementwise, in x's dtype."""
        raise NotImplementedError(
            f"surrogate: {type(self).__name__} must define primitive(x) for spiking=False"
        )
