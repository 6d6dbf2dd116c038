"""Export of an edit: written under a temporary name, reloaded, compared with the hook, renamed.

A profile of directions is the source; adapters, checkpoints and GGUF files are compiled from it for
one set of weights. What comes out has been read back from its own files and answers like the hook.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.edit_profile import EditProfile
from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.paths import replace_text
from chameleon_lib.profiles.adapter_rules import check_adapter
from chameleon_lib.profiles.agreement import PROBES, Agreement, View, compare, view
from chameleon_lib.profiles.alora import alora_view, invocation_token
from chameleon_lib.profiles.factors import RANK, Compiled, compile_edit, weights_hash
from chameleon_lib.profiles.forms import check_form
from chameleon_lib.profiles.gguf_adapter import FILE, gguf_active, write_gguf
from chameleon_lib.profiles.merged import load_merged, write_merged
from chameleon_lib.profiles.peft_adapter import adapters, write_adapter

RECORD = "chameleon.json"
ADAPTER = "edit"  # name of the adapter while it is checked


@dataclass(frozen=True)
class Export:
    """A finished export.

    Attributes:
        folder: Where it lies.
        form: ``peft`` | ``alora`` | ``merged`` | ``gguf``.
        rank: Rank of the adapter; 0 for merged weights.
        bytes: Size of all its files.
        agreement: The comparison with the hook.
    """

    folder: Path
    form: str
    rank: int
    bytes: int
    agreement: Agreement


def export_edit(
    source: EditProfile | Edit,
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
        form: ``peft``, ``alora`` (positions ``last`` of a decoder), ``merged`` or ``gguf``.
        rank: 2, or more to pad the factors with zeros for a server that insists on a rank.
        base_model: What the server calls the base (default: where the base was loaded from).
        prompts: Prompts of the comparison; for ``alora`` they must end as served prompts do.

    Raises:
        UserError: The form cannot carry the edit, the folder is taken, or the reloaded files do
            not answer like the hook (then nothing is left behind).
    """
    edit = edit_of(source, backbone)
    check_form(edit, backbone, form)
    if form == "merged":
        rank = 0
    elif rank < RANK:
        raise UserError(f"The rank is {rank}; the edit needs {RANK} or more.")
    if not prompts:
        raise UserError("An export needs at least one prompt to be compared with the hook.")
    with _fresh(folder) as target:
        if form == "merged":
            weights = write_merged(target, edit, backbone)
            agreement = compare(
                backbone,
                edit,
                prompts,
                lambda hook: _plain(load_merged(target, backbone), hook, prompts),
            )
        else:
            compiled = compile_edit(edit, backbone)
            weights = compiled.weights
            agreement = _write_low_rank(
                target, compiled, edit, backbone, form, rank, base_model, prompts
            )
        record = _record(edit, backbone, form, rank, weights, agreement)
        replace_text(target / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return Export(folder, form, rank, size, agreement)


def _write_low_rank(
    target: Path,
    compiled: Compiled,
    edit: Edit,
    backbone: HFBackbone,
    form: str,
    rank: int,
    base_model: str | None,
    prompts: Sequence[str],
) -> Agreement:
    updates = [update.padded(rank) for update in compiled.updates]
    if form == "gguf":
        write_gguf(target / FILE, updates, backbone)

        def read(hook: View) -> View:
            with gguf_active(target / FILE, backbone):
                return _plain(backbone, hook, prompts)

    else:
        token = invocation_token(backbone, prompts) if form == "alora" else None
        write_adapter(
            target,
            updates,
            backbone,
            base_model=base_model or served_name(backbone),
            invocation_tokens=None if token is None else [token],
        )
        check_adapter(target)

        def read(hook: View) -> View:
            with adapters(backbone, {ADAPTER: target}) as model:
                if form == "alora":
                    ids = backbone.codec.prompts(list(prompts))
                    return alora_view(backbone, model, ids, hook)
                return _plain(backbone, hook, prompts)

    return compare(backbone, edit, prompts, read)


def _plain(backbone: HFBackbone, hook: View, prompts: Sequence[str]) -> View:
    """The model as it now stands, with no hook."""
    return view(backbone, backbone.codec.prompts(list(prompts)), None, forced=hook.tokens)


def edit_of(source: EditProfile | Edit, backbone: HFBackbone) -> Edit:
    """The edit of a profile that was made on this very model.

    Raises:
        UserError: The profile belongs to another model.
    """
    if isinstance(source, Edit):
        return source
    name, fingerprint = source.backbone
    if fingerprint != backbone.fingerprint:
        raise UserError(
            f"The profile was made on {name} ({fingerprint[:12]}), this is {backbone.name} "
            f"({backbone.fingerprint[:12]}); load that model, or fit the profile again."
        )
    return source.edit


def served_name(backbone: HFBackbone) -> str:
    """Where the base was loaded from: what a server that loads it calls it."""
    return str(getattr(backbone.model.config, "_name_or_path", "") or backbone.name)


def _record(
    edit: Edit, backbone: HFBackbone, form: str, rank: int, weights: str, agreement: Agreement
) -> dict[str, Any]:
    """What travels with the files; nothing in it is a user's."""
    return {
        "format": 1,
        "form": form,
        "rank": rank,
        "layers": list(edit.layers),
        "positions": edit.positions,
        "order": edit.order,
        "strengths": [edit.alpha_p, edit.alpha_n],
        "directions": edit_digest(edit),
        "backbone": {"name": backbone.name, "fingerprint": backbone.fingerprint},
        "dtype": str(backbone.model.dtype).removeprefix("torch."),
        "edited_weights": weights,
        "agreement": asdict(agreement),
    }


def edit_digest(edit: Edit) -> str:
    """SHA-256 of all that decides what a shared edit does."""
    factors = [edit.factors(row) for row in range(len(edit.layers))]
    return digest([list(edit.layers), edit.positions, edit.site, factors])


def check_weights(folder: Path, backbone: HFBackbone) -> dict[str, Any]:
    """Checks that an export belongs to the weights it is about to be served with.

    Returns:
        The export's record.

    Raises:
        UserError: No record, or the edited matrices of this model are others.
    """
    path = folder / RECORD
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
        layers, expected = tuple(record["layers"]), record["edited_weights"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); export the edit again.") from error
    if weights_hash(backbone, layers) != expected:
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
