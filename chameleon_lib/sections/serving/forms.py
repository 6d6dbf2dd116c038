"""The users' profiles stored, loaded again, and compiled to every form that is served.

Everything is written to a temporary folder and read back from there; each export is compared with
the hook by ``profiles.export`` before it counts. Bounds are those of ``profiles.agreement``.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pandas as pd

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.preferences import max_new_tokens
from chameleon_lib.errors import UserError
from chameleon_lib.kit.csvtext import round_sig
from chameleon_lib.profiles.agreement import View, distance, view
from chameleon_lib.profiles.export import Export, export_edit
from chameleon_lib.profiles.forms import check_form
from chameleon_lib.profiles.mixed import mixed_users
from chameleon_lib.profiles.peft_adapter import adapters
from chameleon_lib.profiles.store import ProfileStore
from chameleon_lib.sections.results import FAMILY_TITLES
from chameleon_lib.sections.serving.answers import Row, plain_prompts
from chameleon_lib.sections.serving.study import POOLED, Service

TITLES = {"peft": "PEFT adapter", "merged": "merged weights", "gguf": "GGUF adapter"}
SERVER_RANK = 8  # the smallest that vLLM takes beside 1
PADDED = f"peft, rank {SERVER_RANK}"
_PROMPTS = 3


@dataclass(frozen=True)
class Shipped:
    """What came out of the compiler.

    Attributes:
        backbone: The base.
        exports: (profile, form) → export.
        untouched: (profile, form) → whether the base answered bit for bit as before while the
            adapter was loaded and disabled (``peft``), or after the export.
        stored: What of a profile lies in the store → bytes, for the first user.
        tensors: Form → bytes of its tensor files, for the first user.
        mixed: Answers of the one batch, served by PEFT from the exported files.
        refused: One sentence for every form that cannot carry an edit here.
    """

    backbone: HFBackbone
    exports: dict[tuple[str, str], Export] = field(default_factory=dict)
    untouched: dict[tuple[str, str], bool] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)
    tensors: dict[str, int] = field(default_factory=dict)
    mixed: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def ship(service: Service, rows: Sequence[Row]) -> Shipped:
    """Store, load and export every profile, and answer the batch from the exported files.

    Every profile becomes a PEFT adapter. Weights and GGUF are written for the first user and the
    pooled edit: of a large model every merged copy takes the space of the model.
    """
    study = service.study
    backbone = cast(HFBackbone, study.backbone)
    prompts = plain_prompts(service, [user.asks for user in service.served])[:_PROMPTS]
    ids = backbone.codec.prompts(prompts)
    before = view(backbone, ids, None)
    shipped = Shipped(backbone)
    first = service.served[0].name
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = ProfileStore(folder / "profiles")
        exported = {}
        for number, (name, profile) in enumerate(service.profiles.items()):
            key = profile.users[0] if len(profile.users) == 1 else name
            path = store.save(key, profile, all_layers=False)
            loaded = store.load(key, backbone)
            if name == first:
                shipped.stored["description (JSON)"] = path.stat().st_size
                shipped.stored["directions"] = store.info(key).bytes - path.stat().st_size
            forms = ["peft"] if name not in (first, POOLED) else [*TITLES, PADDED]
            for form in forms:
                kind = form.split(",")[0]
                try:
                    check_form(loaded.edit, backbone, kind)
                except UserError as reason:
                    shipped.refused.append(f"{name}, {TITLES[kind]}: {reason}")
                    continue
                target = folder / f"{kind}-{len(shipped.exports)}"
                rank = SERVER_RANK if form == PADDED else 2
                shipped.exports[name, form] = export_edit(
                    loaded, backbone, target,
                    form=kind, rank=rank, base_model=backbone.name, prompts=prompts,
                )  # fmt: skip
                shipped.untouched[name, form] = _untouched(backbone, kind, target, ids, before)
                if name == first:
                    shipped.tensors[form] = _tensor_bytes(target)
                if form == "peft":
                    exported[name] = (f"u{number}", target)  # PEFT takes no blanks in names
        if {row.profile for row in rows if row.profile} <= set(exported):
            limit = max_new_tokens(study.task, study.settings)
            with mixed_users(backbone, dict(exported.values())) as batch:
                users = [exported[row.profile][0] if row.profile else None for row in rows]
                prompts = [row.prompt for row in rows]
                shipped.mixed.extend(batch.generate(prompts, users, max_new_tokens=limit))
    return shipped


def _untouched(
    backbone: HFBackbone, kind: str, folder: Path, ids: list[list[int]], before: View
) -> bool:
    if kind != "peft":
        return distance(before, view(backbone, ids, None)) == 0
    with adapters(backbone, {"edit": folder}) as model, model.disable_adapter():
        return distance(before, view(backbone, ids, None)) == 0


def _tensor_bytes(folder: Path) -> int:
    """Bytes of the files that hold tensors; names and texts beside them are not counted."""
    found = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf")]
    return sum(path.stat().st_size for path in found)


def decade(error: float) -> float:
    """The power of ten that an error stays below: its digits differ from machine to machine."""
    return 0.0 if error == 0 else 10.0 ** math.ceil(math.log10(error))


def agreement_table(service: Service, shipped: Shipped) -> pd.DataFrame:
    """One row per form: how far it is from the hook, over the profiles that were exported."""
    rows = []
    for form in [*TITLES, PADDED]:
        found = {name: e for (name, kind), e in shipped.exports.items() if kind == form}
        if not found:
            continue
        checks = [export.agreement for export in found.values()]
        rows.append(
            {
                "family": FAMILY_TITLES[shipped.backbone.family],
                "form": TITLES.get(form, f"PEFT adapter padded to rank {SERVER_RANK}"),
                "profiles": len(found),
                "smallest effect of an edit": round_sig(min(c.effect for c in checks), 2),
                "difference from the hook, below": decade(max(c.error for c in checks)),
                "allowed": round_sig(min(c.bound for c in checks), 2),
                "same greedy tokens": sum(c.tokens for c in checks if c.same_tokens),
                "greedy tokens": sum(c.tokens for c in checks),
                "base bit for bit": all(shipped.untouched[name, form] for name in found),
                "n": len(service.served),
                "seeds": 1,
            }
        )
    return pd.DataFrame(rows)
