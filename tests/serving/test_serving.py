"""The serving folder: what servers read, versions, and the one command that fills it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from chameleon_lib import cli
from chameleon_lib.backbones import HFBackbone, load_backbone
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import EditProfile
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.serving import folder as folder_module
from chameleon_lib.serving.files import model_name
from chameleon_lib.serving.folder import ServingFolder
from chameleon_lib.serving.mixed import mixed_users
from chameleon_lib.serving.store import ProfileStore
from tests.backbones.tiny import make_model, make_tokenizer
from tests.serving.exported import backbone_of, edit_of


def _resolved(folder: Path, name: str, base_model: str) -> Path | None:
    """What vLLM's filesystem resolver does with a request for a model name."""
    path = folder / name
    if not (path / "adapter_config.json").exists():
        return None
    config = json.loads((path / "adapter_config.json").read_text())
    fits = config["peft_type"] == "LORA" and config["base_model_name_or_path"] == base_model
    return path if fits else None


def test_the_resolver_finds_every_user_under_the_name_that_was_told(tmp_path: Path) -> None:
    backbone = backbone_of("llama")
    folder = ServingFolder(tmp_path, backbone, form="peft", rank=8, base_model="org/llama")
    edits = {"ann": edit_of(1), "bob": edit_of(2, layers=(1, 2))}
    served = {name: folder.add(name, edit) for name, edit in edits.items()}
    paths = {}
    for name, found in served.items():
        assert found.new and found.model == f"{name}-v0001"
        path = _resolved(tmp_path, found.model, "org/llama")
        assert path is not None and _resolved(tmp_path, found.model, "org/LLAMA") is None
        paths[name] = path
    with mixed_users(backbone, paths) as batch:
        texts = batch.generate(["a robot. Your answer:"] * 2, ["ann", "bob"], max_new_tokens=6)
    alone = [
        backbone.generate(["a robot. Your answer:"], max_new_tokens=6, edit=edit)[0]
        for edit in edits.values()
    ]
    assert texts == alone


def test_an_unchanged_edit_is_kept_and_a_changed_one_gets_a_new_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = backbone_of("llama")
    folder = ServingFolder(tmp_path, backbone, form="peft")
    first = folder.add("ann", edit_of(1))
    before = {path: path.read_bytes() for path in (tmp_path / first.model).iterdir()}
    with monkeypatch.context() as patch:
        patch.delattr(folder_module, "export_edit")  # nothing is exported again
        again = ServingFolder(tmp_path, backbone, form="peft").add("ann", edit_of(1))
    assert again.model == first.model and not again.new
    second = folder.add("ann", edit_of(2))
    assert second.model == "ann-v0002" and second.new
    assert before == {path: path.read_bytes() for path in (tmp_path / first.model).iterdir()}
    assert [path.name for path in folder.stale(["ann"])] == ["ann-v0001"]
    assert [path.name for path in folder.prune([])] == ["ann-v0001", "ann-v0002"]
    assert not list(tmp_path.glob("ann*"))


@pytest.mark.parametrize(
    ("form", "damaged"),
    [
        ("peft", "adapter_model.safetensors"),
        ("peft", "adapter_config.json"),
        ("merged", "model.safetensors"),
        ("merged", "chameleon.json"),
        ("gguf", "adapter.gguf"),
    ],
)
def test_a_damaged_version_is_told_and_exported_again(
    form: str, damaged: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = ServingFolder(tmp_path, backbone_of("llama"), form=form)
    path = tmp_path / folder.add("ann", edit_of()).model / damaged
    if form == "peft":
        path.write_bytes(path.read_bytes()[:20])
    else:
        path.unlink()
    again = folder.add("ann", edit_of())
    assert (again.model, again.new) == ("ann-v0002", True)
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "ann-v0001 is damaged and gets a new version"
    ]
    assert folder.add("ann", edit_of()).model == "ann-v0002" and len(caplog.records) == 1


def test_a_killed_run_resumes_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = backbone_of("llama")
    folder = ServingFolder(tmp_path, backbone, form="peft")
    folder.add("ann", edit_of(1))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("chameleon_lib.serving.export.compare", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.add("bob", edit_of(2))
    resumed = ServingFolder(tmp_path, backbone, form="peft")
    assert not resumed.add("ann", edit_of(1)).new
    assert resumed.add("bob", edit_of(2)).model == "bob-v0001"
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


def test_a_folder_serves_one_base_in_one_form(tmp_path: Path) -> None:
    ServingFolder(tmp_path, backbone_of("llama"), form="peft").add("ann", edit_of())
    with pytest.raises(UserError, match="serves peft exports of 'tiny-llama', not gguf"):
        ServingFolder(tmp_path, backbone_of("llama"), form="gguf")
    with pytest.raises(UserError, match="not peft of 'other'"):
        ServingFolder(tmp_path, backbone_of("llama"), form="peft", base_model="other")


@pytest.mark.parametrize("name", ["a/b", "..", "ü", "", "a b"])
def test_a_name_that_is_no_path_part_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be the name of a served model"):
        ServingFolder(tmp_path, backbone_of("llama"), form="peft").add(name, edit_of())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama checkpoint."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    make_model("llama").save_pretrained(folder)
    make_tokenizer(closes=False).save_pretrained(folder)
    return folder


def _profile(backbone: HFBackbone, edit: Edit, users: tuple[str, ...]) -> EditProfile:
    name = (backbone.name, backbone.fingerprint)
    return EditProfile("LaMP_2", edit, EditSettings(), name, users, 40, 2)


@pytest.fixture
def store(base: Path, tmp_path: Path) -> Path:
    """Two users and a group, edited at all positions."""
    backbone = load_backbone(base)
    profiles = ProfileStore(tmp_path / "store")
    for seed, (key, users) in enumerate(
        {"ann@x.org": (), "bob@x.org": (), "film club": ("u1", "u2")}.items()
    ):
        profiles.save(key, _profile(backbone, edit_of(seed), tuple(users)))
    return tmp_path / "store"


def _call(store: Path, base: Path, *words: str) -> int:
    where = ["--store", str(store), "--backbone", str(base), "--to", str(store.parent / "out")]
    return cli.main(["export", *where, *words])


def test_one_command_exports_a_store_and_tells_how_to_serve_it(
    store: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call(store, base, "--all") == 0
    printed = capsys.readouterr().out
    out = store.parent / "out"
    models = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert len(models) == 3 and sum(name.startswith("u-") for name in models) == 2
    assert any(name.startswith("g-film-club-") for name in models)
    for model in models:
        assert f"wrote {model}" in printed
        assert _resolved(out, model, str(base)) is not None
    assert f"vllm serve {base} --enable-lora --max-lora-rank 8" in printed
    assert "PeftModel.from_pretrained" in printed
    assert "ann@x.org" not in printed
    everything = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert b"@x.org" not in everything and b"u1" not in everything

    info = ProfileStore(store).info("ann@x.org")
    assert _call(store, base, "--profile-key", "ann@x.org") == 0
    assert f"kept  {model_name(info.group, info.id)}-v0001" in capsys.readouterr().out


def test_of_two_checkpoints_by_one_name_all_exports_those_of_the_one_that_is_given(
    store: Path, base: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    twin = store.parent / "elsewhere" / base.name
    make_model("llama", seed=1).save_pretrained(twin)
    make_tokenizer(closes=False).save_pretrained(twin)
    other = load_backbone(twin)
    ProfileStore(store).save("eve@x.org", _profile(other, edit_of(9), ()))
    assert _call(store, base, "--all") == 0
    assert capsys.readouterr().out.count("wrote ") == 3
    assert "1 profiles were made on other weights by the name of tiny and are left" in caplog.text
    where = ["--store", str(store), "--backbone", str(twin), "--to", str(store.parent / "out2")]
    assert cli.main(["export", *where, "--all"]) == 0
    assert capsys.readouterr().out.count("wrote ") == 1
    make_model("llama", seed=2).save_pretrained(twin)
    assert cli.main(["export", *where, "--all"]) == 2
    assert "holds 4 profiles of other weights by that name" in capsys.readouterr().err


def test_a_base_may_be_named_from_where_one_stands(
    store: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for here, said in ((base.parent, "./tiny"), (base, ".")):
        monkeypatch.chdir(here)
        out = store.parent / f"out{len(said)}"
        words = ["--store", str(store), "--backbone", said, "--to", str(out)]
        assert cli.main(["export", *words, "--profile-key", "ann@x.org"]) == 0
        (model,) = (path.name for path in out.iterdir() if path.is_dir())
        assert _resolved(out, model, str(base)) is not None


def test_prune_removes_whom_the_store_no_longer_holds(
    store: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call(store, base, "--all") == 0
    info = ProfileStore(store).info("ann@x.org")
    gone = store.parent / "out" / f"u-{info.id}-v0001"
    assert gone.is_dir()
    ProfileStore(store).delete("ann@x.org")
    assert _call(store, base, "--all") == 0
    assert "1 folders are old versions" in capsys.readouterr().out and gone.is_dir()
    assert _call(store, base, "--all", "--prune") == 0
    assert f"deleted {gone.name}" in capsys.readouterr().out and not gone.exists()


def test_forgetting_a_user_leaves_no_byte_of_the_directions_in_a_serving_folder(
    store: Path, base: Path
) -> None:
    assert _call(store, base, "--all") == 0
    out, profiles = store.parent / "out", ProfileStore(store)
    model = f"{model_name('', profiles.info('ann@x.org').id)}-v0001"
    tensors = load_file(out / model / "adapter_model.safetensors").values()
    needles = [row.tobytes() for tensor in tensors for row in tensor if row.size > 2]

    def found() -> set[str]:
        files = [path for path in store.parent.rglob("*") if path.is_file()]
        return {p.parent.name for p in files if any(n in p.read_bytes() for n in needles)}

    assert found() == {model}
    done = profiles.forget("ann@x.org")
    assert [path.name for path in done.exports] == [model] and found() == set()
    assert len(list(out.glob("*-v0001"))) == 2
    assert _call(store, base, "--all") == 0  # the folder goes on serving the others


@pytest.mark.parametrize(
    ("family", "form", "lines"),
    [
        ("llama", "merged", ["AutoModelForCausalLM", "vllm serve"]),
        ("llama", "gguf", ["llama-server -m BASE.gguf --lora"]),
        ("t5", "peft", ["AutoModelForSeq2SeqLM", "# vLLM does not serve tiny-t5, an encoder"]),
        ("t5", "gguf", ["llama-cli -m BASE.gguf --lora"]),
        ("gpt2", "peft", ["# transformer.h.0.mlp.c_proj has a bias, which vLLM cannot edit"]),
        ("mixtral", "peft", ["# vLLM takes matrices, tiny-mixtral has stacked experts"]),
    ],
)
def test_the_lines_that_serve_a_form_are_those_of_its_runtimes(
    family: str, form: str, lines: list[str], tmp_path: Path
) -> None:
    folder = ServingFolder(tmp_path / "a b", backbone_of(family), form=form)
    said = "\n".join(folder.how_to_serve("u-1-v0001"))
    assert all(line in said for line in lines) and f"{tmp_path}/a b/u-1-v0001" in said
    assert ("vllm serve" in said) == (form == "merged")


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("merged", ["needs a tokenizer\nwith `unk_token`", "under transformers 4 alone"]),
        ("gguf", ["export --check NAME-v0001/adapter.gguf --base BASE.gguf", "answers can differ"]),
    ],
)
def test_the_page_of_a_folder_says_what_other_runtimes_do(
    form: str, said: list[str], store: Path, base: Path
) -> None:
    assert _call(store, base, "--profile-key", "ann@x.org", "--format", form) == 0
    page = (store.parent / "out" / "README.md").read_text(encoding="utf-8")
    assert all(words in page for words in said)


def test_an_edit_of_the_last_position_goes_out_openly_as_another_or_not_at_all(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = load_backbone(base)
    last = replace(edit_of(), positions="last")
    ProfileStore(tmp_path / "store").save("ann", _profile(backbone, last, ()))
    assert _call(tmp_path / "store", base, "--all") == 2
    assert "or set its positions to all" in capsys.readouterr().err
    elsewhere = ["--to", str(tmp_path / "all")]
    assert _call(tmp_path / "store", base, "--all", "--positions", "all", *elsewhere) == 0
    records = list((tmp_path / "all").glob("*/chameleon.json"))
    assert [json.loads(path.read_text())["positions"] for path in records] == ["all"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--profile-key", "nobody"], "There is no profile of 'nobody'"),
        (["--all", "--format", "onnx"], "Invalid value for '--format': 'onnx' is not one of"),
        ([], "Give either --all or --profile-key"),
        (["--all", "--profile-key", "x"], "Give either --all or --profile-key"),
        (["--profile-key", "film club", "--prune"], "--prune needs --all"),
        (["--all", "--store", "no/such"], "There is no profile store no/such"),
        (["--all", "--backbone", "demo:decoder"], "is not demo:<family>:<seed>"),
        (["--all", "--backbone", "demo:decoder:0"], "none of demo:decoder:0"),
        (["--all", "--rank", "1"], "The rank is 1; the edit needs 2 or more"),
    ],
)
def test_misuse_is_one_sentence_and_exit_code_2(
    words: list[str], sentence: str, store: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call(store, base, *words) == 2
    # Before it stands the progress of loading the weights, where they were needed to tell.
    lines = [line for line in capsys.readouterr().err.splitlines() if "Loading weights" not in line]
    assert len([line for line in lines if line]) == 1 and sentence in lines[-1]
    assert not list(store.parent.glob("out/*-v*"))


def test_a_group_with_forgotten_members_is_not_exported(
    store: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ProfileStore(store).forget("u1")
    assert _call(store, base, "--profile-key", "film club") == 2
    assert "1 forgotten users; fit it again" in capsys.readouterr().err
