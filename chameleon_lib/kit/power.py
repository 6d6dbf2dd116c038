"""How many test users a verdict needs: the half width of an interval against the effect claimed.

A verdict asks whether the 95 % interval of a paired difference over test users excludes zero
(:func:`chameleon_lib.kit.stats.verdict`). Its half width is about 1.96·sd/√n, where sd is the
standard deviation of the difference of two arms per user. It is that of an edit which works, the
fitted edit against Instruct in the committed demo run (``table1_*_effects.csv``: half width × √n /
1.96, the larger of both families); an edit which changes little has a smaller one. The effects are
the paper's gains over Instruct (Table 1). Users are what n counts: several queries of one user are
one. How groups differ is not in these intervals; more draws show it.

Standard library only, as the plan that prints it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

Z = 1.96


class Effect(NamedTuple):
    """A task's primary metric: sd of the paired difference, and the paper's gains over Instruct."""

    metric: str
    sd: float
    gains: tuple[float, float]  # Mistral, T5


EFFECTS = {
    "LaMP_2": Effect("accuracy", 0.45, (0.198, 0.182)),
    "LaMP_3": Effect("MAE", 0.45, (0.090, 0.056)),
    "LaMP_7": Effect("ROUGE-1", 0.17, (0.027, 0.096)),
}


def half_width(sd: float, n: int) -> float:
    """Half of the 95 % interval of a mean difference over ``n`` users."""
    return Z * sd / math.sqrt(n)


def users_for(sd: float, effect: float) -> int:
    """Fewest users whose interval around ``effect`` excludes zero."""
    return math.ceil((Z * sd / effect) ** 2)


def told(task: str, n: int) -> str:
    """What ``n`` test users of a task can tell, in words."""
    metric, sd, gains = EFFECTS[task]
    parts = [f"{n} users of {task.replace('_', '-')} give {metric} ± {half_width(sd, n):.2g}"]
    for family, gain in zip(("Mistral", "T5"), gains, strict=True):
        need = users_for(sd, gain)
        enough = "" if need <= n else f", which takes {need} users"
        parts.append(f"{family}'s gain in the paper is {gain:.3f}{enough}")
    return "; ".join(parts)
