from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_group

from chameleon_lib import cli
from chameleon_lib.errors import UserError
from chameleon_lib.kit import driver, plan
from chameleon_lib.kit.command_line import overrides
from chameleon_lib.kit.notebooks import discover, read_notebook
from chameleon_lib.kit.paths import outputs_dir, root
from chameleon_lib.kit.profiles import PROFILES, for_data, get_profile
from chameleon_lib.kit.sources import own_sources
from chameleon_lib.studies import own_users
from chameleon_lib.studies.methods import title_of
from chameleon_lib.studies.study import settings_for
from tests.kit.checkout import PARAMETERS, TABLE, Checkout, notebook

COMMANDS = (
    "run", "list", "plan", "lab", "models", "data", "fit", "answer", "token", "serve", "audit",
    "export", "profiles", "verify", "page",
)  # fmt: skip


def test_help_shows_all_commands_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS) and "1 a notebook failed" in shown
    assert sorted(get_group(cli.app).commands) == sorted(COMMANDS)


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'?"),
        (["run", "--profile", "huge"], "Invalid value for '--profile': 'huge' is not one of"),
        (["run", "--seeds", "0"], "Invalid value for '--seeds': "),
        (["run", "--jobs"], "Option '--jobs' requires an argument"),
        (["run", "--prof", "demo"], "No such option: --prof"),
        (["run", "--data", "no/such/folder"], "There is no data folder no/such/folder."),
        (["plan", "--set", "seeds"], "--set takes NAME=VALUE"),
        (["run", "--set", "profile=paper"], "--set does not take profile: use --profile.\n"),
        (["run", "--set", "data_dir=/tmp"], "--set does not take data_dir: use --data.\n"),
        (["plan", "--set", "users=5"], "--set does not take users: use --users.\n"),
        (["plan", "--set", "seeds=0"], "--set does not take seeds: use --seeds.\n"),
        (["run", "--only", "08", "--set", "table=no/such.csv"], "There is no table no/such.csv.\n"),
    ],
)
def test_misuse_is_answered_with_one_sentence_and_exit_code_2(
    words: list[str], start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert captured.err.startswith(start)


def test_no_command_shows_the_help_and_is_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "exit codes: 0 ok, 1 a notebook failed, 2 usage" in capsys.readouterr().out


def test_list_and_plan_answer_with_the_standard_library_alone(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    parameters = f'{PARAMETERS}\nuser: str = ""'
    notebook(checkout.notebooks, "01_table", [TABLE], parameters=parameters)
    for words, code, expected in (
        (["list"], 0, "seeds: int = 2"),
        (["plan", "--set", "user=12345"], 0, "never run here"),
        (["plan", "--set", "sedes=3"], 2, "Unknown parameter 'sedes'"),
    ):
        start = (
            f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
            f"import runpy; sys.argv = ['x', *{words!r}]\n"
            "runpy.run_module('chameleon_lib', run_name='__main__')"
        )
        result = subprocess.run(
            [sys.executable, "-I", "-S", "-c", start], capture_output=True, text=True, check=False
        )
        assert result.returncode == code and expected in result.stdout + result.stderr


@pytest.mark.parametrize("installed", [[], ["-S"]], ids=["typer", "no typer"])
def test_a_reader_who_stops_reading_sees_no_traceback(installed: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, *installed, "-m", "chameleon_lib", "list"],
        cwd=root(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 1


@pytest.mark.parametrize(
    ("declared", "typed", "value"),
    [
        ('x: str = ""', "12345", "12345"),
        ('x: str = ""', "1,5,10", "1,5,10"),
        ("x: int = 1", "12345", 12345),
        ("x: list[int] = []", "[1, 5]", [1, 5]),
        ("x = 0.5", "2", 2),
        ("x: int = 1", "many", "many"),
    ],
)
def test_text_is_taken_as_typed_where_text_is_wanted(
    tmp_path: Path, declared: str, typed: str, value: object
) -> None:
    path = notebook(tmp_path, "01_table", [], parameters=declared)
    assert read_notebook(path).parameters()["x"].read(typed) == value


def test_a_path_is_meant_as_seen_from_where_the_reader_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").touch()
    found = overrides(".", None, 3, ["table=mine.csv", "user=7"])
    here = {"data_dir": str(tmp_path), "table": str(tmp_path / "mine.csv")}
    assert found == {"seeds": 3, "user": "7", **here}


def test_the_next_command_can_be_pasted_whatever_the_folder_is_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, to = tmp_path / "t.csv", tmp_path / "a folder; with blanks"
    rows = "".join(f"{user},text {at},comedy\n" for user in "uv" for at in range(5))
    table.write_text(f"user,text,label\n{rows}", "utf-8")
    words = ["data", "import", str(table), "--task", "LaMP_2", "--to", str(to), "--min-items", "1"]
    assert cli.main(words) == 0, capsys.readouterr().err
    assert shlex.split(capsys.readouterr().out.splitlines()[-1])[-1] == str(to)


def test_the_package_and_an_up_to_date_run_load_neither_torch_nor_jupyter(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    notebook(checkout.notebooks, "01_table", [TABLE])
    assert checkout.call("run").returncode == 0
    code = (
        "import sys; from chameleon_lib.cli import main; status = main(['run'])\n"
        "heavy = {'torch', 'transformers', 'papermill', 'nbformat', 'pandas'} & set(sys.modules)\n"
        "sys.exit(status or (str(heavy) if heavy else 0))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "1/1 up to date" in result.stderr


def test_the_package_exports_lazily_and_knows_no_other_name() -> None:
    import chameleon_lib

    assert all(hasattr(chameleon_lib, name) for name in chameleon_lib.__all__)
    assert not hasattr(chameleon_lib, "chameleon")


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_a_profile_is_consistent_and_offline_unless_it_needs_the_hub(name: str) -> None:
    profile = get_profile(name)
    assert profile.name == name and profile.tasks == ("LaMP_2", "LaMP_3", "LaMP_7")
    assert profile.offline == (name in ("demo", "demo-data", "small"))
    assert (profile.from_hub == ()) == profile.offline
    assert set(profile.studied) <= set(profile.backbones)
    # A test of the chain shows nothing, so one group is enough for it; a CPU takes no more of real
    # models, and where the paper's claims are asked the plan says that no spread is known.
    assert profile.draws >= (3 if name == "demo" or name.startswith("paper") else 1)
    assert profile.draws >= 3 or not name.startswith("laptop") or "no spread" in profile.cut[0]
    assert profile.group_size <= profile.n_train


def test_four_bits_are_a_profile_of_their_own_and_not_the_demos(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("laptop", "paper"):
        small, whole = get_profile(for_data(name, True, "4bit")), get_profile(name)
        assert (small.name, small.quantization) == (f"{name}-4bit", "nf4")
        assert small.aloe_params == "lora"
        assert small.needs_gpu and small.banner != whole.banner
        assert outputs_dir(small.name) != outputs_dir(name)
        assert (small.backbones, small.n_test) == (whole.backbones, whole.n_test)
    for command in ("run", "plan"):
        assert cli.main([command, "--quantize", "4bit"]) == 2
        assert "belongs to --profile laptop or paper" in capsys.readouterr().err
        assert cli.main([command, "--profile", "paper", "--quantize", "8bit"]) == 2
    assert cli.main(["plan", "--profile", "paper", "--quantize", "4bit", "--only", "01"]) == 0
    shown = capsys.readouterr().out
    assert "GPU memory, bfloat16, weights in nf4 (4 bits), at most:" in shown
    assert "Profile paper-4bit " in shown


def test_a_data_folder_reaches_the_run_as_a_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, object]]] = []

    def run_notebooks(profile: str, _: object, overrides: dict[str, object], **__: object) -> int:
        asked.append((profile, overrides))
        return 0

    monkeypatch.setattr(driver, "run_notebooks", run_notebooks)
    assert cli.main(["run"]) == 0 and cli.main(["run", "--data", str(tmp_path)]) == 0
    assert asked == [("demo", {}), ("demo-data", {"data_dir": str(tmp_path)})]


def a_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    return folder


def test_other_models_make_a_profile_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_model(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    found = get_profile("demo", ["mine", "Qwen/Qwen2.5-0.5B", "smollm2", "./mine"])
    mine = str(tmp_path / "mine")
    assert found.backbones == found.studied == (mine, "Qwen/Qwen2.5-0.5B", "smollm2")
    assert [title_of(model) for model in found.backbones] == [
        "mine", "Qwen2.5-0.5B", "SmolLM2-135M-Instruct",
    ]  # fmt: skip
    assert found.from_hub == ("Qwen/Qwen2.5-0.5B",)
    # Nothing of it lands in the demo's folder, and another folder's "mine" is another run.
    assert outputs_dir(found.name) != outputs_dir("demo") and found.base == "demo"
    a_model(tmp_path / "other" / "mine")
    assert get_profile("demo", ["other/mine"]).name != get_profile("demo", ["mine"]).name
    assert get_profile(found.name).banner == found.banner != get_profile("demo").banner
    assert "SmolLM2-135M-Instruct" in found.banner
    # The sizes are the base profile's.
    assert settings_for(found) == settings_for(get_profile("demo"))
    assert get_profile("demo", []) is get_profile("demo")
    # Of a large model there is room for one, which then has all the cores.
    assert (found.workers, found.threads) == (1, 2)
    embedded = get_profile("demo", ["demo:decoder:0"])
    assert (embedded.workers, embedded.threads) == (2, 1)


@pytest.mark.parametrize("model", ["none.gguf", "./none", "/no/such/folder", "a/b/c", " "])
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_model_that_is_not_there_is_one_sentence(
    command: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "--only", "01", "--backbone", model]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "There is no model" in said


def test_an_answer_names_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["answer", "--task", "LaMP_2", "--csv", str(own_users.TABLE), "--backbone", "no.gguf"]
    assert cli.main(words) == 2
    assert "There is no model no.gguf" in capsys.readouterr().err


def test_two_models_of_one_title_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [str(a_model(tmp_path / name / "model")) for name in "ab"]
    words = [word for model in models for word in ("--backbone", model)]
    assert cli.main(["plan", "--only", "01", *words]) == 2
    assert "both be called model" in capsys.readouterr().err


def test_models_reach_every_notebook_and_their_files_are_watched(tmp_path: Path) -> None:
    mine = a_model(tmp_path / "mine")
    run = plan.Run("demo", {"backbones": [str(mine)]}, library=own_sources())
    assert {"00", "01", "08", "09", "99"} <= {notebook.number for notebook in run.selected}
    assert all(values["backbones"] == [str(mine)] for values in run.values.values())
    assert {values["profile"] for values in run.values.values()} == {"demo"}
    before = run.step(run.selected[1]).inputs
    (mine / "config.json").write_text('{"model_type": "mistral"}', encoding="utf-8")
    assert run.step(run.selected[1]).inputs != before


def test_a_notebook_without_models_is_left_out_or_refused(tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    with_models = 'profile: str = "demo"  # run\nbackbones: list[str] = []  # models'
    notebook(folder, "01_a", [], parameters=with_models)
    notebook(folder, "02_b", [], parameters='profile: str = "demo"  # run')
    asked = {"backbones": ["smollm2"]}
    run = plan.Run("demo", asked, folder=folder, library=own_sources())
    assert [found.number for found in run.selected] == ["01"]
    assert run.left_out == ["Left out, for it takes no --backbone: 02_b"]
    with pytest.raises(UserError, match="Notebook 02 takes no --backbone"):
        plan.Run("demo", asked, ["02"], folder=folder, library=own_sources())


def test_the_plan_names_models_and_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHAMELEON_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ["plan", "--only", "01", "--backbone", "smollm2", "--backbone", "me/mine"]
    assert cli.main(words) == 0 and plan.main(words) == 0
    for shown in capsys.readouterr().out.split("01  run")[1:]:
        assert "models get smollm2" in shown and "has to download me/mine" in shown
        assert "me/mine: size unknown" in shown


def test_the_profile_of_a_run_is_that_of_its_notebooks_whatever_the_overrides_say() -> None:
    run = plan.Run("demo", {"profile": "paper"}, ["01"], library=own_sources())
    assert run.values["01_per_user"]["profile"] == "demo"


def test_an_unknown_profile_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UserError, match="'smoke': choose one of demo, small, laptop, paper"):
        get_profile("smoke")
    with pytest.raises(UserError):
        outputs_dir("../elsewhere")


def test_two_notebooks_of_one_number_are_refused(tmp_path: Path) -> None:
    notebook(tmp_path, "01_a", [])
    notebook(tmp_path, "01_b", [])
    with pytest.raises(UserError, match="Two notebooks carry the number 01"):
        discover(tmp_path)
