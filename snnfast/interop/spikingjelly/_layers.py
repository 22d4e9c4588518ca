"""What ``snnfast.nn.fuse`` is told of SpikingJelly's layers when this is imported, which all nodes
do that can be fused."""

import re
import sys

from torch import nn

from snnfast.nn import peers

_HOME = re.compile(r".*\b(clock_driven|activation_based)\.layer(\.\w+)*")
_FUNCTIONAL = re.compile(r".*\b(clock_driven|activation_based)\.functional")
_FOLDS = "seq_to_ann_forward"
_NORMS = {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d"}


def _is_theirs(cls: type) -> bool:
    return _HOME.fullmatch(cls.__module__) is not None


def _is_norm(cls: type) -> bool:
    if cls.__name__ not in _NORMS or not _is_theirs(cls):
        return False
    return issubclass(cls, getattr(nn, cls.__name__)) and hasattr(cls, "step_mode")


def _folds(cls: type) -> bool:
    """Those with the keys of 0.0.0.0.8 on."""
    return (
        cls.__name__ == "SeqToANNContainer" and _is_theirs(cls) and issubclass(cls, nn.Sequential)
    )


def _keeps_inputs(cls: type) -> bool:
    torchs = any(c.__module__.startswith("torch.nn.modules.") for c in cls.__mro__[1:-2])
    return _is_theirs(cls) and torchs


def _folding() -> list:
    homes = [(name, m) for name, m in list(sys.modules.items()) if _FUNCTIONAL.fullmatch(name)]
    own = [(m, vars(m).get(_FOLDS), name) for name, m in homes]
    return [(m, _FOLDS) for m, f, name in own if f and f.__module__.startswith(name)]


peers.KNOWN.append(peers.Peer(_is_norm, _folds, _keeps_inputs, _folding))
