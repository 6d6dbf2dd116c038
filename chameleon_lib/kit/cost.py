"""What a run would cost: the counts of a real run of the demo, scaled by what differs.

``counts.tsv`` holds what a cold run of the demo asked of its models (written again by ``python -m
workshop.count``). A row is the work of one stage on one backbone and task that the same
notebooks share, so the work of several notebooks is each of their rows once. Another run differs in

- users, groups and fit steps: each stage grows with what :func:`_growth` names;
- models: an id of the demo stands for the studied model of its family;
- lengths: ``LENGTHS`` has the mean tokens of prompts and answers of the embedded world and of LaMP,
  whose batches are padded (``PADDED``);
- texts: two answers of a small model are often the same and make no pair to read, those of a
  language model hardly ever (``_DIFFERENT``);
- reading: a batch of prompts is read once for ``ARMS_AT_ONCE`` arms, and a prompt of a fit once for
  all of its steps;
- the design: what a notebook does beyond the demo, or in the demo alone, stands in its metadata
  (``chameleon.cost``). ``demo``: its own train and test users and group there. Outside the demo
  ``beyond`` is a factor per stage, ``reduced`` the same for profiles with reduced designs: a
  fraction counts what both designs read, such as history items over all conditions ("95/85"); a
  decimal number is an estimate, and the plan says so. "fit prompts" and "answers prompts" are the
  factors of what these stages read, where it grows otherwise. ``most`` are train and test users at
  most (0 for any), ``also`` names tasks that are done as the demo's one, ``models`` more models,
  ``prompts`` is a factor on the length of prompts (those without a history), ``once`` the share of
  the answers' reading that does not grow with the groups, and ``whole`` says that a group is all
  train users. ``fixed``: it does the same at every size.

Hours divide FLOPs (:mod:`kit.flops`) by an assumed throughput. Left out, because they are far below
the rest: CCS, SVD and sentence embeddings. Standard library only: a plan is printed before anything
is installed.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from chameleon_lib.errors import UserError
from chameleon_lib.kit.flops import Tokens, Work
from chameleon_lib.kit.models import (
    DATA_BYTES,
    MODELS,
    Model,
    adapts_aloe,
    checkpoints,
    device_bytes,
    number_bytes,
)
from chameleon_lib.kit.profiles import PROFILES, RunProfile
from chameleon_lib.kit.shared_items import SEEDS, Reviews

COUNTS = Path(__file__).with_name("counts.tsv")
STAGES = {  # of the store → title
    "insights": "insights",
    "query_insights": "insights",
    "pairs": "pairs",
    "activations": "activations",
    "fit": "fit",
    "answers": "answers",
    "edit_size": "answers",
    "summaries": "LLM-REC",
    "aloe": "ALOE",
    "dpo": "DPO",
}
OF_REVIEWS = {  # the same of notebook 11
    "difference_trained": "soft prompts",
    "difference_told": "differences told",
    "difference_edits": "edits",
}
_NO_DESIGN: Mapping[str, Any] = {}
OTHER = "shown"  # what a notebook asks outside the store, and units of its own
# Rows that a fit scores: of embedded models as counted, 18 steps of 16 rows, which their held-out
# users stop, and half as many rows of those users; of others the most steps × rows of a mini-batch,
# also in profiles with own settings. The latter answer some neutral questions for a check.
# Passes of ALOE of embedded decoders and encoder-decoders.
_FIT_ROWS = {True: 27 * 16, False: 24 * 8}
_MOST_ROWS = {"small": 10 * 8}
_CHECK = {"read": 624, "written": 248}  # tokens of a fit's check
_ALOE_PASSES = {False: 3, True: 2}
ARMS_AT_ONCE = 24  # arms that share one reading of a batch of prompts, as `studies.arms` asks them
# Of what the answers of Table 1 read in the demo, a third is read by the six models that are
# trained for a group, and as much for the edits of further groups (those of the first find it
# read); the rest once. Of its 74 arms 7 have no edit, and 6 are those models.
_ONCE, _TRAINED = 0.35, 1 / 3
_PLAIN_ARMS, _TRAINED_ARMS = 7 / 74, 6 / 74
_DIFFERENT = 0.7  # of the demo's pairs, the share whose two answers differ
# What a decoder reads of two prompts behind their common start, per prompt, beside the insight.
_BEHIND = {"insights": 26, "query_insights": 26, "pairs": 35}
# Tokens of a batch of real texts over those without padding: 1.1 to 1.35 by stage, in a counted run
# of profile small on LaMP-7.
PADDED = 1.15
_BYTES_PER_ANSWER = 120  # JSON and margin, in the store


class Lengths(NamedTuple):
    """Mean tokens: a prompt for an answer, one for an insight and the text that activations are
    read from, without its answer, all with their history; an answer, one under the arms of a study
    (edits shorten many), an insight, a summary of LLM-REC."""

    prompt: float
    told: float
    text: float
    answer: float
    edited: float
    insight: float
    summary: float


# Of the embedded world: counted under its own tokenizer, with ten history items. Of LaMP: what its
# prompts have beside the items, the turns of a chat template among it, under SmolLM2's tokenizer;
# insights and summaries at their limits.
LENGTHS: dict[bool, dict[str, Lengths]] = {
    True: {
        "LaMP_2": Lengths(136, 128, 136, 2, 2, 7, 8.6),
        "LaMP_3": Lengths(111, 101, 111, 2, 2, 7, 13.2),
        "LaMP_7": Lengths(106, 101, 106, 8.8, 8.8, 10.5, 7.1),
    },
    False: {
        "LaMP_2": Lengths(305, 60, 140, 4, 4, 256, 120),
        "LaMP_3": Lengths(310, 70, 193, 2, 2, 256, 120),
        "LaMP_7": Lengths(155, 75, 84, 34, 20, 256, 120),
    },
}


# Mean tokens of a history item of LaMP, and of a word.
ITEM = {"LaMP_2": 76.0, "LaMP_3": 195.0, "LaMP_7": 27.0}
WORD = 1.4


@dataclass(frozen=True)
class Scope:
    """The size of a run.

    Attributes:
        profile: The run profile.
        users: Cap on train and on test users; 0 for the profile's numbers.
        draws: Random groups; 0 for the profile's number.
        designs: Number of a notebook → the ``cost`` of its metadata.
        found: Task → train and test queries in the data folder, for the tasks that it holds; empty
            where that is not known, and users are then as many as the profile takes.
        reviews: What the data folder holds where it has reviews of shared items, and no task.
    """

    profile: RunProfile
    users: int = 0
    draws: int = 0
    designs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    found: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    reviews: Reviews | None = None

    @property
    def embedded_world(self) -> bool:
        """Whether the users are synthetic."""
        return self.profile.data == "demo"

    @property
    def test(self) -> int:
        """Test users per task."""
        return self.part(self.profile.n_test)

    @property
    def models(self) -> list[Model]:
        """Backbones whose sizes are known."""
        return [MODELS[name] for name in self.profile.backbones if name in MODELS]

    def part(self, *limits: int) -> int:
        """The smallest of some numbers of users and of ``--users``."""
        return min(number for number in (*limits, self.users) if number)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks whose users are there, or all of the profile."""
        return tuple(self.found) or self.profile.tasks

    def there(self, task: str, design: Mapping[str, Any] = _NO_DESIGN) -> tuple[int, int]:
        """Train and test queries of a task, at most."""
        profile = self.profile
        limits = zip(
            (profile.n_train, profile.n_test),
            self.found.get(task, (0, 0)),
            design.get("demo" if profile.reduced else "most", (0, 0))[:2],
            strict=True,
        )
        train, test = (self.part(*limit) for limit in limits)
        return train, test

    def lengths(self, model: Model, task: str) -> Lengths:
        """Mean lengths of a task's texts under the vocabulary of a backbone."""
        known, run = LENGTHS[model.embedded], self.profile
        found = known.get(task, known["LaMP_2"])
        if model.embedded:
            return found
        item = ITEM.get(task, ITEM["LaMP_2"])
        history = run.items * (min(item, run.item_words * WORD) if run.item_words else item)
        insight = min(found.insight, run.insight_tokens)
        return found._replace(
            prompt=found.prompt + history,
            told=found.told + history,
            text=found.text + history,
            insight=insight,
            summary=min(found.summary, insight),
        )

    def memory(self, model: Model) -> dict[str, float]:
        """Kind of work → bytes on the device; the largest of the profile's tasks."""
        lengths = [self.lengths(model, task) for task in self.tasks]
        longest = max(one.prompt + one.answer for one in lengths)
        if self.reviews is not None:
            longest = self.reviews.prompt + self.reviews.review
        return device_bytes(self.profile, model, longest, self.part(self.profile.group_size))

    def filed(self, model: Model) -> float:
        """Bytes of a fit's prompt states, most of them on disk while it runs."""
        if model.embedded:  # their states fit into memory
            return 0.0
        longest = max(self.lengths(model, task).prompt for task in self.tasks)
        prompts = self.part(self.profile.group_size)
        return prompts * longest * model.state * number_bytes(self.profile)

    def hub_models(self, notebooks: Collection[str]) -> list[str]:
        """Ids of everything that these notebooks load from the hub."""
        names = [*self.profile.from_hub]
        if self.profile.offline:
            return names
        names.append(self.profile.embedder)
        more = (name for n in notebooks for name in self.designs.get(n, {}).get("models", ()))
        return list(dict.fromkeys([*names, *more]))


@dataclass(frozen=True)
class Cost:
    """A stage on one backbone: units, tokens and FLOPs; ``written`` one token after another.

    ``asked`` are the tokens that would be read if every arm and step read its prompts itself.
    """

    stage: str
    model: Model
    units: float
    read: float
    scored: float
    written: float
    learned: float
    flops: float
    asked: float


@dataclass(frozen=True)
class Speed:
    """Assumed throughput of a device, in FLOPs per second.

    Attributes:
        device: What it is.
        reading: Prompts, scores and trainings: many tokens at once.
        writing: Answers, one token after another.
    """

    device: str
    reading: float
    writing: float

    def hours(self, work: Collection[Cost]) -> float:
        """Time of some stages."""
        words = sum(2.0 * cost.model.weights.written * cost.written for cost in work)
        at_once = sum(cost.flops for cost in work) - words
        return (at_once / self.reading + words / self.writing) / 3600

    @classmethod
    def parse(cls, text: str) -> Speed:
        """From "100" or "100,10": TFLOP/s of reading and of writing, a tenth by default.

        Raises:
            UserError: Anything else.
        """
        try:
            rates = [float(word) for word in text.split(",")]
        except ValueError:
            rates = []
        if len(rates) not in (1, 2) or not all(0 < rate < float("inf") for rate in rates):
            raise UserError(
                f"--tflops takes TFLOP/s of reading, or of reading and writing such as 100,10, "
                f"not '{text}'."
            )
        writing = rates[1] if rates[1:] else rates[0] / 10
        return cls("your device", rates[0] * 1e12, writing * 1e12)


# The embedded models: the counted run itself. The others are assumptions: a third of what an A100
# can do in bfloat16, a tenth of that where every token waits for the one before (packed weights are
# unpacked for every product, which saves no time); a laptop's CPU at a few hundred GFLOP/s;
# two cores without 16-bit arithmetic, whose reading was measured (272 tokens of SmolLM2-135M a core
# and second).
_CORE = Speed("one CPU core", 1.9e10, 1.9e10)
_GPU = Speed("one GPU of the A100's class", 1e14, 1e13)
_LAPTOP = Speed("a laptop's CPU", 2e11, 5e10)
_TWO_CORES = Speed("two CPU cores", 1.3e11, 4e10)
SPEEDS = {"demo": _CORE, "demo-data": _CORE, "small": _TWO_CORES, "laptop": _LAPTOP}


def speed_of(profile: RunProfile) -> Speed:
    """What a profile is assumed to run on."""
    return SPEEDS.get(profile.base or profile.name, _GPU)


@lru_cache(maxsize=1)
def counted() -> tuple[dict[str, Any], ...]:
    """The rows of the counted run of the demo."""
    with COUNTS.open(encoding="utf-8") as stream:
        return tuple(
            {name: int(value) if value.isdigit() else value for name, value in row.items()}
            | {"notebooks": row["notebooks"]}
            for row in csv.DictReader(stream, delimiter="\t")
        )


def costs(
    scope: Scope, notebooks: Collection[str], stored: Collection[str] = ()
) -> list[Cost]:
    """What notebooks ask of every backbone.

    Args:
        scope: Size of the run.
        notebooks: Numbers of those that will run.
        stored: Numbers of those that are up to date: what they share is in the store.
    """
    if scope.reviews is not None:
        return _of_reviews(scope, scope.reviews)
    found, tasks = [], ("", *scope.tasks)
    for row in counted():
        users = {*row["notebooks"].split(",")}
        if not users & {*notebooks} or users & {*stored} or row["task"] not in tasks:
            continue
        if row["stage"] in ("aloe", "dpo") and not scope.profile.trains:
            continue
        design = scope.designs.get(row["notebooks"], {})  # of rows of one notebook alone
        more = () if scope.embedded_world else design.get("also", ())
        for model in _standing_for(row["backbone"], scope):
            found += [_scaled(row, task, design, scope, model) for task in (row["task"], *more)]
    return [cost for cost in found if cost.flops]


def _of_reviews(scope: Scope, reviews: Reviews) -> list[Cost]:
    """What notebook 11 asks of every model on a folder of reviews."""
    profile, found = scope.profile, []
    train, test = scope.part(profile.n_train), scope.part(profile.n_test)
    for model in scope.models if profile.base else ():
        for part in reviews.parts(train, test, scope.draws or SEEDS):
            forward, back = part.work.forward, part.work.backward
            scored = forward.written - part.written
            flops = float(part.work.flops(model.weights))
            found.append(
                Cost(OF_REVIEWS[part.stage], model, part.units, forward.read, scored, part.written,
                     back.total, flops, forward.read)
            )  # fmt: skip
    return found


def _standing_for(counted_as: str, scope: Scope) -> list[Model]:
    """The models of a run that do what a model of the demo did."""
    if scope.embedded_world:
        return [model for model in scope.models if model.id == counted_as]
    if counted_as not in PROFILES["demo"].studied:
        return []
    return [model for model in scope.models if model.encoder == MODELS[counted_as].encoder]


class _Growth(NamedTuple):
    """How many times the units, the tokens and the prompts of the counted run a row has."""

    units: float
    tokens: float
    prompts: float


def _factor(number: str | float) -> float:
    return float(Fraction(str(number)))


def _growth(row: Mapping[str, Any], scope: Scope, design: Mapping[str, Any], task: str) -> _Growth:
    stage, demo, profile = row["stage"], PROFILES["demo"], scope.profile
    if design.get("fixed"):
        return _Growth(1.0, 1.0, 1.0)
    files, reduced = not scope.embedded_world, profile.reduced and "reduced" in design
    train, test, group = sizes = design.get("demo", (demo.n_train, demo.n_test, demo.group_size))
    now_train, now_test = (
        scope.there(task, design) if files else (scope.part(train), scope.part(test))
    )
    now_group = min(profile.group_size, sizes[2]) if reduced or not files else profile.group_size
    if design.get("whole") and files and not reduced:
        now_group = now_train
    now_group = min(now_group, now_train)
    draws, before = scope.draws or profile.draws, demo.draws
    if row["backbone"] not in demo.studied:
        draws, before = min(profile.repeats, draws), demo.repeats
    factors = design.get("reduced" if reduced else "beyond", {}) if files else {}
    factor = _factor(factors.get(stage, 1))
    reads = _factor(factors.get(f"{stage} prompts", factor))
    if stage in ("insights", "query_insights"):
        more = factor * (now_train + now_test) / (train + test)
    elif stage == "summaries":
        more = factor * now_test / test
    elif stage == "pairs":  # on official files margins need the pairs of test users
        more = factor * (now_train + now_test * files) / train
    elif stage == "activations":
        more = factor * draws * now_group / (before * group * (_DIFFERENT if files else 1))
    else:  # a unit is a fit, a training or an arm
        more = factor * draws / before if stage in STAGES else 1.0
    if stage == "answers" and files:
        edited = 1 - _PLAIN_ARMS - (0 if profile.trains else _TRAINED_ARMS)
        more = factor * (_PLAIN_ARMS + edited * draws / before)
    each = {"aloe": now_group / group, "dpo": now_group / group, "answers": now_test / test}
    tokens = prompts = more * each.get(stage, 1)
    if stage == "fit":  # each prompt once, however many steps are taken
        prompts = reads * draws / before * now_group / group
    elif stage == "answers" and files:
        once = design.get("once", _ONCE)
        trained = 1 - once if "once" in design else _TRAINED  # mostly, where a design says so
        further = (1 - once - trained) * (draws - 1) / max(1, before - 1)
        grown = once + trained * profile.trains * draws / before + further
        prompts = reads * grown * now_test / test
    return _Growth(more, tokens, prompts)


def _scaled(
    row: Mapping[str, Any], task: str, design: Mapping[str, Any], scope: Scope, model: Model
) -> Cost:
    """A row of the counted run at another size, on another model."""
    stage, profile = row["stage"], scope.profile
    grown = _growth(row, scope, design, task)
    times = grown.tokens
    before, now = scope.lengths(MODELS[row["backbone"]], row["task"]), scope.lengths(model, task)
    answers = now.answer / before.answer
    longer, behind, said = _longer(stage, model, before, now)
    if not model.embedded:
        rows = _MOST_ROWS.get(profile.base or profile.name, _FIT_ROWS[False])
        times *= rows / _FIT_ROWS[True] if stage == "fit" else 1
        times /= _ALOE_PASSES[model.encoder] if stage == "aloe" else 1
    units = row["units"] * grown.units
    read = asked = row["read"] * longer * (times if stage == "aloe" else grown.prompts)
    scored, written = row["scored"] * times * behind, row["written"] * times * said
    if not model.embedded and not model.encoder and stage in _BEHIND:
        scored = 2 * units * (_BEHIND[stage] + (now.insight if stage == "pairs" else 0))
    back = Tokens(
        round(row["learned_read"] * times * longer), round(row["learned_scored"] * times * answers)
    )
    if stage == "answers" and not scope.embedded_world and not design.get("fixed"):
        # Arms that counted no reading of their own share that of a batch with so many others.
        asked = units * scope.there(task, design)[1] * now.prompt
        asked *= design.get("prompts", 1)
        read = max(read, asked / ARMS_AT_ONCE)
    elif stage == "fit":
        asked = scored / now.answer * now.prompt
        if not model.embedded:
            read, written = read + units * _CHECK["read"], written + units * _CHECK["written"]
    if stage in ("aloe", "dpo") and checkpoints(profile, model):
        read, scored = read + back.read, scored + back.written
    whole = stage == "aloe" and not adapts_aloe(profile, model)
    trained = model.weights.total if whole else model.adapter * (stage in ("aloe", "dpo"))
    work = Work(Tokens(round(read), round(scored + written)), back, trained, not whole)
    flops = float(work.flops(model.weights))
    title = STAGES.get(stage, OTHER)
    return Cost(title, model, units, read, scored, written, back.total, flops, max(asked, read))


def _longer(
    stage: str, model: Model, before: Lengths, now: Lengths
) -> tuple[float, float, float]:
    """How many times longer prompts, what is scored behind them, and what is written are."""
    longer, answers = now.prompt / before.prompt, now.answer / before.answer
    behind = said = answers
    if stage in ("insights", "query_insights"):
        longer, said = now.told / before.told, now.insight / before.insight
    elif stage in ("answers", "edit_size"):
        said = now.edited / before.edited
    elif stage == "pairs" and model.encoder:
        longer = (now.prompt + now.insight) / (before.prompt + before.insight)
    elif stage == "pairs" and not model.embedded:  # a decoder reads what both share once
        longer = (now.prompt - _BEHIND[stage]) / before.prompt
    elif stage == "activations" and model.encoder:
        longer = now.text / before.text
    elif stage == "activations":
        longer = (now.text + now.answer) / (before.text + before.answer)
    elif stage == "summaries":
        longer, said = now.text / before.text, now.summary / before.summary
    if not model.embedded and stage != "edit_size":  # which asks one by one
        longer *= PADDED
        behind *= PADDED if stage == "answers" else 1
    return longer, behind, said


def store_bytes(scope: Scope, work: Sequence[Cost]) -> float:
    """What the artifact store grows by."""
    total = 0.0
    for cost in work:
        model = cost.model
        if cost.stage == "activations":  # float32, both texts of a pair at every layer
            size: float = 8 * model.layers * model.width
        elif cost.stage == "ALOE" and not adapts_aloe(scope.profile, model):
            size = number_bytes(scope.profile) * model.weights.total
        elif cost.stage in ("ALOE", "DPO"):
            size = 4 * model.adapter
        else:
            size = _BYTES_PER_ANSWER * (scope.test if cost.stage == "answers" else 1)
        total += cost.units * size
    return total


def missing_bytes(
    scope: Scope, notebooks: Collection[str], present: Callable[[str], bool]
) -> float:
    """Bytes of models that are not in the hub's cache yet."""
    absent = [name for name in scope.hub_models(notebooks) if not present(name)]
    return float(sum(MODELS[name].download for name in absent if name in MODELS))


def data_bytes(scope: Scope) -> dict[str, float]:
    """Task → bytes of its LaMP files, train and dev, where a run reads them."""
    own = scope.embedded_world or scope.profile.offline or scope.reviews
    tasks = () if own else scope.profile.tasks
    return {task: DATA_BYTES[task] for task in tasks if task in DATA_BYTES}
