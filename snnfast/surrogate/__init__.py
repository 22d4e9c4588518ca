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

from dataclasses import fields

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
BY_CLASS = {cls.__name__: cls for cls in TABLE.values()}
_SPELLED = {name.replace("_", ""): name for name in _DEFAULTS}


def resolve(surrogate: "str | Surrogate", op: str = "lif") -> Surrogate:
    """A surrogate from its name (with default parameters) or the object itself.

    Names are taken in any case, with or without underscores ("ATan", "piecewise_quadratic",
    "PiecewiseQuadratic"); objects of SpikingJelly's classes as those of ours, with their numbers.

    Raises ValueError for an unknown name, TypeError for anything that is none of these.
    """
    if isinstance(surrogate, Surrogate):
        return surrogate
    if not isinstance(surrogate, str):
        theirs = _of_spikingjelly(surrogate)
        if theirs is not None:
            return theirs
        raise TypeError(
            f"{op}: surrogate must be a name or a snnfast.surrogate object, "
            f"got {type(surrogate).__name__}"
        )
    if surrogate not in _DEFAULTS:
        spelled = _SPELLED.get(surrogate.lower().replace("_", "").replace("-", ""))
        if spelled is not None:
            return _DEFAULTS[spelled]
        raise ValueError(
            f"{op}: surrogate must be one of {', '.join(_DEFAULTS)}, got {surrogate!r}"
        )
    return _DEFAULTS[surrogate]


def _of_spikingjelly(function) -> Surrogate | None:
    """That of ours with the name and numbers of an object of SpikingJelly's own classes, which have
    the same formulas; None for anything else."""
    kind = type(function)
    ours = BY_CLASS.get(kind.__name__)
    if ours is None or kind.__module__.split(".")[0] != "spikingjelly":
        return None
    names = [field.name for field in fields(ours)]
    if any(not hasattr(function, name) for name in names):
        return None
    return ours(**{name: getattr(function, name) for name in names})
