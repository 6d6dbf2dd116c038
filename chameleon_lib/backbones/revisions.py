"""Which commit of a hub model a run really used, and the lock file that remembers it.

A hub name such as ``org/model`` is a moving target. The first download resolves it to a commit,
and the run writes down commit, configuration and weights beside its outputs. Later runs compare:
another commit is told in one sentence, or refused if the caller pinned a revision. A commit that
the hub cache does not tell stays unknown; none is ever made up.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.file_download import REGEX_COMMIT_HASH
from torch import Tensor
from transformers.utils.hub import cached_file

from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import display, replace_text

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
# Of a configuration: where it came from, and how weights are held that are hashed themselves.
_ASIDE = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


def hash_files(files: Sequence[Path], start: str = "") -> str:
    """SHA-256 of a word, then of the names and contents of files."""
    digest = hashlib.sha256(start.encode())
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(_CHUNK):
                digest.update(block)
    return digest.hexdigest()


def hash_state(model: Any, tokenizer: Any) -> str:
    """SHA-256 of configuration, tokenizer and the value of every weight that was loaded.

    Values count, not how they are held: neither shards, nor the format of the files, nor what lies
    beside them, nor the precision. Weights kept in bfloat16 are the same model in float32; weights
    of float32 that were rounded to bfloat16 are another.
    """
    from accelerate.utils import align_module_device  # costs a second, and most calls need none

    config = json.dumps(_without(model.config.to_dict()), sort_keys=True, default=str)
    digest = hashlib.sha256(config.encode())
    digest.update(_tokenizer_state(tokenizer).encode())
    for name, module in sorted(model.named_modules(remove_duplicate=False)):
        # Weights that a device map left on disk are brought in, module by module.
        with align_module_device(module):
            own: dict[str, Any] = {}
            module._save_to_state_dict(own, f"{name}.", keep_vars=False)
            for key, tensor in sorted(own.items()):
                value = _narrowed(tensor.detach().cpu()).contiguous()
                digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _without(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {key: _without(value) for key, value in config.items() if key not in _ASIDE}


def _tokenizer_state(tokenizer: Any) -> str:
    state = {"vocabulary": tokenizer.get_vocab()}
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state |= {"truncation": None, "padding": None}  # of the latest call, not of the tokenizer
    return json.dumps([state, tokenizer.special_tokens_map], sort_keys=True, default=str)


def _narrowed(value: Tensor) -> Tensor:
    """The same numbers in the first of bfloat16 and float32 that holds them exactly."""
    for dtype in (torch.bfloat16, torch.float32) if value.is_floating_point() else ():
        held = value.to(dtype)
        if torch.equal(held.to(value.dtype), value):
            return held
    return value


LOCK_NAME = "revisions.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the order in which transformers looks
_OTHERS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


@dataclass(frozen=True, slots=True)
class Revision:
    """What a hub name stood for."""

    model: str  # hub id
    # Commit of the hub repository, 40 hex digits, or None if the cache does not tell
    commit: str | None
    asked: str | None  # the revision that the caller pinned (a commit, tag or branch), or None
    config_sha256: str  # hash of ``config.json``
    # Hash of configuration, tokenizer and weights as they lie in the cache; empty until they are
    # there
    files_sha256: str = ""


def resolve(model: str, asked: str | None) -> tuple[Revision, Path]:
    """What a hub name stands for now, and the cache folder of that commit.

    Downloads the configuration alone, which is small.

    Raises:
        OSError: The hub cannot be reached, or has no such model or revision.
    """
    found = cached_file(model, "config.json", revision=asked)
    if found is None:
        raise OSError(f"{model} has no config.json")
    path = Path(found)
    # The folder name is the only place where the cache tells the commit; other names are no commit.
    commit = path.parent.name if REGEX_COMMIT_HASH.fullmatch(path.parent.name) else None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Revision(model, commit, asked, digest), path.parent


def loaded_files(folder: Path) -> list[Path]:
    """The files of a checkpoint folder that decide what is loaded from it.

    A hub cache may hold more, fetched by other programs: weights in other formats, notes. They are
    left out, since they are never read here.
    """
    chosen = [folder / name for name in _OTHERS if (folder / name).is_file()]
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [*chosen, folder / name]
        if index.is_file():
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [*chosen, *(folder / shard for shard in sorted(set(shards)))]
    return chosen


def read_lock(lock: Path) -> dict[str, dict[str, Any]]:
    """Entries of a lock file by model; empty if there is none yet.

    Raises:
        UserError: If it is not a lock file.
    """
    if not lock.is_file():
        return {}
    try:
        entries = json.loads(lock.read_text(encoding="utf-8"))
        if not all(isinstance(entry["earlier"], list) for entry in entries.values()):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{display(lock)} is not a record of model revisions; delete it, and the next run "
            "writes it again."
        ) from error
    found: dict[str, dict[str, Any]] = entries
    return found


def tell(lock: Path, now: Revision) -> None:
    """Says, before anything large is downloaded, that the outputs are of another commit.

    Raises:
        UserError: So they are, and the caller pinned a revision.
    """
    entry = read_lock(lock).get(now.model)
    if entry is None or entry["commit"] == now.commit:
        return
    known = entry["commit"]
    changed = (
        f"{now.model} is at revision {_short(now.commit)} now; earlier outputs beside "
        f"{display(lock)} were made with {_short(known)}"
    )
    if now.asked is not None:
        raise UserError(
            f"{changed}, and this run pins '{now.asked}': pin {known or 'nothing'}, or move "
            "the outputs away."
        )
    back = f"pin {known or 'one'} to go back"
    log.warning(f"{changed}, so results of the two do not compare; {back}.")


def record(lock: Path, now: Revision) -> None:
    """Writes the revision of a finished load; another commit before it is kept as ``earlier``.

    Raises:
        UserError: The commit is the one on record and its files are not.
    """
    entries = read_lock(lock)
    values = asdict(now)
    model = values.pop("model")
    before = entries.get(model)
    same = before is not None and before["commit"] == now.commit
    if before is not None and same and before["files_sha256"] != now.files_sha256:
        raise UserError(
            f"The files of {now.model} at revision {_short(now.commit)} are not those that "
            f"{display(lock)} records: delete them from the hub cache and download them again, or "
            "delete that record if you changed them yourself."
        )
    earlier: list[str | None] = [] if before is None else list(before["earlier"])
    if before is not None and not same:
        earlier.append(before["commit"])
    entries[model] = {**values, "earlier": earlier}
    text = json.dumps(entries, indent=1, sort_keys=True) + "\n"
    if not lock.is_file() or lock.read_text(encoding="utf-8") != text:
        replace_text(lock, text)


def told(lock: Path) -> list[tuple[str, str]]:
    """Rows for a table of provenance: model and revision, with what was used before."""
    rows = []
    for model, entry in sorted(read_lock(lock).items()):
        before = ", ".join(_short(commit) for commit in entry["earlier"])
        after = f" (earlier outputs: {before})" if before else ""
        rows.append((f"revision {model}", f"{_short(entry['commit'])}{after}"))
    return rows


def _short(commit: str | None) -> str:
    return "unknown" if commit is None else commit[:12]
