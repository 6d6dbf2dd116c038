"""What a call works on: batches of tokens, their prefixes, and the counts of the edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from chameleon_lib.backbones.prefix import Prefix
from chameleon_lib.core.edit import Edit, EditHook
from chameleon_lib.errors import UserError


@dataclass(frozen=True)
class ReadInputs:
    """A batch for reading activations: model inputs, tokens per row, answer tokens per row."""

    inputs: dict[str, Tensor]
    lengths: list[int]
    answer_lengths: list[int]


@dataclass(frozen=True)
class Batch:
    """Rows of one call that run together.

    Attributes:
        rows: Their numbers in the caller's order.
        prompts: Their token ids.
        groups: Their groups, or None.
        prefix: The unedited prefix, or None if it is computed at each use.
    """

    rows: list[int]
    prompts: list[list[int]]
    groups: list[int] | None
    prefix: Prefix | None = None

    def take(self, places: Sequence[int], rows: Sequence[int]) -> Batch:
        """The batch made of the members at ``places``, as wide as this one, numbered ``rows``."""
        prefix = self.prefix
        if prefix is not None and list(places) != list(range(len(self.rows))):
            prefix = prefix.take(places)
        return Batch(
            list(rows),
            [self.prompts[at] for at in places],
            None if self.groups is None else [self.groups[at] for at in places],
            prefix,
        )


@dataclass(frozen=True)
class PreparedBatches:
    """What ``prepare`` returns: batches in bucket order."""

    batches: list[Batch]

    def __len__(self) -> int:
        return sum(len(batch.rows) for batch in self.batches)

    def take(self, rows: Sequence[int]) -> PreparedBatches:
        """The prompts ``rows`` in this order; a batch keeps its width, and a prefix its absence.

        Inside a batch the members keep their places: a batch that is taken whole is not copied.

        Raises:
            IndexError: A number that no prompt has.
        """
        places = {
            row: (number, at)
            for number, batch in enumerate(self.batches)
            for at, row in enumerate(batch.rows)
        }
        picked: dict[int, list[tuple[int, int]]] = {}  # batch → (place in it, new number)
        for new, row in enumerate(rows):
            if row not in places:
                raise IndexError(f"There is no prompt {row} among {len(self)} prepared ones.")
            number, at = places[row]
            picked.setdefault(number, []).append((at, new))
        chosen = []
        for number, batch in enumerate(self.batches):
            pairs = sorted(picked.get(number, []))
            if pairs:
                chosen.append(batch.take([at for at, _ in pairs], [new for _, new in pairs]))
        return PreparedBatches(chosen)

    def check_edit(self, edit: Edit | None) -> None:
        """Refuses a per-row edit made for another number of prompts."""
        if edit is not None and edit.per_row and edit.theta_p.shape[1] != len(self):
            raise UserError(
                f"{len(self)} prompts but an edit of {edit.theta_p.shape[1]} rows; "
                "give one edit row per prompt."
            )


@dataclass
class EditUsage:
    """How often the edit ran in the latest call, per edited layer (section 12); empty without one.

    Attributes:
        calls: Hooked calls.
        tokens: Edited positions, padding included.
        ratios: Sums over edited tokens of the edit ratios; filled if ``diagnostics`` is on.
    """

    calls: dict[int, int] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)
    ratios: dict[int, dict[str, float]] = field(default_factory=dict)

    def add(self, hook: EditHook) -> None:
        """Adds the counts of one hook."""
        for layer, count in hook.calls.items():
            self.calls[layer] = self.calls.get(layer, 0) + count
            self.tokens[layer] = self.tokens.get(layer, 0) + hook.tokens[layer]
        for row in hook.ratios() if hook.diagnostics else []:
            sums = self.ratios.setdefault(int(row["layer"]), {})
            for name in ("edit", "boost", "removal"):
                sums[name] = sums.get(name, 0.0) + row[name] * row["tokens"]

    def mean_ratios(self) -> dict[int, dict[str, float]]:
        """Mean edit ratios per edited token, by layer."""
        return {
            layer: {name: total / max(self.tokens[layer], 1) for name, total in sums.items()}
            for layer, sums in self.ratios.items()
        }
