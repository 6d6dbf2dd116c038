"""Whatever is wrong with an input: one sentence that says where, an exit status, no file left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from chameleon_lib import cli
from chameleon_lib.kit import driver, needs, paths, plan
from chameleon_lib.kit.needs import Device, Machine
from chameleon_lib.kit.sources import own_sources
from tests.kit.bad_inputs import (
    Make,
    checkpoint,
    config,
    cut,
    data,
    fresh_outputs,
    gold,
    item,
    lost_instructions,
    news,
    none,
    nothing,
    outputs,
    question,
    raw,
    sample,
    shared_users,
    train_without_golds,
    twice,
    weights,
    without_end,
    write_split,
)
from workshop import acceptance, run_script, train, write_world

_PROGRESS = ("Checking ", "Loading weights")  # long work says what it does


class Case(NamedTuple):
    """An input: what it is, how to make it, what is called, and words of the sentence."""

    id: str
    make: Make
    argv: str
    words: str


RUN = "run --data {base}/data"
TABLE = "verify --against {base}/committed --fresh {base}/fresh"
# Scripts that make the embedded models, named as commands are.
SCRIPTS = {"acceptance": acceptance.main, "train": train.main, "world": write_world.main}
CHECK = "acceptance --tasks LaMP_2 --folder {base}/model"


def _set(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: none(record.__setitem__(key, value))


def _drop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda record: none(record.pop(key))


FILES = [
    Case("folder-missing", nothing, "run --data {base}/nowhere", "no data folder"),
    Case("folder-is-file", lambda b: none((b / "data").write_text("x")), RUN, "no data folder"),
    Case("folder-empty", lambda b: (b / "data").mkdir(), RUN, "holds a dev split of none of"),
    Case("html", raw(b"<!doctype html><html>"), RUN, "dev_questions.json holds an HTML page"),
    Case("empty", raw(b""), RUN, "dev_questions.json is empty"),
    Case("blank", raw(b" \n\t "), RUN, "dev_questions.json is empty"),
    Case("no-list", raw(b'{"id": "1"}'), RUN, "is not a JSON list of samples"),
    Case("numbers", raw(b"[1, 2]"), RUN, "no object at record number 0"),
    Case("empty-list", raw(b"[]"), RUN, "is an empty list"),
    Case("latin-1", raw("[{\"id\": \"é\"}]".encode("latin-1")), RUN, "is not UTF-8 text"),
    Case("utf-16", raw("[{}]".encode("utf-16")), RUN, "is not UTF-8 text"),
    Case("cut-in-record", cut(lambda t: t[: t.index("22 1")]), RUN, "cut off inside record"),
    Case("cut-after-record", cut(lambda t: t[: t.index("}]}") + 3]), RUN, "cut off inside record"),
    Case("no-comma", cut(lambda t: t.replace("}, {\"id\": \"22\"", "} {\"id\": \"22\"")), RUN,
         "lacks a comma after record number 0"),
    Case("bad-json", cut(lambda t: t.replace("\"input\"", "input", 1)), RUN,
         "record number 0 is not valid JSON"),
    Case("text-after", cut(lambda t: t + " more"), RUN, "holds text after its JSON list"),
    Case("id-missing", question(_drop("id")), RUN, "record number 1 has no 'id'"),
    Case("id-list", question(_set("id", [22])), RUN, "'id' = [22]"),
    Case("id-twice", question(_set("id", "21")), RUN, "holds record '21' twice"),
    Case("input-missing", question(_drop("input")), RUN, "record '22' has no 'input'"),
    Case("input-null", question(_set("input", None)), RUN, "record '22' has 'input' = None"),
    Case("input-of-another-task", question(_set("input", sample("LaMP_7", 1)["input"])), RUN,
         "record '22' does not start with the LaMP_3 instruction"),
    Case("input-no-marker", question(_set("input", "What is the score of it")), RUN,
         "has no 'review:' in its input"),
    Case("profile-missing", question(_drop("profile")), RUN, "record '22' has no profile list"),
    Case("profile-text", question(_set("profile", "none")), RUN, "record '22' has no profile list"),
    Case("profile-empty", question(_set("profile", [])), RUN, "record '22' has an empty profile"),
    Case("item-no-object", question(_set("profile", ["x"])), RUN, "profile item that is no object"),
    Case("item-id-missing", item(_drop("id")), RUN, "record '22', a profile item has no 'id'"),
    Case("item-id-twice", item(_set("id", "221")), RUN, "two profile items with one id"),
    Case("item-text-missing", item(_drop("text")), RUN, "profile item '220' has no 'text'"),
    Case("item-text-list", item(_set("text", ["a"])), RUN, "profile item '220' has 'text' = ['a']"),
    Case("score-missing", item(_drop("score")), RUN, "profile item '220' has no 'score'"),
    Case("score-list", item(_set("score", [4])), RUN, "'score' = [4]"),
    Case("score-six", item(_set("score", "6")), RUN, "score '6', which is none of: 1, 2, 3, 4, 5"),
    Case("tag-unknown", item(_set("tag", "western"), "LaMP_2"), RUN, "'western', which is none"),
    Case("old-news", data(news, "LaMP_2"), RUN, "belongs to the old news task"),
    Case("lost-instructions", data(lost_instructions, "LaMP_2"), RUN, "both lack the instruction"),
    Case("two-files", data(twice), RUN, "holds several LaMP_3 dev files"),
    Case("outputs-missing", data(lambda f: (f / "dev_outputs.json").unlink()), RUN,
         "has no outputs file beside it"),
    Case("outputs-html", raw(b"<html>", "dev_outputs.json"), RUN, "dev_outputs.json holds an HTML"),
    Case("outputs-cut", cut(lambda t: t[:-9], "dev_outputs.json"), RUN, "is cut off or not valid"),
    Case("outputs-latin-1", raw(b'{"task": "\xe9"}', "dev_outputs.json"), RUN, "is not UTF-8 text"),
    Case("outputs-list", raw(b"[]", "dev_outputs.json"), RUN, "has no list of golds"),
    Case("outputs-other-task", outputs(_set("task", "LaMP_2")), RUN, "says task 'LaMP_2'"),
    Case("golds-object", outputs(_set("golds", {})), RUN, "has no list of golds"),
    Case("gold-no-object", outputs(lambda c: c["golds"].append(3)), RUN, "gold number 4 is no obj"),
    Case("gold-id-missing", outputs(lambda c: c["golds"][0].pop("id")), RUN, "number 0 has no"),
    Case("gold-twice", outputs(lambda c: c["golds"].append(gold("LaMP_3", 21))), RUN,
         "holds gold '21' twice"),
    Case("gold-list", outputs(lambda c: c["golds"][0].update(output=[4])), RUN, "'output' = [4]"),
    Case("gold-off-list", outputs(lambda c: c["golds"][0].update(output="4.5")), RUN,
         "gold '21' is '4.5', which is no label of LaMP_3"),
    Case("gold-too-few", outputs(lambda c: c["golds"].pop()), RUN, "belong to different samples"),
    Case("gold-too-many", outputs(lambda c: c["golds"].append(gold("LaMP_3", 99))), RUN,
         "belong to different samples"),
    Case("train-without-golds", data(train_without_golds), RUN, "has no outputs file beside it"),
    Case("train-users-in-dev", data(shared_users), RUN, "is also user '21' of the evaluation"),
]  # fmt: skip

OPTIONS = [
    Case("unknown-option", nothing, "run --fast", "No such option: --fast"),
    Case("users-zero", nothing, "run --users 0", "Invalid value for '--users'"),
    Case("users-words", nothing, "run --users many", "Invalid value for '--users'"),
    Case("seeds-negative", nothing, "run --seeds=-1", "Invalid value for '--seeds'"),
    Case("jobs-half", nothing, "run --jobs 1.5", "Invalid value for '--jobs'"),
    Case("only-unknown", nothing, "run --only 42", "42"),
    Case("only-nothing", nothing, "run --only ,", "--only takes notebook numbers"),
    Case("set-no-value", nothing, "plan --set seeds", "--set takes NAME=VALUE, not 'seeds'"),
    Case("set-unknown", nothing, "plan --set speed=1", "Unknown parameter 'speed'"),
    Case("set-type", nothing, "run --only 08 --set queries=some", "Parameter 'queries' of 08_your"),
    Case("tflops-words", nothing, "plan --tflops fast", "--tflops takes TFLOP/s"),
    Case("world-no-task", nothing, "world --out {base}/o", "arguments are required: --task"),
    Case("world-task", nothing, "world --task LaMP_9 --out {base}/o", "Unknown task 'LaMP_9'"),
    Case("world-users", nothing, "world --task LaMP_2 --out {base}/o --users 3 0 1",
         "at least 1 user"),
    Case("world-history", nothing, "world --task LaMP_2 --out {base}/o --history 5 3",
         "history lengths are out of range"),
    Case("world-strength", nothing, "world --task LaMP_2 --out {base}/o --strength 2", "strength"),
    Case("world-nan", nothing, "world --task LaMP_2 --out {base}/o --noise nan", "noise"),
    Case("world-out", lambda b: none((b / "o").write_text("x")),
         "world --task LaMP_2 --out {base}/o --users 2 2 2", "cannot be written"),
    Case("acceptance-model", nothing, "acceptance decoder", "'decoder' is no embedded model"),
    Case("acceptance-seed", nothing, "acceptance decoder:77", "decoder-77 is not here"),
    Case("acceptance-task", nothing, "acceptance --tasks LaMP_2,x", "Unknown task 'x'"),
    Case("train-family", nothing, "train --family mamba", "Argument --family: invalid choice"),
    Case("train-steps", nothing, "train --family decoder --steps 0 --out {base}/o", "'0' is not"),
    Case("train-seed", nothing, "train --family decoder --seed=-4 --out {base}/o", "--seed is -4"),
    Case("train-out", lambda b: none((b / "o").write_text("x")),
         "train --family decoder --out {base}/o", "is a file; name a folder"),
    Case("train-state", lambda b: none((b / "o").mkdir(),)
         or none((b / "o" / "resume.pt").write_bytes(b"PK\x03\x04 damaged")),
         "train --family decoder --out {base}/o", "resume.pt cannot be read"),
    Case("verify-option", nothing, "verify --fast", "No such option: --fast"),
    Case("verify-profile", nothing, "verify --profile ../x", "is not the name of a run profile"),
    Case("verify-nothing", nothing, "verify --against {base}/none", "holds no tables to compare"),
    Case("verify-not-run", fresh_outputs("a\n"), TABLE + "er", "holds no tables of a fresh run"),
    Case("verify-binary", fresh_outputs("\xff\xfe"), TABLE, "t.csv"),
    Case("verify-empty", fresh_outputs(""), TABLE, "t.csv"),
    Case("no-network", data(none), "run --profile laptop --data {base}/data", "cannot be reached"),
]  # fmt: skip

CHECKPOINTS = [
    Case("model-missing", nothing, CHECK, "There is no folder"),
    Case("config-missing", checkpoint(lambda f: (f / "config.json").unlink()), CHECK,
         "cannot be loaded"),
    Case("config-broken", checkpoint(lambda f: none((f / "config.json").write_text("{"))), CHECK,
         "cannot be loaded"),
    Case("config-empty", checkpoint(lambda f: none((f / "config.json").write_text("{}"))), CHECK,
         "cannot be loaded"),
    Case("family-unknown", config(model_type="warp_drive"), CHECK, "warp_drive"),
    Case("family-no-sites", config(model_type="bloom", architectures=["BloomForCausalLM"]), CHECK,
         "bloom"),
    Case("weights-missing", checkpoint(lambda f: (f / "model.safetensors").unlink()), CHECK,
         "cannot be loaded"),
    Case("weights-cut", checkpoint(lambda f: none((f / "model.safetensors").write_bytes(
        (f / "model.safetensors").read_bytes()[:-1000]))), CHECK, "cannot be loaded"),
    Case("weights-text", checkpoint(lambda f: none((f / "model.safetensors").write_text("<html>"))),
         CHECK, "cannot be loaded"),
    Case("tensor-missing", weights(lambda t: none(t.pop("model.layers.1.mlp.down_proj.weight"))),
         CHECK, "lacks 1 of its tensors (model.layers.1.mlp.down_proj.weight)"),
    Case("tensor-shape", weights(_set("model.norm.weight", torch.ones(7))), CHECK, "model.norm"),
    Case("tensor-nan", weights(lambda t: none(t["model.norm.weight"].fill_(float("nan")))), CHECK,
         "values in model.norm.weight that are no finite numbers"),
    Case("tensor-infinite", weights(lambda t: none(t["lm_head.weight"].fill_(float("inf")))), CHECK,
         "values in lm_head.weight that are no finite numbers"),
    Case("layers-too-many", config(num_hidden_layers=4), CHECK, "of its tensors"),
    Case("vocabulary-larger", checkpoint(lambda f: _longer_tokenizer(f)), CHECK,
         "its model"),
    Case("tokenizer-missing", checkpoint(lambda f: [p.unlink() for p in f.glob("token*")]
                                         and none(0)), CHECK, "cannot be loaded"),
    Case("tokenizer-broken", checkpoint(lambda f: none((f / "tokenizer.json").write_text("{}"))),
         CHECK, "cannot be loaded"),
    Case("no-end-token", checkpoint(without_end), CHECK, "no end-of-sequence token"),
]  # fmt: skip


def _longer_tokenizer(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<new-{number}>" for number in range(5)])
    tokenizer.save_pretrained(folder)


CASES = [*FILES, *OPTIONS, *CHECKPOINTS]


def test_there_are_enough_of_them_and_no_name_twice() -> None:
    assert len(CASES) >= 60 and len({case.id for case in CASES}) == len(CASES)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, on a machine without GPU and network."""
    monkeypatch.setenv("CHAMELEON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    bare = Machine(device=lambda: Device(why="torch finds no CUDA device"), reachable=lambda: False)
    monkeypatch.setattr(needs, "Machine", lambda: bare)

    def started(*_: object) -> int:
        raise AssertionError("the work was started")

    for module, name in ((driver, "_execute"), (acceptance, "measure"), (train, "weighted_loss")):
        monkeypatch.setattr(module, name, started)
    monkeypatch.setattr(acceptance, "load_embedder", lambda **_: None)
    monkeypatch.setattr(plan, "SourceTree", own_sources)  # read once for all cases
    return tmp_path


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_one_sentence_an_exit_status_and_no_file(
    case: Case, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case.make(base)
    before, own = files_of(base), files_of(paths.package_dir() / "demo")
    capsys.readouterr()
    command, *words = (word.format(base=base) for word in case.argv.split())
    script = SCRIPTS.get(command)
    status = cli.main([command, *words]) if script is None else run_script(lambda: script(words))
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line]
    sentences = [line for line in lines if not line.startswith(_PROGRESS)]
    assert status != 0
    assert said.out == "" and len(sentences) == 1, said
    assert case.words in sentences[0] and sentences[0].endswith("."), sentences[0]
    assert "Traceback" not in said.err and "Error(" not in said.err
    assert files_of(base) == before
    assert files_of(paths.package_dir() / "demo") == own


@pytest.mark.parametrize("name", ["cut-in-record", "only-unknown", "set-no-value"])
def test_the_command_line_itself_says_it_too(name: str, base: Path) -> None:
    case = next(case for case in CASES if case.id == name)
    case.make(base)
    words = [word.format(base=base) for word in case.argv.split()]
    done = subprocess.run(
        [sys.executable, "-m", "chameleon_lib", *words],
        cwd=paths.root(), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and case.words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_a_valid_folder_is_not_refused(base: Path) -> None:
    write_split(base / "data", numbers=range(21, 61))
    with pytest.raises(AssertionError, match="the work was started"):
        cli.main(["run", "--only", "01", "--data", str(base / "data")])
