"""The allocator keeps what is freed, so a second large block costs no fresh pages."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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
