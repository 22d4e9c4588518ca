"""What ``fuse`` is told of other packages' modules, by the parts of snnfast that know them.

A neuron of theirs that can run behind a norm has, in its class::

    _behind_refusal() -> str | None     why its calls must not be replaced
    _behind_steps(x) -> Tensor | None   the timesteps [T, ...] in its input x; None: as they are
                                        now it takes no such call
    _behind(x, behind, reads)           its spikes [T, ...] of what the norm makes of x [T, ...], or
                                        None, with nothing done, where its own forward has to run.
                                        ``behind(op)`` is its op with the norm in front;
                                        ``behind(op, again=True)`` gives the same at any time after
                                        and changes nothing, while x and the tensors ``reads`` are
                                        what they were (None: it must not be made)
"""

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple

from torch import nn


class Peer(NamedTuple):
    """Three questions about a class."""

    is_norm: Callable[[type], bool]
    """A BatchNorm of torch's with a ``step_mode``, "m" for x [T, B, C, ...]."""
    folds: Callable[[type], bool]
    """A Sequential that runs its layers on x [T, B, ...] with time in the batch."""
    keeps_inputs: Callable[[type], bool]
    """No layer of that class writes to what it is given, unless it has ``inplace`` set."""
    folding: Callable[[], list[tuple[ModuleType, str]]]
    """The names of functions (x_seq, stateless_module) that run one layer or a sequence of them on
    x [T, B, ...] with time in the batch, and the modules that they are in."""


KNOWN: list[Peer] = []


def is_norm(cls: type) -> bool:
    return any(peer.is_norm(cls) for peer in KNOWN)


def folds(cls: type) -> bool:
    return any(peer.folds(cls) for peer in KNOWN)


def keeps_inputs(cls: type) -> bool:
    return any(peer.keeps_inputs(cls) for peer in KNOWN)


def is_neuron(module: nn.Module) -> bool:
    return hasattr(type(module), "_behind")


def folded(container: Iterable[nn.Module], x):
    """The forward of one that folds, in words that torch.fx understands."""
    y = x.flatten(0, 1)
    for layer in container:
        y = layer(y)
    return y.unflatten(0, (x.shape[0], x.shape[1]))


def _seq_to_ann_forward(x_seq, stateless_module):
    many = isinstance(stateless_module, (list, tuple, nn.Sequential))
    return folded(stateless_module if many else [stateless_module], x_seq)


@contextmanager
def in_words():
    """In the block the functions that fold are such as torch.fx understands, too."""
    places = [place for peer in KNOWN for place in peer.folding()]
    before = [getattr(module, name) for module, name in places]
    try:
        for module, name in places:
            setattr(module, name, _seq_to_ann_forward)
        yield
    finally:
        for (module, name), function in zip(places, before, strict=True):
            setattr(module, name, function)
