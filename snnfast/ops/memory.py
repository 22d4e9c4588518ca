"""The memory of large tensors on a CPU, from step to step."""

import ctypes

# Of malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_memory() -> bool:
    """Have GNU malloc keep the memory that tensors leave, for those that come.

    By itself it gives blocks of 32 MB or more back to the system and gets them anew, a page fault
    for every 4 KiB: in a training step with tensors as large, half its time on a virtual machine.
    Afterwards the process keeps what it needed at its peak. It is process-wide, holds for whatever
    is allocated later, and is what MALLOC_MMAP_MAX_=0 and an endless MALLOC_TRIM_THRESHOLD_ in the
    environment do. The command ``snnfast`` calls it. What the ops of this package return is kept
    without it, see ``keep_results``.

    Returns whether that took effect: False where malloc is not glibc's.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):  # no such function; no handle of the process
        return False
    return all(mallopt(option, value) for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)))


def keep_results(limit: int) -> int:
    """How much of the memory that large results of the ops leave on a CPU is kept for the next.

    Spikes, states and gradients of 1 MiB or more do not give their memory back to malloc when they
    go: up to ``limit`` bytes of it stay for results that come, as GPU memory does in PyTorch, and
    what was kept longest goes first. 512 MiB unless this says otherwise; with 0 nothing is kept.
    Process-wide. Such a result cannot be resized to more, nor its storage to nothing: clone it.
    While a ``torch.profiler`` runs results are PyTorch's, as it counts no other memory.

    Returns the limit that held before, in bytes; 0 where the C++ kernels were not built. Raises
    TypeError and ValueError for what is no int of at least 0.
    """
    from snnfast.backends.cpu.launch import available, module
    from snnfast.ops.validation import check_int

    check_int("keep_results", "limit", limit, 0)
    return 0 if available() else module().keep_results(min(limit, 2**63))
