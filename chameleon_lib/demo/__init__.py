"""The embedded backbones: a synthetic LaMP world and two small models trained on it.

A third, the ``reviewer``, was trained on the world of shared items (``chameleon_lib.difference``).
"""

from __future__ import annotations

from pathlib import Path

from chameleon_lib.errors import UserError

FAMILIES = ("decoder", "encdec")
SEEDS = (0, 1)


def checkpoint(family: str, seed: int | str) -> Path:
    """Folder of an embedded model.

    Args:
        family: One of :data:`FAMILIES`, or ``reviewer``.
        seed: Training seed.

    Raises:
        UserError: That model is not part of the checkout.
    """
    folder = Path(__file__).parent / f"{family}-{seed}"
    if not (folder / "config.json").is_file():
        raise UserError(
            f"The embedded model {folder.name} is not here; train it with 'python -m workshop."
            f"{f'train --family {family} --seed {seed}' if family in FAMILIES else family}'."
        )
    return folder
