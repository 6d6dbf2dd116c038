"""The allocator keeps what is freed, and the highest point of the memory is read and reset."""

from __future__ import annotations

import mmap
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from chameleon_lib.bench import memory

_PROGRAM = """
import resource
from chameleon_lib.bench.memory import keep_freed_memory

assert keep_freed_memory()
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def touch():
    before = pages()
    block = bytearray(64 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    del block
    return pages() - before
print(touch(), touch())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_a_second_block_reuses_the_pages_of_the_first() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True
    )
    first, second = map(int, done.stdout.split())
    assert first > 16_000  # 64 MiB in pages of 4 KiB
    assert second < first / 10


def test_memory_is_zero_where_the_system_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    assert memory.resident("VmRSS") == memory.restart_peak() == 0
    (tmp_path / "status").write_text("Name:\tx\nVmRSS:\t2048 kB\n", encoding="ascii")
    assert memory.resident("VmRSS") == 2 and memory.resident("VmHWM") == 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="there is no /proc")
def test_the_highest_point_starts_anew() -> None:
    size = 200 << 20
    with mmap.mmap(-1, size) as block:  # given back at once, whatever the allocator keeps
        for at in range(0, size, mmap.PAGESIZE):
            block[at] = 1
    assert memory.resident("VmHWM") > memory.restart_peak() + 100
    assert memory.resident("VmHWM") < memory.resident("VmRSS") + 50
