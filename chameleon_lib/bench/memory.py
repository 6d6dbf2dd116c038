"""The allocator of the benchmark, set as the notebooks' kernels have it."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Lets this process keep what it frees, where the C library is glibc.

    By default glibc gives large blocks back to the system at once and asks for them again, and
    every page is then cleared once more: a tax on whatever allocates most, such as large batches,
    that is paid at some sizes and not at others. `kit.kernels` does the same by environment
    variables, which only a new process reads.

    Returns:
        Whether both settings were taken.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Without mappings every block comes from the heap, and the heap is never trimmed.
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
