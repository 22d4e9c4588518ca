"""Ops called as the Python functions that they are.

The dispatcher takes 7 to 8 us a call of an op written in Python, and has nothing to do for plain
tensors while nobody looks on. Who looks on (a compiler, a mode, a transform, a tracer, a profiler)
or brings another kind of tensor (a subclass, a lazy negative, zeros without memory, one that stands
for many) gets the op.
"""

import functools

import torch
from torch import Tensor

_compiling = torch.compiler.is_compiling
_including = torch._C._dispatch_tls_local_include_set
_overriding = torch._C._len_torch_function_stack
_profiling = torch._C._autograd._profiler_enabled
_keys = torch._C._dispatch_keys
_KEYS = torch._C.DispatchKey
_SET = torch._C.DispatchKeySet
_LOOKING_ON = ~(_SET(_KEYS.BackendSelect) | _SET(_KEYS.ADInplaceOrView)).raw_repr()


@functools.cache
def unusual(device: torch.device) -> int:
    """The dispatch keys that a plain tensor on a device does not have."""
    with torch.inference_mode(False):
        return ~_keys(torch.empty(0, device=device)).raw_repr()


def is_direct(*tensors: Tensor | None) -> bool:
    """Whether an op may be called on such tensors, now, without the dispatcher; the first is
    one."""
    if _compiling() or _including().raw_repr() & _LOOKING_ON or _overriding() or _profiling():
        return False
    others = unusual(tensors[0].device)
    for t in tensors:
        if t is not None and _keys(t).raw_repr() & others:
            return False
    return True


def applied(function: type[torch.autograd.Function], direct: bool, *arguments):
    """``function.apply``; or, ``direct``, without its search for what torch.func has wrapped."""
    if direct:
        return super(torch.autograd.Function, function).apply(*arguments)
    return function.apply(*arguments)
