"""A history and a query of one's own, and what an edit does to them: answers, margins, layers.

The edits are those of the quickstart, found on other users' pairs; the history that is written here
reaches no fit. A query of one's own has no gold: what the margin compares are the model's own
answers under the personalised and under the neutral insight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from chameleon_lib.backbones.hf import HFBackbone
from chameleon_lib.backbones.lens import first_difference, logit_lens
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import prompt_texts
from chameleon_lib.core.task import HistoryItem, Query, User, get_task, official_input
from chameleon_lib.errors import UserError
from chameleon_lib.kit.digits import rounded
from chameleon_lib.kit.figures import COLOURS, MUTED, FigureOutput, line_ci
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.studies.data import load_task_data
from chameleon_lib.studies.own_users import ASKED, ask
from chameleon_lib.studies.quickstart import (
    FITTED,
    INSIGHT,
    NO_EDIT,
    PAPER,
    Arms,
    Tour,
    strengthened,
)
from chameleon_lib.studies.run import Answers

_EXAMPLE = "0f4017f5baef1d14"  # digest of the history and the query that notebook 09 comes with


def is_own(history: Sequence[Sequence[str]], query: str) -> bool:
    """Whether a reader wrote them: then nothing of them may get into the committed results."""
    return digest([history, query])[:16] != _EXAMPLE


@dataclass(frozen=True)
class Play(Tour):
    """The tour of one query, with what is needed to ask it again under another edit.

    Attributes:
        strength: Factor on both strengths of an edit (alpha_p and alpha_n).
    """

    strength: float = 1.0

    @property
    def backbone(self) -> HFBackbone:
        """The model that answers; its hidden states are read, so it is one of ours."""
        return cast(HFBackbone, self.study.backbone)

    @property
    def answers(self) -> tuple[str, str]:
        """The user's answer and the generic one."""
        return self.reference.personal[0], self.reference.generic[0]

    @property
    def candidates(self) -> list[str]:
        """Every answer of the task; of free text, the two that are compared."""
        return list(get_task(self.study.task).labels or dict.fromkeys(self.answers))

    def sentence(self) -> str:
        """The two answers, and what the margin compares."""
        own, other = self.answers
        return f"{own!r} or {other!r}? Margin: log-probability of {self.compared}."

    def prompt(self, kind: str = "instruct") -> str:
        """The query's prompt; kinds are those of ``prompt_texts``."""
        return prompt_texts(self.study.task, [self.user], kind, self.study.settings)[0]

    def edits(self, strength: float) -> dict[str, Edit]:
        """Both edits at a strength."""
        found = {PAPER: self.edit, FITTED: self.fitted}
        return {name: strengthened(edit, strength) for name, edit in found.items()}

    def arms(self) -> Arms:
        """No edit, both edits at the strength of the play, the insight in the prompt."""
        edits = {name: ("instruct", edit) for name, edit in self.edits(self.strength).items()}
        return {NO_EDIT: ("instruct", None), **edits, INSIGHT: ("insight", None)}


def written_user(task: str, history: Sequence[Sequence[str]], query: str) -> User:
    """A user out of texts and labels: ``[text, label]`` per item; LaMP-7 takes ``[text]``.

    Raises:
        UserError: No item, an item or a label that the task does not know, or no query.
    """
    known = get_task(task)
    wanted = "[text, label]" if known.labels else "[text]"
    items = []
    for number, entry in enumerate(history, start=1):
        if isinstance(entry, str) or len(entry) != (2 if known.labels else 1) or not all(entry):
            raise UserError(f"Item {number} of the history must be {wanted}, not {entry!r}.")
        label = str(entry[1]) if known.labels else None
        if label is not None and label not in known.labels:
            raise UserError(
                f"Item {number} of the history has the label {label!r}; {known.name} knows "
                f"{', '.join(known.labels)}."
            )
        items.append(HistoryItem(str(number), str(entry[0]), label))
    if not items:
        raise UserError(f"The history is empty; give at least one {wanted}.")
    if not query.strip():
        raise UserError("The query is empty; write what shall be answered.")
    asked = Query(ASKED, query.strip(), official_input(known.name, query.strip()), None)
    return User("you", known.name, tuple(items), (asked,))


def play(
    profile: RunProfile,
    backbone_id: str,
    task: str,
    history: Sequence[Sequence[str]],
    query: str,
    *,
    strength: float = 1.0,
    data_dir: str = "",
) -> Play:
    """Read a history, write its insights, and get the edits of a group of other users ready.

    ``strength`` is a factor on both strengths of an edit; 1 is the edit as it was found, 0 none.

    Raises:
        UserError: See :func:`written_user`; also a history that fits no context.
    """
    user = written_user(task, history, query)
    data = load_task_data(profile, user.task, data_dir)
    tour = ask(profile, backbone_id, data, user, query.strip())
    given = {field.name: getattr(tour, field.name) for field in fields(tour)}
    return _told_apart(Play(**given, strength=strength))


@torch.no_grad()
def _told_apart(play: Play) -> Play:
    """Where both insights lead to one answer, the most likely other answer is its rival."""
    own, generic = play.answers
    others = [answer for answer in play.candidates if answer != own]
    if own != generic or not others:
        return play
    read = play.backbone.prepare([play.prompt()])
    (scores,) = play.backbone.score_many(read, [others])
    reference = replace(play.reference, generic=[others[int(scores.argmax())]])
    compared = "the answer under both insights minus that of the most likely other answer"
    return replace(play, reference=reference, compared=compared)


def answers(play: Play) -> pd.DataFrame:
    """The query's pair and answers: who said it, under which edit, and the margin in nats."""
    found = play.exam.answer(play.arms())
    rows = [[name, said.texts[0], _margin(said)] for name, said in found.items()]
    return pd.DataFrame(rows, columns=["prompt and edit", "answer", "margin (nats)"])


def _margin(said: Answers) -> float:
    return round(float(said.margin[0]), 3)


@torch.no_grad()
def candidates(play: Play) -> pd.DataFrame:
    """Mean log-probability per token of every possible answer, nats, without and with edits."""
    columns = {}
    for name, (kind, edit) in play.arms().items():
        read = play.backbone.prepare([play.prompt(kind)])
        (scores,) = play.backbone.score_many(read, [play.candidates], edit=edit, reduce="mean")
        columns[name] = scores.double().cpu().numpy().round(3)
    frame = pd.DataFrame(columns, index=play.candidates).rename_axis("answer")
    return frame.sort_values(NO_EDIT, ascending=False, kind="stable").reset_index()


def strengths(play: Play, values: Sequence[float]) -> pd.DataFrame:
    """Margin (nats) of the query at several strengths, one row per edit and strength."""
    arms = {
        (name, float(value)): ("instruct", edit)
        for value in values
        for name, edit in play.edits(value).items()
    }
    rows = [[*arm, _margin(said)] for arm, said in play.exam.answer(arms).items()]
    return pd.DataFrame(rows, columns=["edit", "strength", "margin (nats)"])


def layers(play: Play) -> pd.DataFrame:
    """Logit lens: the preference for the user's answer after every layer, without and with edits.

    Returns:
        One row per edit and layer: log-probability of the user's answer minus that of the generic
        one (nats) at the first token in which they differ, the more likely of all tokens, and
        whether the layer is edited.

    Raises:
        UserError: Both answers are the same.
    """
    start, own, generic = first_difference(play.backbone, *play.answers)
    rows = []
    for name, edit in {NO_EDIT: None, **play.edits(play.strength)}.items():
        seen = logit_lens(play.backbone, play.prompt(), edit, start)  # (L, V)
        tokens = play.backbone.codec.tokenizer.convert_ids_to_tokens(seen.argmax(dim=-1).tolist())
        for layer, (logp, token) in enumerate(zip(seen, tokens, strict=True)):
            difference = round(float(logp[own] - logp[generic]), 3)
            edited = edit is not None and layer in edit.layers
            rows.append([name, layer, difference, token, edited])
    return pd.DataFrame(
        rows, columns=["edit", "layer", "preference (nats)", "most likely token", "edited"]
    )


def strength_figure(frame: pd.DataFrame, play: Play, publish: Publisher) -> FigureOutput:
    """The margin of one query over the strength of each edit, from :func:`strengths`."""
    personal, generic = play.answers
    fig = _lines(
        frame,
        title=f"Strength: “{personal}” or “{generic}”?",
        profile=publish.profile,
        x="strength",
        xlabel="strength (0: no edit, 1: as found)",
        y="margin (nats)",
        ylabel=f"margin, nats (↑ towards “{personal}”)",
    )
    fig.axes[0].axvline(play.strength, color=MUTED, lw=1.2, ls=":", zorder=1)
    return publish.figure(
        fig,
        "09_strength",
        alt=f"Lines of the margin over the strength, {_ends(frame, 'margin (nats)')}.",
        caption=f"log p({personal}) − log p({generic}) of one query; above zero the user's answer "
        f"wins. The dotted upright marks strength {play.strength:g}. One query proves nothing "
        f"({publish.profile} profile).",
        data=frame,
        made_by=strengths,
    )


def lens_figure(frame: pd.DataFrame, play: Play, publish: Publisher) -> FigureOutput:
    """The preference after every decoder layer, without and with each edit (:func:`layers`)."""
    personal, generic = play.answers
    fig = _lines(
        frame,
        title=f"Layer by layer: “{personal}” or “{generic}”?",
        profile=publish.profile,
        x="layer",
        xlabel="decoder layer (ringed: edited there)",
        y="preference (nats)",
        ylabel=f"preference, nats (↑ towards “{personal}”)",
    )
    ax, edited = fig.axes[0], rounded(frame[frame["edited"]])
    ax.plot(edited["layer"], edited["preference (nats)"], ls="", marker="o", ms=13, mfc="none",
            mec=COLOURS[2], mew=1.6, zorder=2)  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return publish.figure(
        fig,
        "09_lens",
        alt=f"Lines of the preference over decoder layers, {_ends(frame, 'preference (nats)')}.",
        caption="Logit lens at the first token in which the two answers differ: the state after "
        "each layer, read by the model's own output head. The last point is the model itself; "
        f"before it, the reading is a guess at an unfinished thought ({publish.profile} profile).",
        data=frame,
        made_by=layers,
    )


def _lines(frame: pd.DataFrame, *, y: str, **how: Any) -> Figure:
    """One line per edit; one query has no interval."""
    if frame.empty:
        raise UserError("There is nothing to draw; give at least one strength.")
    y_of = rounded(frame)[y]  # as in the table, by its name
    data = frame.assign(value=y_of, ci_low=y_of, ci_high=y_of)
    return line_ci(data, group="edit", reference=0.0, reference_label="even", better=None, **how)


def _ends(frame: pd.DataFrame, column: str) -> str:
    """Where every line starts and ends."""
    lines = frame.groupby("edit", sort=False)[column]
    return "; ".join(f"{name} from {y.iloc[0]:+.2f} to {y.iloc[-1]:+.2f}" for name, y in lines)
