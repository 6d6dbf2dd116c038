"""A history and a query of one's own, and what an edit does to them: answers, margins, layers.

The edits are those of the quickstart, found on other users' pairs; the history that is written here
reaches no fit. A query of one's own has no gold: what the margin compares are the model's own
answers under the personalised and under the neutral insight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from chameleon_lib.backbones.hf import HFBackbone
from chameleon_lib.backbones.lens import first_difference, logit_lens
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import decode_settings, max_new_tokens
from chameleon_lib.core.task import HistoryItem, Query, User, get_task, official_input
from chameleon_lib.errors import UserError
from chameleon_lib.kit.figures import COLOURS, INK, LINES, MARKERS, MUTED, FigureOutput, style
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.studies.answering import prompt_texts
from chameleon_lib.studies.data import load_task_data
from chameleon_lib.studies.own_users import ASKED, Asked, ask

PAPER, FITTED = "paper's edit", "fitted edit (ours)"
NO_EDIT, INSIGHT = "no edit", "insight in the prompt"
_ORDER = (PAPER, FITTED, NO_EDIT)  # one look per edit in both pictures


@dataclass(frozen=True)
class Play:
    """One query with everything that is needed to ask it again under another edit.

    Attributes:
        asked: The fit, the prepared user and the two answers that are compared.
        strength: Factor on both strengths of an edit (alpha_p and alpha_n).
    """

    asked: Asked
    strength: float

    @cached_property
    def backbone(self) -> HFBackbone:
        """The model that answers; its hidden states are read, so it is one of ours."""
        return cast(HFBackbone, self.asked.tour.study.backbone)

    @property
    def answers(self) -> tuple[str, str]:
        """The user's answer and the generic one."""
        return self.asked.reference.personal[0], self.asked.reference.generic[0]

    @property
    def candidates(self) -> list[str]:
        """Every answer of the task; of free text, the two that are compared."""
        return list(get_task(self.asked.tour.study.task).labels or dict.fromkeys(self.answers))

    def sentence(self) -> str:
        """The two answers, and what the margin compares."""
        own, other = self.answers
        return f"{own!r} or {other!r}? Margin: log-probability of {self.asked.compared}."

    def prompt(self, kind: str = "instruct") -> str:
        """The query's prompt; kinds are those of ``answering.PROMPTS``."""
        tour = self.asked.tour
        return prompt_texts(tour.study.task, [tour.user], kind, tour.study.settings)[0]

    def edits(self, strength: float | None = None) -> dict[str, Edit]:
        """Both edits, at the strength of the play or another one."""
        factor = self.strength if strength is None else strength
        tour = self.asked.tour
        return {
            PAPER: strengthened(tour.edit, factor),
            FITTED: strengthened(tour.fitted, factor),
        }


def strengthened(edit: Edit, factor: float) -> Edit:
    """The edit with both strengths multiplied."""
    return replace(edit, alpha_p=factor * edit.alpha_p, alpha_n=factor * edit.alpha_n)


def written_user(task: str, history: Sequence[Sequence[str]], query: str) -> User:
    """A user out of texts and labels.

    Args:
        task: Task name.
        history: ``[text, label]`` per item; LaMP-7 takes ``[text]``.
        query: What is asked.

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

    Args:
        profile: Run profile.
        backbone_id: Backbone.
        task: Task name.
        history: ``[text, label]`` per item (:func:`written_user`).
        query: What is asked.
        strength: Factor on both strengths; 1 is the edit as it was found, 0 none.
        data_dir: Folder of official LaMP files; empty for the embedded world.

    Raises:
        UserError: See :func:`written_user`; also a history that fits no context.
    """
    user = written_user(task, history, query)
    data = load_task_data(profile, user.task, data_dir)
    return _told_apart(Play(ask(profile, backbone_id, data, user, query.strip()), strength))


@torch.no_grad()
def _told_apart(play: Play) -> Play:
    """Where both insights lead to one answer, the most likely other answer is its rival."""
    own, generic = play.answers
    others = [answer for answer in play.candidates if answer != own]
    if own != generic or not others:
        return play
    read = play.backbone.prepare([play.prompt()])
    (scores,) = play.backbone.score_many(read, [others])
    reference = replace(play.asked.reference, generic=[others[int(scores.argmax())]])
    compared = "the answer under both insights minus that of the most likely other answer"
    return replace(play, asked=replace(play.asked, reference=reference, compared=compared))


@torch.no_grad()
def answers(play: Play) -> pd.DataFrame:
    """The query's pair and answers: who said it, under which edit, and the margin in nats."""
    tour, backbone = play.asked.tour, play.backbone
    new, how = (
        max_new_tokens(tour.study.task, tour.study.settings),
        decode_settings(tour.study.settings),
    )
    rows = []
    for name, kind, edit in _arms(play):
        read = backbone.prepare([play.prompt(kind)])
        said = backbone.generate_prepared(read, max_new_tokens=new, edit=edit, decode=how)
        (scores,) = backbone.score_many(read, [play.answers], edit=edit)
        rows.append([name, said[0], round(float(scores[0] - scores[1]), 3)])
    return pd.DataFrame(rows, columns=["prompt and edit", "answer", "margin (nats)"])


@torch.no_grad()
def candidates(play: Play) -> pd.DataFrame:
    """Mean log-probability per token of every possible answer, nats, without and with edits."""
    columns = {}
    for name, kind, edit in _arms(play):
        read = play.backbone.prepare([play.prompt(kind)])
        (scores,) = play.backbone.score_many(read, [play.candidates], edit=edit, reduce="mean")
        columns[name] = scores.double().cpu().numpy().round(3)
    frame = pd.DataFrame(columns, index=play.candidates).rename_axis("answer")
    return frame.sort_values(NO_EDIT, ascending=False, kind="stable").reset_index()


def _arms(play: Play) -> list[tuple[str, str, Edit | None]]:
    edits = play.edits()
    return [
        (NO_EDIT, "instruct", None),
        *((name, "instruct", edit) for name, edit in edits.items()),
        (INSIGHT, "insight", None),
    ]


@torch.no_grad()
def strengths(play: Play, values: Sequence[float]) -> pd.DataFrame:
    """Margin (nats) of the query at several strengths, one row per edit and strength."""
    read = play.backbone.prepare([play.prompt()])
    rows = []
    for value in values:
        for name, edit in play.edits(value).items():
            (scores,) = play.backbone.score_many(read, [play.answers], edit=edit)
            rows.append([name, float(value), round(float(scores[0] - scores[1]), 3)])
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
    for name, edit in {NO_EDIT: None, **play.edits()}.items():
        seen = logit_lens(play.backbone, play.prompt(), edit, start)  # (L, V)
        tokens = play.backbone.codec.tokenizer.convert_ids_to_tokens(seen.argmax(dim=-1).tolist())
        for layer, (logp, token) in enumerate(zip(seen, tokens, strict=True)):
            difference = round(float(logp[own] - logp[generic]), 3)
            edited = edit is not None and layer in edit.layers
            rows.append([name, layer, difference, token, edited])
    return pd.DataFrame(
        rows, columns=["edit", "layer", "preference (nats)", "most likely token", "edited"]
    )


def strength_figure(
    frame: pd.DataFrame, play: Play, publish: Publisher, name: str = "09_strength"
) -> FigureOutput:
    """The margin of one query over the strength of each edit.

    Args:
        frame: From :func:`strengths`.
        play: Names the answers; its strength is marked.
        publish: Of the notebook.
        name: Id of the figure.
    """
    personal, generic = play.answers
    fig, ax = _axes(frame, f"Strength: “{personal}” or “{generic}”?", publish.profile)
    ax.axvline(play.strength, color=MUTED, lw=1.2, ls=":", zorder=1)
    ax.annotate(f"strength {play.strength:g}", (play.strength, 1.0), xytext=(4, -2), va="top",
                xycoords=("data", "axes fraction"), textcoords="offset points",
                fontsize=8, color=MUTED)  # fmt: skip
    _lines(ax, frame, "strength", "margin (nats)")
    ax.set_xlabel("strength (0: no edit, 1: as found)")
    ax.set_ylabel(f"margin, nats (↑ towards “{personal}”)")
    ends = "; ".join(
        f"{edit}: {part['margin (nats)'].iloc[0]:+.2f} at strength {part['strength'].iloc[0]:g}, "
        f"{part['margin (nats)'].iloc[-1]:+.2f} at {part['strength'].iloc[-1]:g}"
        for edit, part in frame.groupby("edit", sort=False)
    )
    return publish.figure(
        fig,
        name,
        alt=f"Lines of the margin over the strength. {ends}.",
        caption=f"log p({personal}) − log p({generic}) of one query; above zero the user's answer "
        f"wins. One query proves nothing ({publish.profile} profile).",
        data=frame,
        made_by=strengths,
    )


def lens_figure(
    frame: pd.DataFrame, play: Play, publish: Publisher, name: str = "09_lens"
) -> FigureOutput:
    """Logit lens: the preference after every decoder layer, without and with each edit.

    Args:
        frame: From :func:`layers`.
        play: Names the answers.
        publish: Of the notebook.
        name: Id of the figure.
    """
    personal, generic = play.answers
    fig, ax = _axes(frame, f"Layer by layer: “{personal}” or “{generic}”?", publish.profile)
    _lines(ax, frame, "layer", "preference (nats)")
    edited = frame[frame["edited"]]
    ax.plot(edited["layer"], edited["preference (nats)"], ls="", marker="o", ms=13, mfc="none",
            mec=COLOURS[2], mew=1.6, zorder=2)  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("decoder layer (ringed: edited there)")
    ax.set_ylabel(f"preference, nats (↑ towards “{personal}”)")
    ends = "; ".join(
        f"{edit}: {part['preference (nats)'].iloc[-1]:+.2f}"
        for edit, part in frame.groupby("edit", sort=False)
    )
    return publish.figure(
        fig,
        name,
        alt=f"Lines of the preference over decoder layers. After the last layer, {ends}.",
        caption="Logit lens at the first token in which the two answers differ: the state after "
        "each layer, read by the model's own output head. The last point is the model itself; "
        f"before it, the reading is a guess at an unfinished thought ({publish.profile} profile).",
        data=frame,
        made_by=layers,
    )


def _axes(frame: pd.DataFrame, title: str, profile: str) -> tuple[Figure, Axes]:
    if frame.empty:
        raise UserError("There is nothing to draw; give at least one strength.")
    with style():
        fig = Figure(figsize=(7.2, 4.0))
        ax = fig.subplots()
    ax.axhline(0, color=INK, lw=1.0, zorder=1)
    fig.suptitle(f"{title} · {profile} profile", x=0.01, ha="left", fontsize=12,
                 fontweight="bold", wrap=True)  # fmt: skip
    return fig, ax


def _lines(ax: Axes, frame: pd.DataFrame, x: str, y: str) -> None:
    ends = []
    for edit, part in frame.groupby("edit", sort=False):
        number = _ORDER.index(str(edit))
        colour = COLOURS[3] if edit == NO_EDIT else COLOURS[number]
        ax.plot(part[x], part[y], color=colour, marker=MARKERS[number], ls=LINES[number], lw=1.8,
                mec=INK, mew=0.6, zorder=3)  # fmt: skip
        ends.append((float(part[y].iloc[-1]), float(part[x].iloc[-1]), str(edit)))
    # Direct labels at the right end, pushed apart where lines end close together.
    low, high = ax.get_ylim()
    gap, last = 0.07 * (high - low), float("-inf")
    for value, at, edit in sorted(ends):
        last = max(value, last + gap)
        ax.annotate(edit, (at, last), xytext=(9, 0), textcoords="offset points", fontsize=9,
                    va="center", annotation_clip=False)  # fmt: skip
    ax.margins(x=0.04)
