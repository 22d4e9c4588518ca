"""How tensors reach ``snnfast._C``: as addresses, sizes and strides."""

import functools

import torch
from torch import Tensor


@functools.cache
def module():
    # torch first: it brings the OpenMP runtime that the module then shares.
    from snnfast import _C

    return _C


@functools.cache
def available() -> str | None:
    """None where the backend can be used, else what was tried and what enables it."""
    try:
        module()
    except ImportError as error:
        return f"{error}; build it: pip install -e . in snnfast's checkout"
    return None


def pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def details() -> str:
    if available():
        return "snnfast._C was not built"
    threads = f"{torch.get_num_threads()} threads" if module().openmp else "built without OpenMP"
    return f"{module().instruction_set()} instructions, {threads}"
