"""What has a state that carries from call to call, inside ``streaming`` alone."""

from collections.abc import Callable

import torch
from torch import nn


class Stateful(nn.Module):
    """Neurons of any kind: every call starts from rest, but in a stream, where the last call left
    the state. Subclasses run their op through ``_step_on``."""

    return_state: "bool | str" = False

    # What belongs to the calls so far, and not to a copy.
    _streaming = False
    _v = None
    _called = None  # in this forward of the streaming model; None: not within one
    _loop = ()

    _watch = None  # of snnfast.monitor: (self, op, time_first) -> op, which it looks at
    _replayed = False  # by checkpoint_spikes, which brings the state of forward back

    def __getstate__(self):
        # A copy does not stream and holds no state, wherever it was made.
        passing = ("_streaming", "_v", "_called", "_loop", "_watch")
        return {name: value for name, value in vars(self).items() if name not in passing}

    def _step_on(self, op: Callable, state, time_first: Callable = lambda v: v):
        """``op(state, return_state)`` from the state given, that of the stream, or rest: what the
        module returns. A state is a tensor, or a tuple of them; ``time_first``: of the states after
        every step a view [T, ...]."""
        if self._watch is not None:
            op = self._watch(self, op, time_first)
        streaming = self._streaming
        if streaming and not torch.compiler.is_compiling():
            self._call_once()
            if not self._replayed and torch._C._current_graph_task_id() != -1:
                raise RuntimeError(
                    "streaming: a neuron must not run again in backward, its state being not the "
                    "one of forward (torch.utils.checkpoint); use snnfast.nn.checkpoint_spikes"
                )
        if not streaming:
            return op(state, self.return_state)
        s, v = op(self._v if state is None else state, self.return_state or True)
        if self.return_state != "all":
            self._v = v
        elif isinstance(v, tuple):
            self._v = tuple(one[-1] for one in v) if v and v[0].shape[0] else self._v
        elif (steps := time_first(v)).shape[0]:
            self._v = steps[-1]
        return (s, v) if self.return_state else s

    def _call_once(self) -> None:
        if self._called:
            raise ValueError(
                f"streaming: a neuron must be called once in a forward of the model, got a second "
                f"call of {type(self).__name__}; give each place in the model a neuron of its own "
                "(for a loop over time within the model, stream the part that the loop calls)"
            )
        if self._called is not None:
            self._called = True
