"""A folder of exports that stock servers load: one sub-folder per served model name.

``files`` describes the layout. Servers cache by path, so a changed profile gets a new version and
never overwrites the old one. An unchanged one is left alone, which is also how a killed run
resumes.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from chameleon_lib.backbones import HFBackbone, load_backbone
from chameleon_lib.backbones.families import model_family
from chameleon_lib.core.backbone import same_weights
from chameleon_lib.core.edit import AnyEdit
from chameleon_lib.core.fitting import EditProfile
from chameleon_lib.demo import checkpoint
from chameleon_lib.editors import WeightEdit
from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import replace_text
from chameleon_lib.kit.progress import Progress, tell
from chameleon_lib.serving.export import (
    Source,
    edit_digest,
    edit_of,
    export_edit,
    rank_of,
    read_record,
    served_name,
)
from chameleon_lib.serving.factors import RANK, projection
from chameleon_lib.serving.files import (
    VERSION,
    current_versions,
    model_name,
    remember_folder,
)
from chameleon_lib.serving.gguf_adapter import FILE
from chameleon_lib.serving.gguf_base import served_agreement
from chameleon_lib.serving.store import EditStore, ProfileInfo

README = "README.md"
_NOTES = {
    "peft": """
The scale is alpha / r = 1, whatever the rank: leave a server's own scale at 1, and do not add or
average adapters. The factors hold the base's own matrices, so another base, or this one in other
bits, needs an export of its own.

vLLM's own file-system resolver joins the model name that a client sends to the path of this folder:
let a gateway of yours send the names below alone, or serve the store itself by
`chameleon_lib.serving.vllm_resolver`, which knows no other names.
""",
    "merged": """
Each folder is a whole model. transformers 4.57 to 5.23 read it alike. ctranslate2 needs a tokenizer
with `unk_token` (set it in tokenizer_config.json where it is missing), and converts a T5 with a
head of its own right under transformers 4 alone: under 5 its texts agree and every probability is
wrong.
""",
    "gguf": """
Check an adapter against the file that is to serve it, before it is served:

```sh
python -m chameleon_lib export --check NAME-v0001/adapter.gguf --base BASE.gguf
```

llama.cpp refuses an adapter of another base with a log line, llama-cpp-python passes over it and
the process may end later. With a base in f32, f16 or bf16 the answers are the hook's. With a
quantised one logits agree up to that file's own rounding, and answers can differ: `export --served
BASE.gguf` measures by how much. Leave `--lora-scaled` at 1: it is no strength of the edit.
""",
}
_AUTO = {True: "AutoModelForCausalLM", False: "AutoModelForSeq2SeqLM"}


@dataclass(frozen=True)
class Served:
    """One profile in the folder.

    Attributes:
        name: Its name without version.
        model: What requests ask for: the folder's name.
        new: Whether this run wrote it.
        edit: What it is.
    """

    name: str
    model: str
    new: bool
    edit: AnyEdit | WeightEdit


class ServingFolder:
    """Exports of one base in one form.

    Args:
        folder: Made by the first export.
        backbone: The base.
        form: ``peft``, ``merged`` or ``gguf``.
        rank: Rank of the adapters.
        base_model: What the server calls the base.

    Raises:
        UserError: The folder holds exports of another base or form.
    """

    def __init__(
        self,
        folder: Path,
        backbone: HFBackbone,
        *,
        form: str,
        rank: int = RANK,
        base_model: str | None = None,
    ) -> None:
        self.folder, self.backbone, self.form, self.rank = folder, backbone, form, rank
        self.base_model = base_model or served_name(backbone)
        self._largest = rank  # of all adapters
        for name, number in current_versions(folder).items():
            try:
                record = read_record(folder / f"{name}-v{number:04d}", whole=False)
            except UserError:  # told when the profile is exported again
                continue
            if (record["base_model"], record["form"]) != (self.base_model, form):
                raise UserError(
                    f"{folder} serves {record['form']} exports of '{record['base_model']}', not "
                    f"{form} of '{self.base_model}'; give another folder."
                )

    def add(self, name: str, source: Source) -> Served:
        """Exports a profile as a new version, unless its current version is this very edit, whole.

        Args:
            name: Letters, digits, ``-`` and ``_``: part of a path and of a request.
            source: A profile or an edit.

        Raises:
            UserError: A name that is no path part, or an edit that the form cannot carry.
        """
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
            raise UserError(
                f"'{name}' cannot be the name of a served model; use letters, digits, - and _."
            )
        edit = edit_of(source, self.backbone)
        self._largest = max(self._largest, rank_of(edit))
        number = current_versions(self.folder).get(name, 0)
        if number and self._is(f"{name}-v{number:04d}", edit):
            return Served(name, f"{name}-v{number:04d}", False, edit)
        model = f"{name}-v{number + 1:04d}"
        export_edit(
            source,
            self.backbone,
            self.folder / model,
            form=self.form,
            rank=self.rank,
            base_model=self.base_model,
        )
        replace_text(self.folder / README, self._readme())
        return Served(name, model, True, edit)

    def measured(self, served: Served, base: Path) -> str:
        """What llama.cpp makes of a GGUF adapter on this file of the base, in a sentence."""
        assert not isinstance(served.edit, WeightEdit)  # no other becomes a GGUF adapter
        path = self.folder / served.model / FILE
        return str(served_agreement(self.backbone, served.edit, path, base))

    def _readme(self) -> str:
        """How the folder is served, for whoever finds it."""
        lines = "\n".join(self.how_to_serve("NAME-v0001"))
        return (
            f"# {self.form} exports of {self.base_model}\n\nOne folder per served model; of "
            "NAME-v0001, NAME-v0002, ... the highest is the current one. Servers keep what they "
            "once read from a path, so an export is never changed: a new edit gets a new number."
            f"\n{_NOTES[self.form]}\n```sh\n{lines}\n```\n"
        )

    def _is(self, model: str, edit: AnyEdit | WeightEdit) -> bool:
        """Whether a version is this edit, whole; a damaged one is told, and gets a successor."""
        try:
            record = read_record(self.folder / model)
        except UserError as error:
            tell(f"{model} is damaged and gets a new version: {error}")
            return False
        ranks = (0, max(self.rank, rank_of(edit)))
        return (
            record["directions"] == edit_digest(edit)
            and record["backbone"]["fingerprint"] == self.backbone.fingerprint
            and (isinstance(edit, WeightEdit) or record["rank"] in ranks)
        )

    def stale(self, names: Iterable[str]) -> list[Path]:
        """Versions that are not current, and all versions of profiles other than ``names``."""
        last, wanted = current_versions(self.folder), set(names)
        kept = {f"{name}-v{last[name]:04d}" for name in wanted & set(last)}
        return [
            path
            for path in sorted(self.folder.iterdir())
            if path.is_dir() and VERSION.fullmatch(path.name) and path.name not in kept
        ]

    def prune(self, names: Iterable[str]) -> list[Path]:
        """Deletes what ``stale`` lists."""
        gone = self.stale(names)
        for path in gone:
            shutil.rmtree(path)
        return gone

    def how_to_serve(self, model: str) -> list[str]:
        """Lines that serve a version: in the runtimes of this form, vLLM where it can."""
        path, base = (self.folder / model).absolute(), self.base_model
        decoder = self.backbone.family == "decoder"
        if self.form == "gguf":
            return [
                "# llama.cpp; BASE.gguf is the base in f32, f16 or bf16: with a quantised file "
                "logits agree up to its rounding, and answers can differ",
                f"python -m chameleon_lib export --check {shlex.quote(str(path / FILE))} "
                "--base BASE.gguf",
                f"{'llama-server' if decoder else 'llama-cli'} -m BASE.gguf --lora "
                f"{shlex.quote(str(path / FILE))}",
            ]
        if self.form == "merged":
            lines = [f"model = {_AUTO[decoder]}.from_pretrained({str(path)!r})"]
            return lines + ([f"vllm serve {shlex.quote(str(path))}"] if decoder else [])
        loaded = f"{_AUTO[decoder]}.from_pretrained({base!r})"
        lines = ["# PEFT", f"model = PeftModel.from_pretrained({loaded}, {str(path)!r})", "# vLLM"]
        reason = vllm_refusal(self.backbone)
        if reason is not None:
            return [*lines, f"# {reason}"]
        resolver = shlex.quote(str(self.folder.absolute()))
        rank = 1 << max(3, (self._largest - 1).bit_length())  # the next power of two that it takes
        return [
            *lines,
            "export VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 VLLM_PLUGINS=lora_filesystem_resolver",
            f"export VLLM_LORA_RESOLVER_CACHE_DIR={resolver}",
            f"vllm serve {shlex.quote(base)} --enable-lora --max-lora-rank {rank}",
        ]


def vllm_refusal(backbone: HFBackbone) -> str | None:
    """Why vLLM cannot load PEFT adapters of this base; None if it can."""
    if backbone.family != "decoder":
        return f"vLLM does not serve {backbone.name}, an encoder-decoder; use PEFT or merged."
    if model_family(backbone.model.config.model_type).experts:
        return f"vLLM takes matrices, {backbone.name} has stacked experts; use merged."
    found = projection(backbone, 0)
    if found.bias is not None:
        return f"{found.name} has a bias, which vLLM cannot edit; export the edit as merged."
    return None


def open_base(backbone_id: str, dtype: str) -> HFBackbone:
    """The base by its id, named as the demo and the laptop profile name theirs."""
    if not backbone_id.startswith("demo:"):
        return load_backbone(backbone_id, dtype=dtype)
    parts = backbone_id.split(":")
    if len(parts) != 3:
        raise UserError(f"--backbone {backbone_id} is not demo:<family>:<seed>.")
    return load_backbone(checkpoint(parts[1], parts[2]), name=backbone_id, dtype="float32")


def export_profiles(
    store: EditStore, serving: ServingFolder, key: str | None, *, every_token: bool = False
) -> list[Served]:
    """Exports the profile of a key, or all profiles of the folder's base.

    Args:
        store: Where the profiles are; it notes the folder, to find it when a user is forgotten.
        serving: Where they go.
        key: User or group; None for all.
        every_token: Export the same directions as an edit of all positions.

    Raises:
        UserError: No such profile, or one that the form cannot carry or whose group is to be
            fitted again.
    """
    if key is not None:
        store.read(key, serving.backbone)  # says what is wrong with it or the backbone
        infos = [store.info(key)]
    else:
        infos = _of_backbone(store, serving.backbone)
    # Noted first: a run that is killed half-way has written there, too.
    remember_folder(store.root, serving.folder)
    done = []
    with Progress("exports", len(infos)) as progress:
        for info in infos:
            name = model_name(info.group, info.id)
            if info.forgotten:
                raise UserError(
                    f"Group '{info.group}' still holds {info.forgotten} forgotten users; fit it "
                    "again before it is exported."
                )
            try:
                # Not by its key, which a store hides also from whoever exports all of it.
                profile = store.profile(info)
                if every_token and isinstance(profile, EditProfile):
                    profile = replace(profile, edit=replace(profile.edit, positions="all"))
                done.append(serving.add(name, profile))
            except FileNotFoundError:
                raise UserError(
                    f"{info.path} was deleted while it was exported; run the export again."
                ) from None
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
            progress.advance()
    return done


def _of_backbone(store: EditStore, base: HFBackbone) -> list[ProfileInfo]:
    """The profiles that were made on these weights; tells of those of others by the same name."""
    infos = store.list()
    named = [info for info in infos if info.backbone == base.name]
    chosen = [info for info in named if same_weights(info.fingerprint, base.fingerprint)]
    if chosen:
        if len(named) > len(chosen):
            tell(
                f"{len(named) - len(chosen)} profiles were made on other weights by the name of "
                f"{base.name} and are left out; export them with that checkpoint."
            )
        return chosen
    others = sorted({info.backbone for info in infos})
    found = f"profiles of {', '.join(others)} alone" if others else "no profile"
    if named:
        found = f"{len(named)} profiles of other weights by that name"
    raise UserError(
        f"The store {store.root} holds {found}, none of {base.name}; name another backbone, "
        "or fit and save a profile first."
    )
