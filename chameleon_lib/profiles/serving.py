"""A folder of exports that stock servers load: one sub-folder per served model name.

``profiles.served`` describes the layout. Servers cache by path, so a changed profile gets a new
version and never overwrites the old one. An unchanged one is left alone, which is also how a killed
run resumes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.edit_profile import EditProfile
from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.progress import tell
from chameleon_lib.profiles.adapter_rules import check_adapter
from chameleon_lib.profiles.export import RECORD, edit_digest, edit_of, export_edit, served_name
from chameleon_lib.profiles.factors import RANK
from chameleon_lib.profiles.forms import server_refusal
from chameleon_lib.profiles.gguf_adapter import FILE
from chameleon_lib.profiles.served import INDEX, VERSION, read_index, versions, write_index

WEIGHTS = {"merged": "*.safetensors", "gguf": FILE}  # of the forms that are no PEFT adapter


@dataclass(frozen=True)
class Served:
    """One profile in the folder.

    Attributes:
        name: Its name without version.
        model: What requests ask for: the folder's name.
        new: Whether this run wrote it.
    """

    name: str
    model: str
    new: bool


class ServingFolder:
    """Exports of one base in one form.

    Args:
        folder: Made by the first export.
        backbone: The base.
        form: ``peft``, ``alora``, ``merged`` or ``gguf``.
        rank: Rank of the adapters.
        base_model: What the server calls the base.
        server: Keep that server's rules (``vllm`` | ``sglang``), or None.

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
        server: str | None = None,
    ) -> None:
        self.folder, self.backbone = folder, backbone
        self.form, self.rank, self.server = form, rank, server
        if server is not None:
            self._check_server(server)
        self.base_model = base_model or served_name(backbone)
        self.kind = {"base_model": self.base_model, "form": form}
        self.current = self._read_index()

    def _check_server(self, server: str) -> None:
        if self.form not in ("peft", "alora"):
            raise UserError(f"{server} loads PEFT adapters, not the form {self.form}; use peft.")
        reason = server_refusal(self.backbone, server, alora=self.form == "alora")
        if reason is not None:
            raise UserError(reason)

    def _read_index(self) -> dict[str, dict[str, Any]]:
        if not (self.folder / INDEX).exists():
            return {}
        kind, current = read_index(self.folder)
        if kind != self.kind:
            raise UserError(
                f"{self.folder} serves {kind['form']} exports of '{kind['base_model']}', not "
                f"{self.form} of '{self.base_model}'; give another folder."
            )
        return current

    def add(self, name: str, source: EditProfile | Edit) -> Served:
        """Exports a profile as a new version, unless its current version is this very edit, whole.

        Args:
            name: Letters, digits, ``-`` and ``_``: part of a path and of a request.
            source: A profile or an edit.

        Raises:
            UserError: A name that is no path part, an edit that the form cannot carry, or a new
                version that breaks the rules of its readers.
        """
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
            raise UserError(
                f"'{name}' cannot be the name of a served model; use letters, digits, - and _."
            )
        edit = edit_of(source, self.backbone)
        content = digest([edit_digest(edit), self.backbone.fingerprint, self.rank])
        known = self.current.get(name)
        if known is not None and known["content"] == content and self._stands(known["model"]):
            return Served(name, known["model"], new=False)
        model = f"{name}-v{max(self._versions(name), default=0) + 1:04d}"
        export_edit(
            source,
            self.backbone,
            self.folder / model,
            form=self.form,
            rank=self.rank,
            base_model=self.base_model,
        )
        self._check(model)
        self.current[name] = {"model": model, "content": content}
        self._write_index()
        return Served(name, model, new=True)

    def _stands(self, model: str) -> bool:
        """Whether a version is there and whole; a damaged one is told, since it gets a successor.
        """
        if not (self.folder / model).is_dir():
            return False
        try:
            self._check(model)
        except UserError as error:
            tell(f"{model} is damaged and gets a new version: {error}")
            return False
        return True

    def _check(self, model: str) -> None:
        """Raises a UserError unless a version keeps the rules of its readers."""
        path = self.folder / model
        if self.form in ("peft", "alora"):
            check_adapter(path, server=self.server, base_model=self.base_model)
            return
        for needed in (RECORD, WEIGHTS[self.form]):
            if not any(path.glob(needed)):
                raise UserError(f"{path} has no {needed}; export it again.")

    def _versions(self, name: str) -> list[int]:
        matches = (VERSION.fullmatch(path.name) for path in versions(self.folder, name))
        return [int(match["number"]) for match in matches if match]

    def stale(self, names: Iterable[str]) -> list[Path]:
        """Versions that are not current, and all versions of profiles other than ``names``."""
        kept = {self.current[name]["model"] for name in names if name in self.current}
        return [
            path
            for path in sorted(self.folder.iterdir())
            if path.is_dir() and VERSION.fullmatch(path.name) and path.name not in kept
        ]

    def prune(self, names: Iterable[str]) -> list[Path]:
        """Deletes what ``stale`` lists; a forgotten user's adapter goes this way."""
        wanted = set(names)
        gone = self.stale(wanted)
        self.current = {name: entry for name, entry in self.current.items() if name in wanted}
        self._write_index()
        for path in gone:
            shutil.rmtree(path)
        return gone

    def _write_index(self) -> None:
        write_index(self.folder, self.kind, self.current)
