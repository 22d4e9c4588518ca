"""Modules with memories: what lasts from call to call until ``reset``, and is in no state_dict."""

import copy

from torch import Tensor, nn


class HasMemories(nn.Module):
    """Named values that ``reset`` puts back to what they were when they were registered."""

    def __init__(self):
        super().__init__()
        self._memories = {}
        self._memories_rv = {}

    def register_memory(self, name: str, value) -> None:
        if hasattr(self, name):
            who = type(self).__name__
            raise ValueError(f"{who}: the memory must have a name of its own, got {name!r}")
        self._memories[name] = value
        self.set_reset_value(name, value)

    def set_reset_value(self, name: str, value) -> None:
        self._memories_rv[name] = copy.deepcopy(value)

    def reset(self) -> None:
        for name in self._memories:
            self._memories[name] = copy.deepcopy(self._memories_rv[name])

    def __getattr__(self, name: str):
        memories = self.__dict__.get("_memories")
        if memories is not None and name in memories:
            return memories[name]
        return super().__getattr__(name)

    def __setattr__(self, name: str, value) -> None:
        memories = self.__dict__.get("_memories")
        if memories is not None and name in memories:
            memories[name] = value
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self._memories:
            del self._memories[name], self._memories_rv[name]
        else:
            super().__delattr__(name)

    def __dir__(self):
        return sorted({*super().__dir__(), *self._memories})

    def memories(self):
        yield from self._memories.values()

    def named_memories(self):
        yield from self._memories.items()

    def detach(self) -> None:
        """Cut all memories off from the graph that made them."""
        for name, value in self._memories.items():
            if isinstance(value, Tensor):
                self._memories[name] = value.detach()

    def _apply(self, fn, *rest):
        for memories in (self._memories, self._memories_rv):
            for name, value in memories.items():
                if isinstance(value, Tensor):
                    memories[name] = fn(value)
        return super()._apply(fn, *rest)

    def _replicate_for_data_parallel(self):
        replica = super()._replicate_for_data_parallel()
        replica._memories = self._memories.copy()
        return replica
