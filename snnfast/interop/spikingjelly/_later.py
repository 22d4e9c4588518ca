"""V of every step, which 0.0.0.0.12 always keeps and hardly anyone reads: made when it is read."""

import torch

from snnfast.ops.lif import lif


class Later:
    """In ``_memories`` until somebody looks: what a call of ``lif`` gives as all of its states.
    It keeps x, as large as they are, until the next call or reset."""

    def __init__(self, x: torch.Tensor, v: torch.Tensor | None, arguments: dict):
        self.x, self.v, self.arguments = x, v, arguments
        self.version = x._version
        self.grad = torch.is_grad_enabled()

    def __call__(self) -> torch.Tensor:
        if self.x._version != self.version:
            raise RuntimeError(
                "v_seq: x of the call must be as it was until v_seq is read, got one changed in "
                "place since; read v_seq before that"
            )
        with torch.set_grad_enabled(self.grad):
            return lif(self.x, self.v, return_state="all", **self.arguments)[1]

    def __reduce__(self):
        return _itself, (self(),)


def _itself(value):
    return value


def read(memories: dict, name: str):
    """``memories[name]``, made where it was for later."""
    value = memories[name]
    if type(value) is Later:
        value = memories[name] = value()
    return value
