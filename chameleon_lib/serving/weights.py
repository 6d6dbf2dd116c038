"""Profiles of edits of weights: what an editor wrote for one user, to be kept, exported, forgotten.

    with editor.edit(*requests) as undo:
        profile = WeightProfile.of(undo, backbone)
    ProfileStore("profiles").save("alice", profile)

Only numbers are kept: the matrices that were added, or their factors. Neither the question nor the
answer that was taught stands in the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.editors import Change, Undo, WeightEdit
from chameleon_lib.errors import UserError
from chameleon_lib.serving.files import AGAIN, Stored

WEIGHTS = "weights"  # what such a profile's file calls its kind


@dataclass(frozen=True, eq=False)
class WeightProfile:
    """An edit of weights with what it was made for; see ``core.fitting.EditProfile``.

    Attributes:
        edit: What was added to which weights.
        backbone: Name and fingerprint of the model before it was edited.
        revision: Of the model on the hub, or empty.
        users: Whose preference it is.
        requests: How many questions were taught.
    """

    edit: WeightEdit
    backbone: tuple[str, str]
    revision: str = ""
    users: tuple[str, ...] = ()
    requests: int = 1

    @classmethod
    def of(cls, undo: Undo, backbone: HFBackbone) -> WeightProfile:
        """The profile of an edit that is in the model, and the only one in it."""
        return cls(
            undo.written(), (backbone.name, backbone.fingerprint), backbone.revision,
            requests=len(undo.traces),
        )  # fmt: skip

    def stored(self, users: Sequence[str]) -> Stored:
        """As its file holds it; the pseudonyms ``users`` take the place of its user ids."""
        name, fingerprint = self.backbone
        modules, arrays = list[str](), dict[str, Tensor]()
        for at, change in enumerate(self.edit.changes):
            modules.append(change.module)
            parts = {"left": change.left, "right": change.right}
            arrays |= {f"edit/{at:04d}/{n}": part for n, part in parts.items() if part is not None}
        content = {
            "kind": WEIGHTS,
            "task": "preference",
            "backbone": {"name": name, "fingerprint": fingerprint, "revision": self.revision},
            "edit": {"editor": self.edit.editor, "modules": modules, "rank": self.edit.rank},
            "settings": {},
            "prompts": "",
            "pairs": {"different": self.requests, "identical": 0},
            "users": list(users),
        }
        return Stored(content, {n: part.detach().cpu().numpy() for n, part in arrays.items()})

    @classmethod
    def of_stored(cls, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> WeightProfile:
        """What :meth:`stored` wrote, its arrays without "edit/" before their names.

        Raises:
            KeyError: An array or entry is missing.
            UserError: There are arrays of other shapes than a change has.
        """
        changes = []
        for at, module in enumerate(content["edit"]["modules"]):
            left, right = tensors[f"{at:04d}/left"], tensors.get(f"{at:04d}/right")
            parts = [left] if right is None else [left, right]
            fits = right is None or (right.dim() == 2 and left.shape[-1] == len(right))
            if not fits or any(part.dim() != 2 for part in parts):
                raise UserError(f"what was added to {module} has a wrong shape; {AGAIN}.")
            changes.append(Change(module, left, right))
        if not changes:
            raise UserError(f"it changes no weight; {AGAIN}.")
        found = content["backbone"]
        return cls(
            WeightEdit(content["edit"]["editor"], tuple(changes)),
            (found["name"], found["fingerprint"]), found["revision"], tuple(content["users"]),
            content["pairs"]["different"],
        )  # fmt: skip
