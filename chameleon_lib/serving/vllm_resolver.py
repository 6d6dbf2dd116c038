"""A store behind vLLM: its plug-in point ``LoRAResolver``, each user's adapter compiled on demand.

    export VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 VLLM_PLUGINS=chameleon_lora_resolver
    export CHAMELEON_STORE=store CHAMELEON_ADAPTERS=adapters VLLM_URL=http://127.0.0.1:8000
    vllm serve BASE --enable-lora --max-lora-rank 8 --lora-target-modules down_proj

Written against the interface of vLLM 0.33.0 as published (``vllm.lora.resolver``), and tested
against that alone: **it has not run in vLLM, and on no GPU.**

Who authorises. vLLM knows no users: whoever reaches it may ask for any model, and ``/v1/models``
lists the names of all adapters that were loaded. So a gateway of yours stands before it: it knows
who asks, writes :meth:`AdapterFolder.name_of` into ``model``, refuses a client's own ``model``, and
keeps ``/v1/models`` and ``/v1/*_lora_adapter`` to itself.

A served name is the user's (or group's) name in the store and a hash of what is compiled, 56
characters in all. No name is part of another, which PEFT needs; a new fit has a new name, so that
no server answers from prefixes cached under the old one; and a client's text is compared with such
a name, never joined to a path.

vLLM asks once per name, keeps the path, and reads it again whenever the adapter was crowded out of
its memory; a path that is gone then ends its engine. So a folder is removed only after vLLM was
told to unload its name (at ``VLLM_URL``), and after ``grace`` seconds, in which what was running
ends. Where vLLM cannot be told, nothing is removed: a full folder serves no further users.

The factors hold the base's own matrices. So the server's process reads the base once, in memory of
its own, and keeps the edited projections alone. ``CHAMELEON_POSITIONS=all`` serves a decoder's edit
of the last position as one of all positions, which is another edit than the one that was fitted;
``CHAMELEON_CAPACITY`` (256) bounds the folder.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.families import model_family
from chameleon_lib.core.affine import AffineEdit
from chameleon_lib.core.backbone import same_weights
from chameleon_lib.core.edit import AnyEdit, Edit
from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest
from chameleon_lib.serving.adapter import write_adapter
from chameleon_lib.serving.export import check_form, edit_digest, export_edit
from chameleon_lib.serving.factors import compile_edit
from chameleon_lib.serving.files import model_name, remember_folder
from chameleon_lib.serving.folder import open_base, vllm_refusal
from chameleon_lib.serving.sharded import ShardedStore, open_store

log = logging.getLogger(__name__)

LENGTH = 56  # of a served name
_NAME = re.compile(r"(?:u-(?P<user>[0-9a-f]{32})|g-group-(?P<group>[0-9]{4,9}))-v[0-9]{20,}")
_LOCK, _PROOF = "lock", "proof"
_TOLD_IN = 10.0  # seconds in which vLLM must say that a name is unloaded


@dataclass
class _Compiled:
    """A folder; ``retired`` is when vLLM was told to unload it."""

    path: Path
    retired: float | None = None


class AdapterFolder:
    """Adapters of a store's users, compiled when they are asked for, in a folder of bounded size.

    Args:
        root: The store, which ``fit`` wrote.
        folder: Of this server alone; emptied of served names at the first request.
        capacity: Adapters in it, at most.
        grace: Seconds between an unloading and the removal of the folder.
        every_token: Serve an edit of the last position as one of all.
        dtype: Precision in which the base is read, see ``load_backbone``.
        prove: Compare the first adapter with the hook, and users with each other, before any is
            served (``export_edit``).
    """

    def __init__(
        self,
        root: str | Path,
        folder: str | Path,
        *,
        capacity: int = 256,
        grace: float = 600.0,
        every_token: bool = False,
        dtype: str = "auto",
        prove: bool = True,
    ) -> None:
        if capacity < 1:
            raise UserError(f"The folder's capacity is {capacity}; give 1 or more.")
        self.root, self.folder = Path(root), Path(folder).absolute()
        self.capacity, self.grace, self.every_token = capacity, grace, every_token
        self._dtype, self._prove = dtype, prove
        self._store: ShardedStore | None = None
        self._base: HFBackbone | None = None
        self._base_model = ""
        self._known: OrderedDict[str, _Compiled] = OrderedDict()
        self._lock = threading.RLock()
        self._held: IO[str] | None = None

    @property
    def store(self) -> ShardedStore:
        """The store, opened when it is first needed.

        Raises:
            UserError: It is none that ``fit`` wrote.
        """
        if self._store is None:
            store = open_store(self.root)
            if not isinstance(store, ShardedStore):
                raise UserError(
                    f"{self.root} is a folder of profiles; export it, and serve the exports."
                )
            self._store = store
        return self._store

    def name_of(self, user: str) -> str | None:
        """What a gateway asks vLLM for on behalf of a user; None for the base itself."""
        found = self.store.answering(user)
        if found.edit is None:
            return None
        return self._served(found.group if found.source == "group" else found.user)

    def compiled(self, name: str, base_model: str) -> Path | None:
        """The folder of a served name; None if the store has no such edit, now or any more.

        Args:
            name: What a client asked for; any text.
            base_model: What vLLM was started with: a folder or a hub id.

        Raises:
            UserError: The base is none that the store was fitted on, or vLLM cannot serve it; the
                folder is another server's; or the edit is none that an adapter can carry.
        """
        if len(name) != LENGTH or not (match := _NAME.fullmatch(name)):
            return None
        with self._lock:
            key = match["user"]
            owner = self.store.name_of(bytes.fromhex(key)) if key else f"group-{match['group']}"
            edit = self._edit_of(owner)
            if edit is None or self._served(owner, edit) != name:
                return None
            base = self._opened(base_model)
            entry = self._known.get(name)
            if entry is not None and entry.path.is_dir():
                entry.retired = None
                self._known.move_to_end(name)
                return entry.path
            self._known.pop(name, None)
            self._remove_retired()
            if len(self._known) >= self.capacity:
                log.warning(
                    "%s holds %d adapters, its capacity, so %s is not served; raise "
                    "CHAMELEON_CAPACITY, or give VLLM_URL so that others can be unloaded.",
                    self.folder, self.capacity, name,
                )  # fmt: skip
                return None
            path = self._written(name, edit, base)
            self._known[name] = _Compiled(path)
            return path

    def surplus(self) -> list[str]:
        """Names that vLLM should unload, the longest unasked first: above three quarters."""
        with self._lock:
            live = [name for name, entry in self._known.items() if entry.retired is None]
            return live[: max(0, len(live) + 1 - max(1, self.capacity * 3 // 4))]

    def retire(self, name: str) -> None:
        """vLLM has unloaded a name: its folder goes once the grace is over."""
        with self._lock:
            if name in self._known:
                self._known[name].retired = time.monotonic()

    def close(self) -> None:
        """Let another server have the folder."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def _edit_of(self, owner: str) -> AnyEdit | None:
        """The edit of a user, by pseudonym, or of a group; None if there is none to be served."""
        if owner.startswith("group-"):
            group = self.store.group(int(owner.removeprefix("group-")))
            if group is not None and group.forgotten:
                log.warning("%s holds forgotten users and is not served; fit it again.", owner)
                return None
            edit: AnyEdit | None = None if group is None else group.edit
        else:
            found = self.store.answering(owner)
            edit = found.edit if found.source == "own" else None
        if self.every_token and isinstance(edit, Edit | AffineEdit):
            return replace(edit, positions="all")
        return edit

    def _served(self, owner: str, edit: AnyEdit | None = None) -> str | None:
        edit = self._edit_of(owner) if edit is None else edit
        if edit is None:
            return None
        group = owner if owner.startswith("group-") else ""
        name = model_name(group, owner.rpartition(":")[2])
        weights = self.store.manifest.fingerprint.partition("@")[0]
        digits = str(int(digest([edit_digest(edit), weights]), 16)).zfill(78)
        return f"{name}-v{digits[-(LENGTH - len(name) - 2):]}"

    def _opened(self, base_model: str) -> HFBackbone:
        """The base, reduced to what compiling needs; the folder is this server's from here on."""
        if self._base is not None:
            if base_model != self._base_model:
                raise UserError(
                    f"{self.folder} serves {self._base_model}, not {base_model}; start one server "
                    "per base, each with a folder of its own."
                )
            return self._base
        self._take_folder()
        base = open_base(base_model, self._dtype)
        found = self.store.manifest
        if not same_weights(found.fingerprint, base.fingerprint):
            raise UserError(
                f"The edits of {self.root} were fitted on {found.backbone} "
                f"({found.fingerprint[:12]}), and {base_model} is another model "
                f"({base.fingerprint[:12]}); serve that one."
            )
        if reason := vllm_refusal(base):
            raise UserError(reason)
        if self._prove:
            self._proven(base)
        _reduce(base)
        self._base, self._base_model = base, base_model
        return base

    def _proven(self, base: HFBackbone) -> None:
        """Compares an adapter of this store with the hook, and its rows with other users'."""
        infos = self.store.infos()
        edits = (self._edit_of(i.group or self.store.name_of(bytes.fromhex(i.id))) for i in infos)
        edit = next((edit for edit in edits if edit is not None), None)
        if isinstance(edit, Edit | AffineEdit):
            export_edit(edit, base, self.folder / _PROOF)
            shutil.rmtree(self.folder / _PROOF)

    def _take_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._held is None:
            held = (self.folder / _LOCK).open("a")
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.close()
                raise UserError(
                    f"{self.folder} is another server's; give each a folder of its own "
                    "(CHAMELEON_ADAPTERS)."
                ) from None
            self._held = held
        # Before the first adapter is: forgetting a user must find what is left of this run.
        remember_folder(self.root, self.folder)
        for path in self.folder.iterdir():  # an earlier server's, which nobody asks for any more
            name = path.name.lstrip(".").partition(".")[0]
            if name == _PROOF or _NAME.fullmatch(name):
                shutil.rmtree(path)

    def _remove_retired(self) -> None:
        now = time.monotonic()
        for name, entry in list(self._known.items()):
            if entry.retired is not None and now - entry.retired >= self.grace:
                shutil.rmtree(entry.path, ignore_errors=True)
                del self._known[name]

    def _written(self, name: str, edit: AnyEdit, base: HFBackbone) -> Path:
        assert isinstance(edit, Edit | AffineEdit)
        check_form(edit, base, "peft")
        path = self.folder / name
        temporary = self.folder / f".{name}.partial-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        write_adapter(temporary, compile_edit(edit, base).updates, base,
                      base_model=self._base_model)  # fmt: skip
        temporary.rename(path)
        return path


def _reduce(base: HFBackbone) -> None:
    """Lets go of all weights but the projections that edits change."""
    pattern = model_family(base.model.config.model_type).projection
    names = tuple(f"{pattern.format(i=layer)}." for layer in range(base.n_layers))
    for name, parameter in base.model.named_parameters():
        if not name.startswith(names):
            parameter.data = parameter.data.new_empty(0)


# --- in vLLM --------------------------------------------------------------------------------------


def unload_at(url: str, key: str = "") -> Callable[[str], bool]:
    """Tells a vLLM server to unload a name: ``POST /v1/unload_lora_adapter``.

    Args:
        url: Of the server.
        key: Its ``VLLM_API_KEY``.

    Returns:
        From a name to whether the server has it no more.
    """

    def unload(name: str) -> bool:
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        data = json.dumps({"lora_name": name}).encode()
        request = urllib.request.Request(
            f"{url.rstrip('/')}/v1/unload_lora_adapter", data=data, headers=headers
        )
        try:
            with urllib.request.urlopen(request, timeout=_TOLD_IN):
                return True
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return True
            log.warning("%s did not unload %s (%s).", url, name, error)
        except OSError as error:
            log.warning("%s cannot be told to unload %s (%s).", url, name, error)
        return False

    return unload


def resolver(
    adapters: AdapterFolder, unload: Callable[[str], bool] | None = None
) -> Any:  # a vllm.lora.resolver.LoRAResolver, which is there in vLLM alone
    """The resolver that vLLM asks for every model name that it does not know.

    Args:
        adapters: What compiles.
        unload: Tells vLLM to unload a name; None where it cannot be told.
    """
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver

    class ChameleonResolver(LoRAResolver):  # type: ignore[misc, unused-ignore]
        """Finds adapters in a store of edits."""

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
            """The adapter of a served name, or None; in a thread, so that the server goes on."""
            path = await asyncio.to_thread(_resolved, adapters, unload, base_model_name, lora_name)
            if path is None:
                return None
            number = int(digest(lora_name)[:7], 16) + 1  # vLLM puts one of its own in its place
            return LoRARequest(lora_name=lora_name, lora_int_id=number, lora_path=str(path))

    return ChameleonResolver()


def _resolved(
    adapters: AdapterFolder, unload: Callable[[str], bool] | None, base_model: str, name: str
) -> Path | None:
    try:
        path = adapters.compiled(name, base_model)
    except UserError as error:
        log.error("%s", error)
        return None
    if path is not None and unload is not None:
        for other in adapters.surplus():
            if other != name and unload(other):
                adapters.retire(other)
    return path


def register() -> None:
    """The entry point ``vllm.general_plugins``; does nothing unless ``CHAMELEON_STORE`` is set.

    vLLM calls it in all of its processes, so nothing is opened before the first name is asked for.

    Raises:
        UserError: ``CHAMELEON_ADAPTERS`` is missing, or a value is none.
    """
    given = os.environ
    if not given.get("CHAMELEON_STORE"):
        return
    if not given.get("CHAMELEON_ADAPTERS"):
        raise UserError("CHAMELEON_STORE needs CHAMELEON_ADAPTERS: a folder of this server alone.")
    capacity, positions = given.get("CHAMELEON_CAPACITY", "256"), given.get("CHAMELEON_POSITIONS")
    if not capacity.isdecimal() or positions not in (None, "", "as_fitted", "all"):
        raise UserError(
            "CHAMELEON_CAPACITY takes a number and CHAMELEON_POSITIONS as_fitted or all, not "
            f"{capacity!r} and {positions!r}."
        )
    from vllm.lora.resolver import LoRAResolverRegistry

    adapters = AdapterFolder(
        given["CHAMELEON_STORE"], given["CHAMELEON_ADAPTERS"], capacity=int(capacity),
        every_token=positions == "all", dtype=given.get("CHAMELEON_DTYPE", "auto"),
    )  # fmt: skip
    url = given.get("VLLM_URL", "")
    unload = unload_at(url, given.get("VLLM_API_KEY", "")) if url else None
    LoRAResolverRegistry.register_resolver("chameleon", resolver(adapters, unload))
