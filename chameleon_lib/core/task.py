"""What a task is: its records, the wording of its prompts, how its answers are read and scored.

`Task` holds all that differs between the tasks of the benchmark. Each is one file of
`chameleon_lib/data/tasks` that registers itself; a notebook's cell may register its own.

Prompts are Appendix A.3 of the paper, Figure 2's insight queries, and LaMP's own prompt. Paragraphs
are joined by one newline, history lines are numbered from 1 and substituted in place. The
personalised (P) and the neutral (N) prompt are the same string up to the agent paragraph. Texts are
assembled, never searched and replaced, so a tweet that says "[INSIGHT]" stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import Literal

import numpy as np

from chameleon_lib.errors import UserError

Role = Literal["P", "N"]
Baseline = Literal["drop_insight_sentence", "drop_agent_block"]

PAPER_TASKS = ("LaMP_2", "LaMP_3", "LaMP_7")  # of the paper's tables, and of the embedded world
ANSWER_CUE = "Your answer:"
INSIGHT_QUERIES: dict[str, str] = {
    "P": "Conclude the user's characteristics and preference.",
    "N": (
        "Do not consider the user's preferences or profile history when responding. "
        "Conclude the style of your answer."
    ),
}
_NEUTRAL = (
    "You are a generic and impersonal assistant. "
    "You do not consider the user's preferences or profile history when responding."
)
_TASK_FILES = "chameleon_lib.data.tasks"  # imported by name at the first look-up, as plug-ins are
_TOKEN = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """One entry of a user's history."""

    id: str  # unique inside one sample only; never a key on its own
    text: str  # what the item is about: movie description, review, tweet, article
    # What the user made of it: tag, score ``"1"``..``"5"``, title; None where the text itself is
    # the user's
    label: str | None


@dataclass(frozen=True, slots=True)
class Query:
    """One question of a user."""

    id: str  # the sample id of the questions file
    text: str  # the extracted query (description, review or tweet), stripped
    input: str  # the official ``input`` field, kept for the official prompt
    gold: str | None  # the gold output, None where labels are withheld


@dataclass(frozen=True, slots=True)
class User:
    """One user: a history and the queries asked about it."""

    id: str  # name of the user in this run; never parsed from a question id
    task: str  # name of the task, such as ``"LaMP_2"``
    history: tuple[HistoryItem, ...]  # profile items in file order
    queries: tuple[Query, ...]  # at least one query


@dataclass(frozen=True)
class Agent:
    """An agent paragraph: `lead`, the sentence `stem` + insight + ".", then `close`."""

    lead: str
    stem: str
    close: str | None = None


@dataclass(frozen=True)
class Wording:
    """The paragraphs of one task in A.3."""

    opening: str  # sentence before the numbered history
    line: str  # one history item without its number, as a format of ``text`` and ``label``
    query: str  # what stands before the query
    question: str
    agents: Mapping[str, Agent]  # by role


def agents(
    wish: str,
    close: str | None = None,
    *,
    neutral_stem: str = "Your answer should",
    neutral_close: str | None = None,
) -> dict[str, Agent]:
    """The two agent paragraphs as A.3 writes them; ``wish`` and ``close`` are for role P."""
    lead = f"You are a helpfully personalized assistant. {wish}"
    return {
        "P": Agent(lead, "The user prefers", close),
        "N": Agent(_NEUTRAL, neutral_stem, neutral_close),
    }


@dataclass(frozen=True)
class Metric:
    """A metric of a task."""

    name: str  # as the evaluator and the tables call it
    of: str  # the score per sample that it sums up; "answers" where it counts classes
    statistic: Literal["mean", "rmse", "macro_f1"] = "mean"  # rmse: root of the mean square
    higher: bool = True  # whether a larger value is the better one


Scores = Callable[[Sequence[str], Sequence[str]], dict[str, np.ndarray]]
Floor = Callable[[Sequence[User], Sequence[User]], list[str]]


@dataclass(frozen=True, kw_only=True)
class Official:
    """The official files of a task."""

    # (split, part) -> number of questions. A minus marks a published figure that nobody has
    # confirmed against a full download: another number is told, not refused.
    records: Mapping[tuple[str, str], int] = field(default_factory=dict)
    # Name of a file of the user-based split -> size that was seen
    bytes: Mapping[str, int] = field(default_factory=dict)
    folder: str = ""  # below the folder of the task; the movies lie in ``new``
    first_digit: int = 0  # of the sample ids: number of the task - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One task."""

    name: str  # name with an underscore, as in the files and the evaluator
    title: str  # name for tables and captions
    # Closed list of answers in official order (index = class), empty for free text
    labels: tuple[str, ...] = ()
    text_key: str = "text"  # key of the text in a profile item
    # Key of the label in a profile item; None where the text itself is the user's
    label_key: str | None = None
    # Whether items have labels of free text though answers are chosen from a list
    free_items: bool = False
    instruction: str  # the official ``input`` up to and including the query marker
    query_marker: str  # the query is the stripped text after its first occurrence
    official_item: str  # LaMP's own prompt: one item, as a format of ``text`` and ``label``
    # All of it, as a format of ``items``, ``input``, and the input's ``head`` (the instruction) and
    # ``tail``
    official_prompt: str = "{items}. {input}"
    wording: Wording  # the paragraphs of A.3
    noun: str  # what a query is called, in the prompts of LLM-REC
    thing: str | None = None  # what could be recommended to others, there; None where nothing could
    measures: tuple[Metric, ...]  # the metrics, the one that decides first
    score: Scores  # (golds, predictions) -> scores per sample, arrays (n,)
    # Whether an answer has the form the task asks for; None: it is on the list of labels, or has a
    # token
    valid: Callable[[str], bool] | None = None
    floors: Mapping[str, Floor]  # answers that need no model, by name
    max_new_tokens: int  # default length limit of an answer, in new tokens
    # How samples without user ids are grouped: by "identical" profiles, or by "overlap" where one
    # person's profiles differ a little
    users_by: Literal["identical", "overlap"] = "identical"
    official: Official = field(default_factory=Official)  # its files
    # Start of an input that lost its instruction and can be mended; "": none
    lost_instruction: str = ""
    # Keys of profile items that belong to another task, and the sentence to say so
    foreign: tuple[tuple[str, ...], str] = ((), "")
    # Spelling of the task for a label as a table writes it; None refuses the label
    read_label: Callable[[str], str | None] | None = None
    label_refusal: str = "unknown label"  # reason of the refusal, a key of the import's reasons
    importable: bool = True  # whether a table of users, texts and labels can hold the task

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, the one that decides first."""
        return tuple(metric.name for metric in self.measures)

    @property
    def item_labels(self) -> tuple[str, ...]:
        """Labels that history items may have; empty for free text, or for no labels at all."""
        return () if self.free_items else self.labels

    @property
    def wording_digest(self) -> str:
        """SHA-256 of all that the prompts are made of: a key for what was written by them."""
        texts = [self.instruction, self.official_item, self.official_prompt, self.noun, self.thing]
        paragraphs = {role: vars(agent) for role, agent in self.wording.agents.items()}
        content = [self.name, texts, {**vars(self.wording), "agents": paragraphs}]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def is_valid(self, answer: str) -> bool:
        """Say whether `answer` has the form the task asks for."""
        if self.valid is not None:
            return self.valid(answer)
        return answer.strip() in self.labels if self.labels else bool(tokens(answer))

    def label_of(self, item: HistoryItem) -> str:
        """The label of a history item.

        Raises:
            UserError: It has none.
        """
        if item.label is None:
            missing = f"History item {item.id!r} has no {self.label_key}"
            raise UserError(f"{missing}; {self.name} needs one.")
        return item.label

    def render(self, pattern: str, item: HistoryItem) -> str:
        """Put an item into a pattern of ``text`` and ``label``; neither is searched again."""
        if self.label_key is None:
            return pattern.format(text=item.text)
        return pattern.format(text=item.text, label=self.label_of(item))


_registry: dict[str, Task] = {}


def register(task: Task) -> Task:
    """Add a task; one of the same name is replaced, so that a notebook's cell can run twice.

    Raises:
        UserError: The name is no plain name such as ``LaMP_5``.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", task.name):
        raise UserError(f"{task.name!r} is no name of a task: use letters, digits and '_'.")
    _registry[task.name] = task
    return task


def registered() -> Mapping[str, Task]:
    """All tasks by name, sorted."""
    import_module(_TASK_FILES)
    return MappingProxyType(dict(sorted(_registry.items())))


def get_task(name: str | Task) -> Task:
    """Return the task called `name`; ``LaMP-2`` and ``LaMP_2`` are the same task.

    Raises:
        UserError: There is no such task.
    """
    if isinstance(name, Task):
        return name
    wanted = name.replace("-", "_")
    task = _registry.get(wanted) or registered().get(wanted)
    if task is None:
        raise UserError(f"Unknown task {name!r}: use one of {', '.join(registered())}.")
    return task


def tokens(text: str) -> list[str]:
    """Return the ROUGE tokens of `text`: maximal runs of [a-z0-9] in its lower-case form."""
    return _TOKEN.findall(text.lower())


def is_valid_answer(task: str | Task, answer: str) -> bool:
    """Say whether `answer` has the form the task asks for."""
    return get_task(task).is_valid(answer)


def official_input(task: str | Task, text: str) -> str:
    """Return the official ``input`` field that asks about `text`."""
    return f"{get_task(task).instruction} {text}"


def history_line(task: str | Task, item: HistoryItem) -> str:
    """Render one history item as A.3 does, without its running number (also B1's `line`)."""
    chosen = get_task(task)
    return chosen.render(chosen.wording.line, item)


def history_block(task: str | Task, items: Sequence[HistoryItem]) -> str:
    """Render the first paragraph of A.3: the opening sentence with the history in place.

    Raises:
        UserError: `items` is empty; the prompt without a history is `unseen_prompt`.
    """
    if not items:
        raise UserError("A prompt with a history needs at least one item; use unseen_prompt.")
    lines = (f"{i}. {history_line(task, item)}" for i, item in enumerate(items, start=1))
    return f"{get_task(task).wording.opening} " + "\n".join(lines)


def query_line(task: str | Task, query_text: str) -> str:
    """Render the paragraph that states the query (also part of a pair text, A3)."""
    return f"{get_task(task).wording.query} {query_text}"


def insight_prompt(task: str | Task, items: Sequence[HistoryItem], role: Role) -> str:
    """Ask for an insight (Figure 2, A14): history paragraph, then the query of `role`.

    The marker "P:" / "N:" of the figure is a caption and not part of the prompt; no task query
    takes part (B2).
    """
    return f"{history_block(task, items)}\n{INSIGHT_QUERIES[role]}"


def _agent_paragraph(
    agent: Agent, insight: str | None, baseline: Baseline, fix_typos: bool
) -> str | None:
    if insight is None and baseline == "drop_agent_block":
        return None
    sentences = [agent.lead]
    if insight is not None:
        stem = agent.stem.replace("shoulds", "should") if fix_typos else agent.stem
        sentences.append(f"{stem} {insight.strip()}.")
    if agent.close is not None:
        sentences.append(agent.close)
    return " ".join(sentences)


def _question_onwards(
    task: Task, query_text: str, role: Role, insight: str | None, baseline: Baseline, fix: bool
) -> str:
    """Everything after the history paragraph."""
    agent = _agent_paragraph(task.wording.agents[role], insight, baseline, fix)
    paragraphs = [query_line(task, query_text), task.wording.question]
    if agent is not None:
        paragraphs.append(agent)
    return "\n".join([*paragraphs, ANSWER_CUE])


def answer_prompt(
    task: str | Task,
    items: Sequence[HistoryItem],
    query_text: str,
    *,
    role: Role | None,
    insight: str | None,
    baseline: Baseline = "drop_insight_sentence",
    fix_typos: bool = False,
) -> str:
    """Build the A.3 prompt; it ends with "Your answer:".

    Args:
        task: Task or its name.
        items: Selected history, in order.
        query_text: The extracted query.
        role: "P" or "N"; None means no insight and equals "P" without an insight.
        insight: Text put in place of [INSIGHT] (stripped). None gives the paper's Instruct
            baseline, which exists for the personalised role only.
        baseline: What "without insights" removes (B3): the sentence that holds [INSIGHT], or the
            whole agent paragraph.
        fix_typos: Write "should" where the paper prints "shoulds" (A23).

    Raises:
        UserError: No history, a blank insight, an insight without a role, or role "N" without
            an insight.
    """
    if insight is None and role == "N":
        raise UserError("The neutral prompt needs an insight; the one without is role 'P'.")
    if insight is not None and role is None:
        raise UserError("An insight needs a role: 'P' or 'N'.")
    if insight is not None and not insight.strip():
        raise UserError(f"The insight for role {role!r} is empty; generate it again before use.")
    rest = _question_onwards(get_task(task), query_text, role or "P", insight, baseline, fix_typos)
    return f"{history_block(task, items)}\n{rest}"


def unseen_prompt(
    task: str | Task, query_text: str, *, baseline: Baseline = "drop_insight_sentence"
) -> str:
    """Build the prompt for a user without history: Instruct minus its history paragraph (A19)."""
    return _question_onwards(get_task(task), query_text, "P", None, baseline, False)


def official_prompt(task: str | Task, items: Sequence[HistoryItem], query: Query) -> str:
    """Build LaMP's own prompt (controls C1 and C2); without items it is the input alone.

    The blanks before the joiner and before "are written" belong to the official format.
    """
    chosen = get_task(task)
    if not items:
        return query.input
    head = chosen.instruction
    return chosen.official_prompt.format(
        items=", and ".join(chosen.render(chosen.official_item, item) for item in items),
        input=query.input,
        head=head,
        tail=query.input.removeprefix(head),
    )
