"""The dialogues mixed into ALOE: the stand-in, local copies, and how many are taken."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from chameleon_lib.baselines.mix import STANDIN, Dialogue, choose_mix, load_mix
from chameleon_lib.baselines.settings import AloeSettings
from chameleon_lib.errors import UserError

ROW = {
    "id": "a",
    "conversations": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ],
}


def codeact(path: Path) -> AloeSettings:
    return AloeSettings(mix="codeact", mix_path=str(path))


def test_the_stand_in_is_forty_short_dialogues_that_end_in_an_answer() -> None:
    found = load_mix(AloeSettings(mix="standin"))
    assert len(found) == 40 and len({dialogue.id for dialogue in found}) == 40
    assert len({dialogue.turns for dialogue in found}) == 40
    assert sum(len(dialogue.turns) > 2 for dialogue in found) > 30  # multi-turn
    for dialogue in found:
        roles = [role for role, _ in dialogue.turns]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(text == text.strip() != "" for _, text in dialogue.turns)
    assert load_mix(AloeSettings(mix="none")) == []


def test_the_stand_in_is_shipped_with_the_package() -> None:
    shipped = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"**/*{STANDIN.suffix}"' in shipped


def test_a_local_copy_is_read_from_json_lines_and_parquet(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.json", "a.jsonl", "a.parquet")]
    files[0].write_text(json.dumps([ROW]))
    files[1].write_text(json.dumps(ROW) + "\n\n")
    pd.DataFrame([ROW]).to_parquet(files[2])
    turns = (("system", "Be short."), ("user", "Hi"), ("assistant", "Hello"))
    for path in files:
        assert load_mix(codeact(path)) == [Dialogue("a", turns)]  # cut after the last answer


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("{}", "must hold a list"),
        ('[{"id": "a"}]', "Record 0 of .* needs an id and conversations"),
        ('[{"id": "a", "conversations": [{"role": "bot", "content": ""}]}]', "has role 'bot'"),
        ('[{"id": "a", "conversations": [{"role": "user", "content": "x"}]}]', "no conversation"),
    ],
)
def test_a_file_that_is_no_mix_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mix.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_mix(codeact(path))
    with pytest.raises(UserError, match="no file"):
        load_mix(codeact(tmp_path / "absent.json"))


def test_a_fraction_or_a_count_of_dialogues_is_drawn_by_the_seed() -> None:
    settings = AloeSettings(mix="standin", share=0.25)
    everything = load_mix(settings)
    drawn = choose_mix(everything, settings, 7, 0)
    assert len(drawn) == 10 and len({dialogue.id for dialogue in drawn}) == 10
    assert choose_mix(everything, settings, 7, 0) == drawn
    assert choose_mix(everything, settings, 7, 1) != drawn
    count = settings.with_(mix_ratio="count")
    assert len(choose_mix(everything, count, 7, 0)) == 7
    assert choose_mix(everything, count, 400, 0) == everything
    assert choose_mix([], settings, 7, 0) == []
