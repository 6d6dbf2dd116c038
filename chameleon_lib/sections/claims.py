"""From an effect and its controls to a verdict record: the same wording in every section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chameleon_lib.kit.stats import Estimate, own_claim, verdict
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.lamp.metrics import higher_is_better
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.results import FAMILY_TITLES, Run

NOT_IN_PAPER = "not in the paper"


@dataclass(frozen=True)
class Claim:
    """One claim with its numbers.

    Attributes:
        task: Task name.
        family: Family of the backbones.
        words: What is claimed.
        own: Whether the kit makes the claim, and not the paper.
        paper: The paper's number in words.
        effect: The change of the primary metric; None where it was not run.
        margins: Control → the effect minus that control's, on the same users.
        sign: 1 where a gain is claimed, -1 where a loss is.
    """

    task: str
    family: str
    words: str
    own: bool
    paper: str
    effect: Estimate | None = None
    margins: dict[str, Estimate] = field(default_factory=dict)
    sign: int = 1


def judged_claims(
    run: Run, found: Sequence[Claim], *, section: str, notebook: str, figure: str
) -> list[Verdict]:
    """One verdict per claim of a figure; its table is ``<figure>_<task>_claims``."""
    return [
        judged_claim(
            run,
            claim.task,
            claim.family,
            claim.words,
            claim.effect,
            claim.margins,
            section=section,
            notebook=notebook,
            csv=f"tables/{figure}_{claim.task}_claims.csv",
            paper=claim.paper,
            own=claim.own,
            sign=claim.sign,
        )
        for claim in found
    ]


def judged_claim(
    run: Run,
    task: str,
    family: str,
    words: str,
    effect: Estimate | None,
    margins: Mapping[str, Estimate],
    *,
    section: str,
    notebook: str,
    csv: str,
    paper: str = NOT_IN_PAPER,
    own: bool = False,
    sign: int = 1,
    remark: str = "",
) -> Verdict:
    """Judge one claim about the primary metric of a task by the kit's only rule.

    Args:
        run: Where the numbers are from.
        task: Task name.
        family: Backbone family.
        words: The claim, such as "CHAMELEON's edit beats Instruct".
        effect: Ours minus the baseline; None if it was not run.
        margins: Control → ours minus that control on the same users.
        section: Section of the paper.
        notebook: Stem of the notebook.
        csv: Table behind the number, relative to outputs/<profile>.
        paper: The paper's number as text.
        own: Whether the claim is the kit's, which gets words of its own.
        sign: -1 where a loss is claimed.
        remark: Put before the controls in the note.
    """
    metric = get_task(task).metrics[0]
    status = verdict(effect, list(margins.values()), higher_is_better(metric), paper_sign=sign)
    beaten = "must also beat: " + ", ".join(margins) if margins else "no other control was run"
    return Verdict(
        words=words,
        section=section,
        notebook=notebook,
        paper=paper,
        ours=effect,
        status=own_claim(status) if own else status,
        n=effect.n if effect else 0,
        seeds=effect.seeds if effect else 0,
        scorer=f"{metric}, LaMP evaluator's definition",
        csv=csv,
        note="; ".join(filter(None, (remark, beaten.replace("_", " ")))),
        split=split_of(run, task),
        own=own,
        setting=f"{task.replace('_', '-')}, {FAMILY_TITLES[family]}",
        measure=f"{metric} change",
    )


def split_of(run: Run, task: str) -> str:
    """Which users are scored, in words."""
    data = run.data[task]
    if data.imported:
        return "users of an imported table"
    return "official dev users" if data.truth is None else "test users of the embedded world"
