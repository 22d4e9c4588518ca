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
    environment do. The command ``snnfast`` calls it.

    Returns whether that took effect: False where malloc is not glibc's.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):  # no such function; no handle of the process
        return False
    return all(mallopt(option, value) for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)))
