"""The surrogate gradients: names, parameters and formulas, once for the whole library.

A spiking neuron fires S = 1 where x = H - theta >= 0. Its derivative is replaced in backward by a
surrogate g(x); the primitive of g, in place of the step, gives the smooth twin of the neuron, whose
gradients are exact (``spiking=False``, as in SpikingJelly).

    >>> snnfast.lif(x, surrogate="atan")
    >>> snnfast.lif(x, surrogate=snnfast.surrogate.ATan(alpha=5.0))

Those of ``table`` have names and kernels of their own; those of ``windows`` are objects whose
formula is traced, as is one of your own, a subclass with ``gradient``, and ``primitive`` if the
smooth twin is wanted; see :class:`Surrogate`.
"""

from snnfast.surrogate.base import Surrogate
from snnfast.surrogate.table import (
    S2NN,
    ATan,
    Erf,
    FastSigmoid,
    LeakyKReLU,
    NonzeroSignLogAbs,
    PiecewiseExp,
    PiecewiseLeakyReLU,
    PiecewiseQuadratic,
    QPseudoSpike,
    Rect,
    Sigmoid,
    SoftSign,
    StraightThrough,
    SuperSpike,
)
from snnfast.surrogate.windows import (
    InclusiveRect,
    InverseQuadratic,
    MultiGaussian,
    Scaled,
    TanhWindow,
)

__all__ = [
    "ALIASES",
    "S2NN",
    "TABLE",
    "ATan",
    "Erf",
    "FastSigmoid",
    "InclusiveRect",
    "InverseQuadratic",
    "LeakyKReLU",
    "MultiGaussian",
    "NonzeroSignLogAbs",
    "PiecewiseExp",
    "PiecewiseLeakyReLU",
    "PiecewiseQuadratic",
    "QPseudoSpike",
    "Rect",
    "Scaled",
    "Sigmoid",
    "SoftSign",
    "StraightThrough",
    "SuperSpike",
    "Surrogate",
    "TanhWindow",
    "resolve",
]

TABLE: dict[str, type[Surrogate]] = {
    cls.NAME: cls for cls in Surrogate.__subclasses__() if cls.ID is not None
}
ALIASES = {"triangle": "piecewise_quadratic", "ste": "straight_through"}
_DEFAULTS = {name: cls() for name, cls in TABLE.items()}
_DEFAULTS.update({alias: _DEFAULTS[name] for alias, name in ALIASES.items()})


def resolve(surrogate: "str | Surrogate", op: str = "lif") -> Surrogate:
    """A surrogate from its name (with default parameters) or the object itself.

    Raises ValueError for an unknown name, TypeError for anything that is neither.
    """
    if isinstance(surrogate, Surrogate):
        return surrogate
    if not isinstance(surrogate, str):
        raise TypeError(
            f"{op}: surrogate must be a name or a snnfast.surrogate object, "
            f"got {type(surrogate).__name__}"
        )
    if surrogate not in _DEFAULTS:
        raise ValueError(
            f"{op}: surrogate must be one of {', '.join(_DEFAULTS)}, got {surrogate!r}"
        )
    return _DEFAULTS[surrogate]
