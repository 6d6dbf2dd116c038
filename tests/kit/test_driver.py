from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import papermill
import pytest
from nbclient.exceptions import DeadKernelError

from chameleon_lib.kit import engine
from chameleon_lib.kit.notebooks import read_notebook
from tests.kit.checkout import PARAMETERS, TABLE, Checkout, environment, notebook

# Fails the run if the kernel sees the reader's settings or works inside the source tree.
ISOLATED = """import os
from pathlib import Path
from chameleon_lib.kit.paths import cache_dir, notebooks_dir, root
from IPython.paths import get_ipython_dir
assert Path(get_ipython_dir()).is_relative_to(cache_dir())
assert Path(os.environ["JUPYTER_CONFIG_DIR"]).is_relative_to(cache_dir())
assert Path.cwd().is_relative_to(cache_dir())
assert os.environ["HF_HUB_OFFLINE"] == os.environ["TRANSFORMERS_OFFLINE"] == "1"
assert os.environ["PYTHONHASHSEED"] == "0" and os.environ["OMP_NUM_THREADS"]
print(sorted({"b", "a", "c"}, key=hash))"""
UPSTREAM = """from chameleon_lib.kit.paths import tables_dir
print((tables_dir(profile) / "size.csv").read_text())"""


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    base = tmp_path / "a {folder} with blanks"
    base.mkdir()
    return Checkout(base)


def ran(result: subprocess.CompletedProcess[str]) -> list[str]:
    """Numbers of the notebooks that were executed."""
    return [line[1:3] for line in result.stderr.splitlines() if "] done in " in line]


def test_a_run_is_repeated_byte_for_byte_then_skipped_then_follows_what_changed(
    checkout: Checkout,
) -> None:
    notebook(checkout.notebooks, "01_table", [TABLE, ISOLATED], skipped="1 / 0")
    notebook(checkout.notebooks, "02_other", ["print('no library here')"])
    notebook(checkout.notebooks, "99_report", [UPSTREAM])

    first = checkout.call("run")
    assert first.returncode == 0, first.stderr
    read, compared = first.stdout.splitlines()[-2:]
    assert read == "Read: outputs/demo/index.html"
    assert compared == "No committed run of profile demo to compare with."
    assert ran(first) == ["01", "02", "99"] and "3/3 up to date" in first.stderr
    files = checkout.files()
    assert str(checkout.base) not in str(files)
    timings = json.loads((checkout.outputs / "measured" / "timings.json").read_text())
    assert set(timings["seconds"]) == {"01_table", "02_other", "99_report"}
    tracked = {"chameleon_lib", "notebooks", "environment.yml", "outputs", ".chameleon"}
    assert {path.name for path in checkout.base.iterdir()} == tracked

    again = checkout.call("run", "--force", "--jobs", "2")
    assert again.returncode == 0 and sorted(ran(again)) == ["01", "02", "99"]
    assert checkout.files() == files

    start = time.monotonic()
    skipped = checkout.call("run")
    assert (ran(skipped), skipped.returncode) == ([], 0)
    assert skipped.stdout == first.stdout and time.monotonic() - start < 10
    assert "cached" in checkout.call("plan").stdout

    # a comment is prose, a constant is not
    checkout.constants.write_text('"""Words."""\nSIZE = 21  # why\n', encoding="utf-8")
    assert ran(checkout.call("run")) == []
    checkout.constants.write_text("SIZE = 4\n", encoding="utf-8")
    plan = checkout.call("plan").stdout
    assert "01  run" in plan and "library changed: chameleon_lib/constants.py" in plan
    assert "02  cached" in plan and "reads what 01 will write" in plan
    assert ran(checkout.call("run")) == ["01", "99"]
    assert b"4,2" in checkout.files()["tables/size.csv"]

    (checkout.outputs / "tables" / "size.csv").unlink()
    assert "output missing: tables/size.csv" in checkout.call("plan", "--only", "01").stdout


def test_the_page_is_there_after_the_first_notebook_and_grows(checkout: Checkout) -> None:
    look = """from chameleon_lib.kit.paths import outputs_dir
page = (outputs_dir("demo") / "index.html").read_text(encoding="utf-8")
assert "1 of 2 notebooks are still to come (02_look)" in page"""
    notebook(checkout.notebooks, "01_table", [TABLE])
    notebook(checkout.notebooks, "02_look", [look])
    done = checkout.call("run", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert "it grows: outputs/demo/index.html" in done.stderr
    page = (checkout.outputs / "index.html").read_text(encoding="utf-8")
    assert not page.startswith("This run is under way")


def test_the_next_notebook_starts_beside_one_whose_workers_are_done(checkout: Checkout) -> None:
    wait = """import time
from chameleon_lib.kit.paths import tables_dir
from chameleon_lib.kit.progress import mark_light
{mark}
for _ in range(600):
    if (tables_dir(profile) / "size.csv").exists():
        break
    time.sleep(0.1)
else:
    raise RuntimeError("The other notebook never came.")"""
    notebook(checkout.notebooks, "01_wait", [wait.format(mark="mark_light(True)")])
    notebook(checkout.notebooks, "02_table", [TABLE])
    notebook(checkout.notebooks, "03_last", ["print(1)"])
    result = checkout.call("run")
    assert result.returncode == 0, result.stderr
    assert sorted(ran(result)) == ["01", "02", "03"]
    # Whose table it is does not depend on who was at work when it appeared.
    (checkout.outputs / "tables" / "size.csv").unlink()
    assert ran(checkout.call("run")) == ["02"]


def test_failures_of_every_kind_are_seen_named_and_kept(checkout: Checkout) -> None:
    notebook(checkout.notebooks, "01_killed", ["import os\nos.kill(os.getpid(), 9)", "print(1)"])
    notebook(checkout.notebooks, "02_exit", ["import sys\nsys.exit(0)", "print(1)"])
    notebook(checkout.notebooks, "03_last", ["import os\nos._exit(0)"])
    notebook(checkout.notebooks, "04_error", ["1 / 0"])
    user_error = "from chameleon_lib.errors import UserError\nraise UserError('Get LaMP first.')"
    notebook(checkout.notebooks, "05_user", [user_error])
    notebook(checkout.notebooks, "06_good", ["print(1)"])
    notebook(checkout.notebooks, "99_report", ["print(1)"])
    result = checkout.call("run", "--jobs", "2")
    assert result.returncode == 1 and "Read:" not in result.stdout
    lines = {line[1:3]: line for line in result.stderr.splitlines() if "FAILED" in line}
    assert list(sorted(lines)) == ["01", "02", "03", "04", "05"]
    assert "the kernel died in cell 3 of 4" in lines["01"]
    assert "SystemExit" in lines["02"]
    assert "the kernel died" in lines["03"]
    assert "ZeroDivisionError" in lines["04"]
    assert "Get LaMP first." in lines["05"] and "UserError" not in lines["05"]
    for number, line in lines.items():
        kept = checkout.base / line.partition("; see ")[2]
        assert kept.is_file() and kept.name.startswith(number)
    assert ran(result) == ["06"] and "Not run, for it reads the others" in result.stderr
    assert [path.name for path in checkout.executed.glob("*[!l].ipynb")] == ["06_good.ipynb"]
    plan = checkout.call("plan").stdout.partition("\n\n")[0].splitlines()
    assert [line[4:10].strip() for line in plan] == ["run"] * 5 + ["cached", "run"]


def test_a_notebook_that_takes_too_long_is_stopped(checkout: Checkout) -> None:
    checkout.limit_seconds(3)
    notebook(checkout.notebooks, "01_slow", ["import time\ntime.sleep(300)"])
    result = checkout.call("run")
    assert result.returncode == 1 and "it took longer than 0:03" in result.stderr


def start_and_wait_for(checkout: Checkout, mark: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        checkout.command("run"),
        cwd=checkout.base,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests started in the background inherit an ignored SIGINT; a terminal's job does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert mark.exists()
    return process


def gone(pid: int) -> bool:
    """Wait for the end of a process; one that only waits to be reaped has ended, too."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text(encoding="utf-8"):
                return True
        except ProcessLookupError:
            return True
        except FileNotFoundError:
            pass  # no /proc on this system, or gone just now: the next look tells
        time.sleep(0.1)
    return False


def test_an_interruption_ends_with_130_and_leaves_no_kernel(
    checkout: Checkout, tmp_path: Path
) -> None:
    mark = tmp_path / "pid"
    code = f"import os, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(300)"
    notebook(checkout.notebooks, "01_slow", [code])
    process = start_and_wait_for(checkout, mark)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on from here" in errors
    assert gone(int(mark.read_text(encoding="utf-8")))


UNITS = """import os, time
from pathlib import Path
from chameleon_lib.kit.paths import cache_dir, replace_text, tables_dir
from chameleon_lib.kit.store import ArtifactStore
log = cache_dir() / "log"
(cache_dir() / "pid").write_text(str(os.getpid()))

def compute(batch):
    with log.open("a") as stream:
        stream.write("".join(f"{unit}\\n" for unit in batch))
    time.sleep(0.3)
    return [unit * 1.5 for unit in batch]

values = ArtifactStore().map(
    "fit", range(8), compute, inputs=seeds, key_of=int, batch_size=2, label="users"
)
replace_text(tables_dir(profile) / "units.csv", ",".join(map(str, values)))
print(values)"""


def test_a_driver_killed_by_kill_9_goes_on_and_ends_with_equal_bytes(checkout: Checkout) -> None:
    notebook(checkout.notebooks, "01_units", [UNITS])
    cache = checkout.base / ".chameleon"
    process = start_and_wait_for(checkout, cache / "units" / "fit")
    process.kill()
    process.communicate()
    # the kernel sees within a second or two that nobody listens
    assert gone(int((cache / "pid").read_text(encoding="utf-8")))
    done = len(list((cache / "units").rglob("*.unit")))
    assert 0 < done
    (cache / "log").unlink()
    assert checkout.call("run").returncode == 0
    log = cache / "log"
    computed = log.read_text(encoding="utf-8").split() if log.exists() else []
    assert len(computed) == 8 - done
    files = checkout.files()
    (cache / "ledger.json").unlink()
    for unit in (cache / "units").rglob("*.unit"):
        unit.unlink()
    assert checkout.call("run").returncode == 0
    assert checkout.files() == files
    assert files["tables/units.csv"].startswith(b"0.0,1.5,")
    assert b"left" not in files["notebooks/01_units.ipynb"]


def test_what_another_run_noted_before_this_one_began_is_kept(checkout: Checkout) -> None:
    notebook(checkout.notebooks, "01_table", [TABLE])
    code = """import json, sys
from chameleon_lib import cli
from chameleon_lib.kit import driver, paths

def check(*_):  # another run begins and ends while this one looks at its data
    entry = {"inputs": {}, "outputs": {"tables/a.csv": "other"}}
    stored = json.dumps({"laptop": {"01_table": entry}})
    paths.replace_text(paths.cache_dir() / "ledger.json", stored)

driver._check = check
sys.exit(cli.main(["run"]))"""
    result = checkout.wait_for([sys.executable, "-c", code])
    assert result.returncode == 0, result.stderr
    ledger = json.loads((checkout.base / ".chameleon" / "ledger.json").read_text(encoding="utf-8"))
    assert set(ledger) == {"demo", "laptop"}
    assert ledger["laptop"]["01_table"]["outputs"] == {"tables/a.csv": "other"}


def test_a_second_run_on_the_same_cache_is_refused(checkout: Checkout) -> None:
    notebook(checkout.notebooks, "01_table", [TABLE])
    cache = checkout.base / ".chameleon"
    cache.mkdir()
    with (cache / "run.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        result = checkout.call("run")
    assert result.returncode == 2 and result.stderr.startswith("Another run is at work")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--set", "sedes=3"], "Unknown parameter 'sedes': no notebook among 01 has it."),
        (["--users", "5"], "Unknown parameter 'users': no notebook among 01 has it."),
        (["--set", "size=many"], "Parameter 'size' of 01_table.ipynb takes int, not 'many'."),
        (["--set", "size=True"], "Parameter 'size' of 01_table.ipynb takes int, not True."),
        (["--only", "07"], "There is no notebook 07: choose among 01."),
    ],
)
def test_a_wrong_request_is_refused_in_one_sentence_before_anything_runs(
    checkout: Checkout, words: list[str], sentence: str
) -> None:
    parameters = f"{PARAMETERS}\nsize: int = 1"
    notebook(checkout.notebooks, "01_table", [TABLE], parameters=parameters)
    result = checkout.call("run", *words)
    assert (result.returncode, result.stderr.strip()) == (2, sentence)
    assert not checkout.outputs.exists()


@pytest.mark.parametrize("cell", ["n = 2 * 3", "import os", "print(1)"])
def test_a_parameters_cell_with_more_than_literals_is_refused(
    checkout: Checkout, cell: str
) -> None:
    notebook(checkout.notebooks, "01_table", [TABLE], parameters=cell)
    result = checkout.call("run")
    assert result.returncode == 2 and "01_table.ipynb" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_parameters_are_read_as_papermill_reads_them(tmp_path: Path) -> None:
    cell = 'profile: str = "demo"  # run profile\nseeds: int = 2\nalpha: float = 0.5\nnames = [1]'
    path = notebook(tmp_path, "01_table", [], parameters=cell)
    ours = read_notebook(path).parameters()
    theirs = papermill.inspect_notebook(path)
    assert list(ours) == list(theirs)
    for name, parameter in ours.items():
        assert repr(parameter.default).replace("'", '"') == theirs[name]["default"]
        if parameter.annotation:
            assert parameter.annotation == theirs[name]["inferred_type_name"]


def execute_with(
    monkeypatch: pytest.MonkeyPatch, folder: Path, errors: list[tuple[int, Exception]]
) -> tuple[list[int], str]:
    """Run the engine over a papermill that fails: (cells begun, error) per try."""
    tries: list[int] = []

    def fake(*_: Any, session: engine.Session, **__: Any) -> None:
        session.cell, error = errors[len(tries)]
        tries.append(session.cell)
        raise error

    monkeypatch.setattr(engine, "execute_notebook", fake)
    book = read_notebook(notebook(folder, "01_table", ["print(1)"]))
    with pytest.raises(engine.NotebookFailed) as failure:
        engine.execute(book, folder / "p", {}, env={}, work=folder, session=engine.Session())
    return tries, str(failure.value)


def test_a_kernel_that_does_not_start_gets_one_more_try(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = RuntimeError("Kernel didn't respond")
    tries, why = execute_with(monkeypatch, tmp_path, [(0, slow), (0, slow)])
    assert len(tries) == 2 and "did not start" in why


def test_a_kernel_that_died_at_work_gets_no_second_try(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tries, why = execute_with(monkeypatch, tmp_path, [(1, DeadKernelError("Kernel died"))])
    assert len(tries) == 1 and "the kernel died in cell 1 of 2" in why
