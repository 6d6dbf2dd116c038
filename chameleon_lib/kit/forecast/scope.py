"""What decides the counts of a run: its profile, its users and its groups."""

from __future__ import annotations

from dataclasses import dataclass, replace

from chameleon_lib.kit.forecast.cell import FIT_STEPS, FULL_CCS, Cell
from chameleon_lib.kit.forecast.known import MODELS, Model
from chameleon_lib.kit.forecast.texts import shape_of
from chameleon_lib.kit.profiles import RunProfile

# Batches of the trainings, as their settings have them: a test compares.
DPO_PAIRS, ALOE_ROWS, ALOE_ROW = 16, 1, 8192
EMBEDDED_BATCH = (4, 8)
SIZES = (1, 20, 40, 60, 80, 100)  # groups of figure 3


@dataclass(frozen=True)
class Scope:
    """The size of a run.

    Attributes:
        profile: The run profile.
        users: Cap on train and on test users; 0 for the profile's numbers.
        draws: Random groups; 0 for the profile's number.
        sizes: Group sizes of figure 3.
        fit_steps: Adam steps of a preference fit; 0 for those of the settings.
    """

    profile: RunProfile
    users: int = 0
    draws: int = 0
    sizes: tuple[int, ...] = SIZES
    fit_steps: int = 0

    @property
    def embedded_world(self) -> bool:
        """Whether the users are synthetic."""
        return self.profile.data == "demo"

    @property
    def n_draws(self) -> int:
        """Groups per backbone and task."""
        return self.draws or self.profile.draws

    @property
    def bytes_per_number(self) -> int:
        """Of weights and states; "auto" is float32 on a CPU, half of that on a GPU."""
        return 2 if self.profile.dtype == "bfloat16" else 4

    @property
    def train(self) -> int:
        """Train users per task."""
        return self.part(self.profile.n_train)

    @property
    def test(self) -> int:
        """Test users per task."""
        return self.part(self.profile.n_test)

    @property
    def group(self) -> int:
        """Users of a group of Table 1."""
        return min(self.profile.group_size, self.train)

    def part(self, limit: int, at_most: int = 0) -> int:
        """Users of a part, capped by ``--users`` and by a study's own limit."""
        return min(number for number in (limit, self.users, at_most) if number)

    def aloe_lora(self, model: Model) -> bool:
        """Whether ALOE trains an adapter; the recipe of the embedded models trains all weights."""
        return not model.embedded and self.profile.aloe_params == "lora"

    def checkpointing(self, model: Model) -> bool:
        """Whether trainings compute layers twice."""
        return not model.embedded and self.profile.checkpointing

    def batches(self, model: Model) -> tuple[int, int, int]:
        """Pairs of DPO and rows of ALOE in memory at once, and tokens of a row that is packed."""
        if model.embedded:
            return *EMBEDDED_BATCH, 0
        at_once = self.profile.micro_batch
        packed = 0 if model.encoder else ALOE_ROW
        return at_once or DPO_PAIRS, at_once or ALOE_ROWS, packed

    def models(self, *, studied: bool) -> list[Model]:
        """Backbones whose sizes are known."""
        names = self.profile.studied if studied else self.profile.backbones
        return [MODELS[name] for name in names if name in MODELS]

    def cell(self, model: Model, task: str, where: str = "", k: int = 10, items: int = 0) -> Cell:
        """A backbone on a task, with nothing to do yet.

        Args:
            model: The backbone.
            task: Task name.
            where: Name of a world or selection of its own.
            k: History items in a prompt.
            items: Items of a history, where they are not the task's.
        """
        limit = 48 if self.profile.offline else 256
        embedded = model.id.startswith("demo:")
        shape = shape_of(task, embedded, limit, min(limit, 120))
        if items:
            shape = replace(shape, items=items)
        steps = self.fit_steps or FIT_STEPS[embedded]
        return Cell(
            model, task, shape, k, self.bytes_per_number, where, steps,
            prefix_bytes=self.profile.prefix_bytes,
            aloe_lora=self.aloe_lora(model),
            twice=self.checkpointing(model),
        )  # fmt: skip


def union(n: float, group: float, draws: int) -> float:
    """Expected users in at least one of ``draws`` groups out of ``n`` users."""
    return float(n * (1 - (1 - min(group, n) / n) ** draws))


def base(scope: Scope, cell: Cell, train: float, test: float) -> Cell:
    """Insights and pairs of the users; on real files margins need the pairs of test users."""
    cell.insights("train", train)
    cell.insights("test", test)
    cell.pairs("train", train)
    if not scope.embedded_world:
        cell.pairs("test", test)
    return cell


def directions(
    cell: Cell, train: float, group: float, draws: int, *, fits: float = FULL_CCS
) -> None:
    """Activations of the pairs of all groups, and ``fits`` probes per group."""
    cell.activations("main", cell.shape.kept * union(train, group, draws))
    for draw in range(draws):
        cell.ccs(f"draw {draw}", cell.shape.kept * group, fits)
