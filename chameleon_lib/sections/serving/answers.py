"""What users get: one query put to all of them in one batch, each row under its own edit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from chameleon_lib.core.edit import Edit
from chameleon_lib.core.preferences import PreparedUser, max_new_tokens
from chameleon_lib.kit.stats import bootstrap_metric, sums_by_user
from chameleon_lib.kit.tables import estimate_columns
from chameleon_lib.sections.answering import prompt_texts
from chameleon_lib.sections.results import FAMILY_TITLES
from chameleon_lib.sections.serving.study import POOLED, Service

UNEDITED = "no edit"


@dataclass(frozen=True)
class Row:
    """One row of a batch: a prompt and the profile that edits it, or None."""

    prompt: str
    profile: str | None


def one_query(service: Service) -> list[Row]:
    """The first user's query in the plain prompt of every user, under no edit, the own, the pooled.

    All rows make one batch.
    """
    query = service.served[0].asks.user.queries[0]
    askers = [
        replace(user.asks, user=replace(user.asks.user, queries=(query,)))
        for user in service.served
    ]
    prompts = plain_prompts(service, askers)
    names = [user.name for user in service.served]
    return [
        Row(prompt, profile)
        for prompt, name in zip(prompts, names, strict=True)
        for profile in (None, name, POOLED)
    ]


def plain_prompts(service: Service, users: Sequence[PreparedUser]) -> list[str]:
    """The prompts that edits are asked with: the user's history, and no insight."""
    return prompt_texts(service.study.task, users, "instruct", service.study.settings)


def together(service: Service, rows: Sequence[Row]) -> list[str]:
    """All rows in one batch, each under its own edit."""
    edit = Edit.stack([_edit(service, row) for row in rows], allow_missing=True)
    return _say(service, [row.prompt for row in rows], edit)


def alone(service: Service, rows: Sequence[Row]) -> list[str]:
    """Every row by itself."""
    return [_say(service, [row.prompt], _edit(service, row))[0] for row in rows]


def _edit(service: Service, row: Row) -> Edit | None:
    return None if row.profile is None else service.profiles[row.profile].edit


def _say(service: Service, prompts: list[str], edit: Edit | None) -> list[str]:
    study = service.study
    limit = max_new_tokens(study.task, study.settings)
    return study.backbone.generate(prompts, max_new_tokens=limit, edit=edit)


def answer_table(service: Service, rows: Sequence[Row], answers: Sequence[str]) -> pd.DataFrame:
    """One line per user: what the model says without an edit, under the own one, the pooled one.

    Args:
        service: The service.
        rows: Of :func:`one_query`.
        answers: To those rows.
    """
    said = iter(answers)
    lines: list[dict[str, Any]] = []
    for user in service.served:
        lines.append(
            {
                "family": FAMILY_TITLES[service.study.backbone.family],
                "user": user.name,
                "pairs": user.profile.n_pairs,
                "what the model notes of the user": user.asks.insight_p,
                UNEDITED: next(said),
                "own edit": next(said),
                "the paper's edit from all pairs": next(said),
            }
        )
    assert len(rows) == len(answers) == 3 * len(lines)
    return pd.DataFrame(lines)


def batch_table(
    service: Service, rows: Sequence[Row], ways: dict[str, Sequence[str]]
) -> pd.DataFrame:
    """How many answers of the one batch equal those of every other way to serve it.

    Args:
        service: The service.
        rows: The batch.
        ways: Way → its answers; the first is the reference.
    """
    (reference, expected), *others = ways.items()
    layers = {
        ",".join(map(str, service.profiles[row.profile].edit.layers)) for row in rows if row.profile
    }
    return pd.DataFrame(
        {
            "family": FAMILY_TITLES[service.study.backbone.family],
            "batch": f"{len(rows)} rows, {len({row.profile for row in rows})} different edits or "
            f"none, {len(layers)} different sets of layers",
            "served by": way,
            "compared with": reference,
            "equal answers": sum(a == b for a, b in zip(found, expected, strict=True)),
            "answers": len(rows),
            "n": len(service.served),
            "seeds": 1,
        }
        for way, found in others
    )


def whose_edit(service: Service) -> dict[str, Any]:
    """Every held-out query of every user under the own edit, and under every other user's.

    In the embedded world it is also counted how often the answer is the planted one.
    """
    prompts, wanted, owners = [], [], []
    for user in service.served:
        own = plain_prompts(service, [user.asks])
        prompts += own
        owners += [user.name] * len(own)
        if service.data.truth is not None:
            truth = service.data.truth[user.asks.user.id]
            wanted += list(truth.personal[-len(own) :])
    base = _say(service, prompts, None)
    by_edit = {user.name: _say(service, prompts, user.profile.edit) for user in service.served}
    own_answers = [by_edit[owner][at] for at, owner in enumerate(owners)]
    everyone = list(range(len(prompts)))
    others = [
        (at, answers[at])
        for name, answers in by_edit.items()
        for at, owner in enumerate(owners)
        if owner != name
    ]
    of_others = [at for at, _ in others]

    def share(at: Sequence[int], hits: Iterable[bool], name: str) -> dict[str, float | int]:
        """A share of the answers to some prompts, with an interval over their users."""
        sums = sums_by_user([float(hit) for hit in hits], [owners[place] for place in at])
        return estimate_columns(bootstrap_metric("mean", sums), name)

    changed = (a != b for a, b in zip(own_answers, base, strict=True))
    same = (text == own_answers[at] for at, text in others)
    found: dict[str, Any] = {
        "family": FAMILY_TITLES[service.study.backbone.family],
        "held-out queries": len(prompts),
        **share(everyone, changed, "changed by the own edit"),
        **share(of_others, same, "another user's edit says the same"),
    }
    if wanted:
        plain = (a == b for a, b in zip(base, wanted, strict=True))
        edited = (a == b for a, b in zip(own_answers, wanted, strict=True))
        foreign = (text == wanted[at] for at, text in others)
        found |= share(everyone, plain, f"right: {UNEDITED}")
        found |= share(everyone, edited, "right: own edit")
        found |= share(of_others, foreign, "right: another user's edit")
    counts = {"n": len(service.served), "seeds": 1}
    return {name: value for name, value in found.items() if name not in counts} | counts
