"""What the client of the model hub would find here: cache, token, network. No token is read."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from pathlib import Path

_TIMEOUT = 5  # seconds until the hub counts as out of reach
_TRUE = ("1", "on", "yes", "true")


def home() -> Path:
    """Folder of the hub's client, as its own variables name it."""
    own = os.environ.get("HF_HOME")
    if own:
        return Path(own).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches).expanduser() if caches else Path.home() / ".cache") / "huggingface"


def cache() -> Path:
    """Folder of the models that were downloaded."""
    own = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(own).expanduser() if own else home() / "hub"


def in_cache(model: str) -> bool:
    """Whether a snapshot of a model is complete: configuration, and every file of its weights."""
    if model.startswith("demo:"):
        return True
    snapshots = cache() / f"models--{model.replace('/', '--')}" / "snapshots"
    return any(_complete(folder) for folder in snapshots.glob("*"))


def _complete(folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return True
        try:
            index = json.loads((folder / f"{name}.index.json").read_text(encoding="utf-8"))
            shards = set(index["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            continue
        if shards and all((folder / shard).is_file() for shard in shards):
            return True
    return False


def has_token() -> bool:
    """Whether an access token of the hub is set or stored."""
    if os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return True
    stored = Path(os.environ.get("HF_TOKEN_PATH") or home() / "token").expanduser()
    return stored.is_file() and stored.stat().st_size > 0


def endpoint() -> str:
    """Address of the hub or of its mirror."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def answers() -> bool:
    """Whether the hub can be reached; any answer counts, also a refusal."""
    try:
        request = urllib.request.Request(endpoint(), method="HEAD")
        with urllib.request.urlopen(request, timeout=_TIMEOUT):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def kept_offline() -> bool:
    """Whether the client's own switch forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE
