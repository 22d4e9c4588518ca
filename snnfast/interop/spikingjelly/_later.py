"""``v_seq`` of the nodes that always have it, computed when it is looked at: V after every step is
as many bytes as the input, and few read it."""

from collections.abc import Callable
from operator import attrgetter

import torch
from torch import Tensor

_version = attrgetter("_version")


class Later:
    """A value that ``compute`` gives of tensors that stay what they are."""

    def __init__(self, compute: Callable[[], Tensor], reads: tuple[Tensor, ...]):
        self._compute, self._gradient = compute, torch.is_grad_enabled()
        self._reads, self._versions = reads, tuple(map(_version, reads))

    def now(self) -> Tensor:
        if tuple(map(_version, self._reads)) != self._versions:
            raise RuntimeError(
                "v_seq: the input of the call must stay as it was until v_seq is read, got one "
                "that was changed in place; read v_seq before"
            )
        with torch.set_grad_enabled(self._gradient):
            return self._compute()


class Memories(dict):
    """A node's memories; what there is of Later in it is computed by who looks."""

    def __getitem__(self, name):
        value = super().__getitem__(name)
        if type(value) is Later:
            value = self[name] = value.now()
        return value

    def get(self, name, default=None):
        return self[name] if name in self else default

    def values(self):
        return [self[name] for name in self]

    def items(self):
        return [(name, self[name]) for name in self]

    def copy(self) -> dict:
        return dict(self.items())

    def __copy__(self):  # with what is still to compute
        made = Memories()
        for name in self:
            dict.__setitem__(made, name, super().__getitem__(name))
        return made

    def __iter__(self):  # so that dict(memories) looks at them, too
        return iter(self.keys())

    def __reduce_ex__(self, protocol):
        return dict, (self.items(),)
