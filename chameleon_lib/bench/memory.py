"""The allocator of the benchmark, set as the notebooks' kernels have it, and what is resident."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

_PROC = Path("/proc/self")
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


def resident(name: str) -> float:
    """A line of ``/proc/self/status``, such as VmRSS or VmHWM, in MiB; 0 where there is none."""
    try:
        lines = (_PROC / "status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(x.split()[1]) / 1024 for x in lines if x.startswith(f"{name}:")), 0.0)


def restart_peak() -> float:
    """Lets the highest point (VmHWM) start anew; returns what is resident now, in MiB, or 0."""
    before = resident("VmRSS")
    if before:
        (_PROC / "clear_refs").write_text("5", encoding="ascii")
    return before
