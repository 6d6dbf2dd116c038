"""How much memory fits of few and of many users take: ``python -m tests.core.resident``.

A process of its own, so that nothing else moves its memory. Prints as JSON the MiB above what is
resident before a fit, at its highest point: of 40 users, of 400, and of 400 with everything at
once.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from chameleon_lib.core.backbone import Unkept
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.demo.world import WorldSettings, build_world
from tests.core.method import SETTINGS
from tests.demo.small import HashEmbedder, small_backbone

FEW, MANY = 40, 400
_PROC = Path("/proc/self")


def resident(name: str) -> float:
    """A line of ``/proc/self/status``, such as VmRSS or VmHWM, in MiB."""
    lines = (_PROC / "status").read_text(encoding="ascii").splitlines()
    return next(int(x.split()[1]) / 1024 for x in lines if x.startswith(f"{name}:"))


def restart_peak() -> float:
    """Lets the highest point (VmHWM) start anew; returns what is resident now, in MiB."""
    before = resident("VmRSS")
    (_PROC / "clear_refs").write_text("5", encoding="ascii")
    return before


def main() -> None:
    torch.set_num_threads(1)
    world = WorldSettings(users=(MANY, 0, 0), history=(5, 7))
    users = build_world("LaMP_3", world).users["train"]
    settings = SETTINGS.with_(decode_insight_tokens=2, decode_max_new_tokens=2, ccs_epochs=5)
    backbone = small_backbone()

    def above(n: int, at_a_time: int) -> float:
        before = restart_peak()
        Chameleon(backbone, HashEmbedder(), settings, Unkept(at_a_time)).fit(users[:n])
        return resident("VmHWM") - before

    above(FEW, 8)  # what the first fit loads stays
    found = {"few": above(FEW, 8), "many": above(MANY, 8), "at_once": above(MANY, MANY)}
    print(json.dumps({**found, "resident": resident("VmRSS")}))


if __name__ == "__main__":
    main()
