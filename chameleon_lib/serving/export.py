"""Export of an edit: written under a temporary name, reloaded, compared with the hook, renamed.

A profile of directions is the source; adapters, checkpoints and GGUF files are compiled from it for
one set of weights. What comes out has been read back from its own files and answers like the hook
on the base that is loaded here; on a quantised file of it, in another runtime, answers can differ.

Every form acts on all tokens. A decoder's edit of the last prompt token and the generated ones is
another edit and is run by the hook; an encoder-decoder starts from one decoder token, so there the
two are the same. An edit of weights acts on all tokens by itself, and is merged, or an adapter
of its own rank where it has one.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.families import model_family
from chameleon_lib.core.affine import AffineEdit
from chameleon_lib.core.backbone import same_weights
from chameleon_lib.core.edit import AnyEdit, Edit
from chameleon_lib.core.fitting import EditProfile
from chameleon_lib.editors import WeightEdit
from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest, tree_digests
from chameleon_lib.kit.paths import replace_text
from chameleon_lib.serving.adapter import (
    BASE,
    adapter_name,
    adapter_rows,
    adapters,
    write_adapter,
)
from chameleon_lib.serving.agreement import (
    PROBES,
    Agreement,
    Isolation,
    View,
    compare,
    isolation,
    view,
)
from chameleon_lib.serving.factors import RANK, LowRank, compile_edit, projection, weights_hash
from chameleon_lib.serving.gguf_adapter import FILE, gguf_active, write_gguf
from chameleon_lib.serving.merged import load_merged, merged_dtype, served_name, write_merged
from chameleon_lib.serving.weights import WeightProfile

Source = EditProfile | Edit | AffineEdit | WeightProfile | WeightEdit
FORMS = ("peft", "merged", "gguf")
RECORD = "chameleon.json"


@dataclass(frozen=True)
class Export:
    """A finished export.

    Attributes:
        folder: Where it lies.
        form: ``peft`` | ``merged`` | ``gguf``.
        rank: Rank of the adapter; 0 for merged weights.
        agreement: The comparison with the hook.
        isolation: Two users' adapters and the base in one batch, each as if alone; None for forms
            that serve one user per model, and for a mixture of experts and OPT, whose rows PEFT
            cannot tell apart.
    """

    folder: Path
    form: str
    rank: int
    agreement: Agreement
    isolation: Isolation | None = None


def export_edit(
    source: Source,
    backbone: HFBackbone,
    folder: Path,
    *,
    form: str = "peft",
    rank: int = RANK,
    base_model: str | None = None,
    prompts: Sequence[str] = PROBES,
) -> Export:
    """Writes one edit in one form and proves it against the hook.

    Args:
        source: A profile, or a bare edit.
        backbone: The model it was made for; unchanged afterwards.
        folder: New folder of the export; servers cache by path, so an update gets a new one.
        form: ``peft``, ``merged`` or ``gguf``.
        rank: 2, or more to pad the factors with zeros for a server that insists on a rank; an edit
            of a larger rank (two in sequence: 4) keeps its own, and so does one of weights where
            none was asked for.
        base_model: What the server calls the base (default: where the base was loaded from).
        prompts: Prompts of the comparison.

    Raises:
        UserError: The form cannot carry the edit, the folder is taken, or the reloaded files do
            not answer like the hook (then nothing is left behind).
    """
    edit = edit_of(source, backbone)
    base = base_model or served_name(backbone)
    check_form(edit, backbone, form)
    if form == "merged":
        rank = 0
    elif rank < RANK:
        raise UserError(f"The rank is {rank}; the edit needs {RANK} or more.")
    elif isinstance(edit, WeightEdit):
        rank = max(edit.rank, rank if rank > RANK else 0)
    else:
        rank = max(rank_of(edit), rank)
    if not prompts:
        raise UserError("An export needs at least one prompt to be compared with the hook.")

    def read(hook: View) -> View:
        """What the reloaded files answer under the hook's tokens."""
        with _reloaded(form, target, backbone) as served:
            ids = backbone.codec.prompts(list(prompts))
            return view(served, ids, None, forced=hook.tokens)

    isolated = None
    with _fresh(folder) as target:
        if form == "merged":
            weights = write_merged(target, edit, backbone)
        else:
            compiled = compile_edit(edit, backbone)
            weights = compiled.weights
            updates = [update.padded(rank) for update in compiled.updates]
            if form == "gguf":
                write_gguf(target / FILE, updates, backbone)
            else:
                write_adapter(target, updates, backbone, base_model=base)
        dtype = merged_dtype(backbone) if form == "merged" else backbone.model.dtype
        agreement = compare(backbone, edit, prompts, read, dtype)
        family = model_family(backbone.model.config.model_type)
        if form == "peft" and not (family.experts or family.flat):
            isolated = _isolated(target, updates, backbone, base, prompts)
        record = {
            **_record(edit, backbone, form, rank, agreement, dtype),
            "base_model": base,
            "edited_weights": weights,
            "files": tree_digests(target),
        }
        replace_text(target / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
    return Export(folder, form, rank, agreement, isolated)


def _isolated(
    folder: Path,
    updates: Sequence[LowRank],
    backbone: HFBackbone,
    base_model: str,
    prompts: Sequence[str],
) -> Isolation:
    """The adapter in one batch with that of another user and with the base.

    The other user's does the opposite: B with its sign turned.
    """
    turned = [
        replace(one, b=-one.b, bias=None if one.bias is None else -one.bias) for one in updates
    ]
    with tempfile.TemporaryDirectory(prefix="chameleon-other-user-") as beside:
        write_adapter(Path(beside), turned, backbone, base_model=base_model)
        with adapters(backbone, [folder, Path(beside)]) as model:
            names = [BASE, adapter_name(0), adapter_name(1)]

            def rows(texts: list[str], users: list[int]) -> Tensor:
                return adapter_rows(backbone, model, texts, [names[user] for user in users])

            return isolation(backbone, rows, 2, prompts)


@contextmanager
def _reloaded(form: str, folder: Path, backbone: HFBackbone) -> Iterator[HFBackbone]:
    """The model that an export's files make."""
    if form == "merged":
        yield load_merged(folder, backbone)
    elif form == "gguf":
        with gguf_active(folder / FILE, backbone):
            yield backbone
    else:
        with adapters(backbone, [folder]):
            yield backbone


def edit_of(source: Source, backbone: HFBackbone) -> AnyEdit | WeightEdit:
    """The edit of a profile that was made on this very model.

    Raises:
        UserError: The profile belongs to another model.
    """
    if isinstance(source, Edit | AffineEdit | WeightEdit):
        return source
    name, fingerprint = source.backbone
    if not same_weights(fingerprint, backbone.fingerprint):
        raise UserError(
            f"The profile was made on {name} ({fingerprint[:12]}), this is {backbone.name} "
            f"({backbone.fingerprint[:12]}); load that model, or fit the profile again."
        )
    return source.edit


def rank_of(edit: AnyEdit | WeightEdit) -> int:
    """The rank that an adapter of this edit has at least."""
    return edit.rank if isinstance(edit, AffineEdit | WeightEdit) else RANK


def check_form(edit: AnyEdit | WeightEdit, backbone: HFBackbone, form: str) -> None:
    """Refuses an edit that the form cannot carry.

    Raises:
        UserError: In one sentence, with the form that can where there is one.
    """
    if form not in FORMS:
        raise UserError(f"The export form is '{form}'; choose one of {', '.join(FORMS)}.")
    if isinstance(edit, WeightEdit):
        reason = _weights_refusal(edit, form)
    else:
        reason = _edit_refusal(edit, backbone, form) or _model_refusal(edit, backbone, form)
    if reason is not None:
        raise UserError(reason)


def _weights_refusal(edit: WeightEdit, form: str) -> str | None:
    if form == "gguf" or (form == "peft" and not edit.rank):
        why = "changes a whole matrix" if not edit.rank else "is an edit of weights"
        forms = "merged" if not edit.rank else "peft or merged"
        return f"What {edit.editor} wrote {why}, which the form {form} cannot carry; use {forms}."
    if not any(bool(change.left.any()) for change in edit.changes):
        return f"What {edit.editor} wrote changes nothing, so there is nothing to export."
    return None


def _edit_refusal(edit: AnyEdit, backbone: HFBackbone, form: str) -> str | None:
    if edit.per_row:
        return "This edit has one edit per batch row; export the users one by one."
    if edit.site != "mlp_out":
        return (
            f"An edit of the site {edit.site} is not an update of one matrix, so it cannot be "
            "exported; run it with the hook, or fit it with edit_site mlp_out."
        )
    if not edit.changes_anything:
        return "The strengths of this edit are all 0 after gating, so there is nothing to export."
    if edit.positions == "generated":
        return (
            "An edit of the generated tokens alone starts after the last prompt token, which no "
            "exported form can; run it with the hook."
        )
    if backbone.family == "decoder" and edit.positions == "last":
        return (
            f"The form {form} edits every token, this edit (edit_positions last) only the last "
            "prompt token and the generated ones; run it with the hook, or set its positions to "
            "all (--positions all), which is another edit with other answers."
        )
    return None


def _model_refusal(edit: AnyEdit, backbone: HFBackbone, form: str) -> str | None:
    family = backbone.model.config.model_type
    entry = model_family(family)
    if edit.shift(0) is not None:
        whole = projection(backbone, edit.layers[0])
        # PEFT alone has a bias of its own; elsewhere a vector needs one of the projection's.
        if entry.experts or form == "gguf" or (form == "merged" and whole.bias is None):
            return (
                f"This edit adds a vector, and {whole.name} has no bias that the form {form} could "
                "carry it in; run it with the hook"
                + ("." if entry.experts else ", or export it as peft.")
            )
    if entry.experts and form == "gguf":
        return (
            f"{backbone.name} keeps its experts in one stacked parameter, which an adapter in "
            "gguf form does not reach; export the edit as merged."
        )
    if form == "gguf" and entry.gguf is None:
        return f"The GGUF name table has no family '{family}'; export the edit as peft or merged."
    if form in ("gguf", "merged") and not entry.experts:
        found = projection(backbone, edit.layers[0])
        if form == "gguf" and found.bias is not None:
            return (
                f"{found.name} has a bias, which a GGUF adapter cannot carry; export the edit as "
                "peft or merged."
            )
        if form == "merged" and found.quantised:
            return (
                f"{found.name} is quantised, and merging would round it again; export an adapter, "
                "or load the backbone unquantised."
            )
    return None


def _record(
    edit: AnyEdit | WeightEdit,
    backbone: HFBackbone,
    form: str,
    rank: int,
    agreement: Agreement,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """What travels with the files; nothing in it is a user's."""
    if isinstance(edit, WeightEdit):
        modules = [change.module for change in edit.changes]
        what: dict[str, Any] = {"layers": [], "modules": modules, "editor": edit.editor}
    else:
        what = {"layers": list(edit.layers), "positions": edit.positions}
        if isinstance(edit, Edit):
            what |= {"order": edit.order, "strengths": [edit.alpha_p, edit.alpha_n]}
    return what | {
        "format": 2,
        "form": form,
        "rank": rank,
        "directions": edit_digest(edit),
        "backbone": {"name": backbone.name, "fingerprint": backbone.fingerprint},
        "dtype": str(dtype).removeprefix("torch."),
        "agreement": asdict(agreement),
    }


def edit_digest(edit: AnyEdit | WeightEdit) -> str:
    """SHA-256 of all that decides what a shared edit does."""
    if isinstance(edit, WeightEdit):
        return digest([[change.module, change.left, change.right] for change in edit.changes])
    factors = [edit.factors(row) for row in range(len(edit.layers))]
    shifts = [edit.shift(row) for row in range(len(edit.layers))]
    added = [shift for shift in shifts if shift is not None]
    whole = [list(edit.layers), edit.positions, edit.site, factors]
    return digest([*whole, added] if added else whole)


def read_record(folder: Path, *, whole: bool = True) -> dict[str, Any]:
    """The record of an export.

    Args:
        folder: The export.
        whole: Check that its files are the ones that were written and proven.

    Raises:
        UserError: No record, or a file is missing, changed or new.
    """
    path = folder / RECORD
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
        files = dict(record["files"])
        record["layers"], record["edited_weights"], record["base_model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); export the edit again.") from error
    found = tree_digests(folder, skip=[RECORD]) if whole else files
    odd = sorted(set(files.items()) ^ set(found.items()))
    if odd:
        raise UserError(
            f"{folder / odd[0][0]} is missing or not what was exported; export the edit again."
        )
    return record


def check_export(folder: Path, backbone: HFBackbone) -> dict[str, Any]:
    """Checks that an export is whole and was made from the weights it is about to be served with.

    Returns:
        The export's record.

    Raises:
        UserError: It is damaged, or the edited matrices of this model are others.
    """
    record = read_record(folder)
    modules = record.get("modules", ())
    if weights_hash(backbone, record["layers"], modules) != record["edited_weights"]:
        raise UserError(
            f"{folder} was compiled from other weights than those of {backbone.name} (its factors "
            "hold the base's own matrices); export the edit again for this model."
        )
    return record


@contextmanager
def _fresh(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its name at the end, or vanishes."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} is taken; give a new folder for every export, because servers keep what "
            "they once read from a path."
        )
    temporary = folder.with_name(f".{folder.name}.partial-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}); give another folder.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
