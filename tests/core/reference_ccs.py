"""The plain CCS loop that the batched solvers are compared with; the benchmark times the same."""

from __future__ import annotations

from chameleon_lib.bench.plain_ccs import plain_loop

__all__ = ["plain_loop"]
