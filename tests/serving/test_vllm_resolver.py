"""The resolver against the interface that vLLM 0.33.0 publishes; vLLM itself is not installed.

The three names below stand for ``vllm.lora.resolver`` and ``vllm.lora.request``, with the
signatures and the checks that are public there. ``Front`` asks as vLLM's front end does: once per
name, which it then keeps; ``Worker`` reads a path again when it has no room for all adapters.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import load_file

from chameleon_lib.cli import main
from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import root
from chameleon_lib.serving.adapter import CONFIG, WEIGHTS, adapters
from chameleon_lib.serving.agreement import PROBES, distance, view
from chameleon_lib.serving.shards import write_groups
from chameleon_lib.serving.vllm_resolver import (
    LENGTH,
    AdapterFolder,
    register,
    resolver,
    unload_at,
)
from tests.serving.small import backbone
from tests.serving.test_sharded import an_edit, filled

VLLM = "0.33.0"
BASE = "BASE"


class LoRAResolver(ABC):
    @abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any: ...


class Registry:
    def __init__(self) -> None:
        self.resolvers: dict[str, LoRAResolver] = {}

    def register_resolver(self, resolver_name: str, resolver: LoRAResolver) -> None:
        assert isinstance(resolver, LoRAResolver)
        self.resolvers[resolver_name] = resolver


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""

    def __post_init__(self) -> None:
        assert self.lora_int_id >= 1 and self.lora_path


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """vLLM as far as a resolver sees it."""
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.resolver",
                                                   "vllm.lora.request")}  # fmt: skip
    found = Registry()
    vars(modules["vllm.lora.resolver"]).update(
        LoRAResolver=LoRAResolver, LoRAResolverRegistry=found
    )
    vars(modules["vllm.lora.request"]).update(LoRARequest=LoRARequest)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


@pytest.fixture(autouse=True)
def bases(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base that a name stands for, a new one each time: the resolver empties its own."""
    from tests.demo.small import small_backbone

    def opened(name: str, dtype: str) -> Any:
        assert dtype == "auto"
        return small_backbone("mistral", 0 if name == BASE else 1)

    monkeypatch.setattr("chameleon_lib.serving.vllm_resolver.open_base", opened)


class Front:
    """vLLM's front end and worker: what is resolved is kept by name, and read with each request."""

    def __init__(self, resolver: LoRAResolver) -> None:
        self.resolver, self.known = resolver, dict[str, LoRARequest]()

    def ask(self, model: str, base: str = BASE) -> str:
        """The path that a request for a model is answered from; empty for 404."""
        if model not in self.known:
            found = asyncio.run(self.resolver.resolve_lora(base, model))
            if found is None:
                return ""
            assert found.lora_name == model
            self.known[model] = found
        path = Path(self.known[model].lora_path)
        assert load_file(path / WEIGHTS)  # a path that is gone ends vLLM's engine
        return str(path)

    def unload(self, name: str) -> bool:
        self.known.pop(name, None)
        return True


@pytest.fixture
def served(tmp_path: Path) -> Iterator[AdapterFolder]:
    filled(tmp_path / "store", users=40)
    found = AdapterFolder(tmp_path / "store", tmp_path / "adapters", every_token=True, prove=False)
    yield found
    found.close()


def test_names_have_one_length_and_none_is_part_of_another(served: AdapterFolder) -> None:
    names = [served.name_of(f"user{at}") for at in range(40)]
    given = {name for name in names if name is not None}
    assert names[0] is not None and names[0].startswith("g-group-0000-v")  # the nearest group's
    assert served.name_of("nobody") is None and served.name_of("user30") == names[0]
    assert {len(name) for name in given} == {LENGTH}
    assert not any(one in other for one in given for other in given if one != other)
    assert not any("user" in name for name in given)


@pytest.mark.parametrize("user", ["user1", "user0"])
def test_an_adapter_answers_like_the_hook(served: AdapterFolder, user: str) -> None:
    name = served.name_of(user)
    assert name is not None
    front = Front(resolver(served))
    path = Path(front.ask(name))
    assert path == served.folder / name
    config = json.loads((path / CONFIG).read_text())
    assert config["base_model_name_or_path"] == BASE and config["r"] == config["lora_alpha"] == 2
    edit = replace(an_edit(1 if user == "user1" else 1000), positions="all")
    base, ids = backbone(), backbone().codec.prompts(list(PROBES))
    hook = view(base, ids, edit)
    with adapters(base, [path]):
        found = view(base, ids, None, forced=hook.tokens)
    effect = distance(hook, view(base, ids, None, forced=hook.tokens))
    assert distance(hook, found) <= 2e-5 * max(1, effect) and effect > 0.01


def test_no_clients_text_becomes_a_path(served: AdapterFolder, tmp_path: Path) -> None:
    right = served.name_of("user1")
    assert right is not None
    number = str(int(right[-20:]) ^ 1).zfill(20)
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "user1").mkdir()
    texts = ["", "user1", "../store", "/etc/passwd", right[:-1], right + "0", right.upper(),
             right[:-20] + number, "u-" + "0" * 32 + "-v" + "0" * 20, "g-group-0009-v" + "1" * 42,
             f"../adapters/{right}", right.replace("-v", "/v"), "\0" * LENGTH,
             "u-" + "٣" * 32 + "-v" + "0" * 20]  # fmt: skip
    front = Front(resolver(served))
    before = sorted(tmp_path.rglob("*"))
    assert [front.ask(text) for text in texts] == [""] * len(texts)
    assert sorted(tmp_path.rglob("*")) == before
    assert front.ask(right, base="another base") == ""  # of other weights


def test_a_new_fit_has_a_new_name_and_the_old_one_is_served_no_more(
    served: AdapterFolder,
) -> None:
    front, old = Front(resolver(served)), served.name_of("user0")
    assert old is not None and front.ask(old)
    store = served.store
    write_groups(store.root, [replace(store.groups[0], edit=an_edit(77)), store.groups[1]],
                 store.manifest)  # fmt: skip
    new = served.name_of("user0")
    assert new is not None and new != old and front.ask(new)
    assert Front(front.resolver).ask(old) == ""  # whoever has not kept it


def test_a_forgotten_user_is_found_in_the_folder(served: AdapterFolder) -> None:
    front, name = Front(resolver(served)), served.name_of("user1")
    group = served.name_of("user0")
    assert name is not None and group is not None and front.ask(name) and front.ask(group)
    done = served.store.forget("user1")
    assert done.exports == [served.folder / name] and not (served.folder / name).exists()
    assert done.stale_exports == []  # user1 is of group 1
    assert served.store.forget("user2").stale_exports == [served.folder / group]
    front.known.clear()
    assert front.ask(name) == "" and front.ask(group) == ""


def test_the_folder_is_bounded_and_no_path_goes_while_vllm_may_read_it(
    served: AdapterFolder,
) -> None:
    served.capacity, served.grace = 4, 3600.0
    front = Front(resolver(served))
    names = [str(served.name_of(f"user{at}")) for at in range(1, 9)]
    assert [bool(front.ask(name)) for name in names] == [True] * 4 + [False] * 4
    assert all(front.ask(name) for name in names[:4])  # they are still there


def test_the_longest_unasked_is_unloaded_and_then_removed(served: AdapterFolder) -> None:
    served.capacity, served.grace = 4, 0.0
    told: list[str] = []
    front = Front(LoRAResolver.__new__(type("_", (LoRAResolver,), {"resolve_lora": None})))

    def unload(name: str) -> bool:
        told.append(name)
        return front.unload(name)

    front.resolver = resolver(served, unload)
    names = [str(served.name_of(f"user{at}")) for at in range(1, 9)]
    for name in names:
        assert front.ask(name)
        assert len([*served.folder.glob("u-*")]) <= 4
    assert told == names[:6]
    assert all(front.ask(name) for name in front.known)
    assert front.ask(names[0])  # asked for again, compiled again
    assert (served.folder / names[0]).is_dir()


def test_a_name_that_vllm_did_not_unload_stays(served: AdapterFolder) -> None:
    served.capacity, served.grace = 2, 0.0
    front = Front(resolver(served, lambda _: False))
    names = [str(served.name_of(f"user{at}")) for at in range(1, 5)]
    assert [bool(front.ask(name)) for name in names] == [True, True, False, False]
    assert front.ask(names[0])


def test_a_folder_is_one_servers_and_its_next_run_starts_with_none(
    served: AdapterFolder, caplog: pytest.LogCaptureFixture
) -> None:
    name = str(served.name_of("user1"))
    assert Front(resolver(served)).ask(name)
    foreign = served.folder / "mine"
    foreign.mkdir()
    second = AdapterFolder(served.root, served.folder, every_token=True, prove=False)
    assert Front(resolver(second)).ask(name) == "" and "another server's" in caplog.text
    served.close()
    other = str(served.name_of("user2"))
    assert Front(resolver(second)).ask(other)
    assert not (served.folder / name).exists() and foreign.is_dir()
    second.close()


def test_the_first_request_proves_the_form_and_lets_the_other_weights_go(tmp_path: Path) -> None:
    filled(tmp_path / "store", users=5)
    found = AdapterFolder(tmp_path / "store", tmp_path / "adapters", every_token=True)
    name = found.name_of("user1")
    assert name is not None and found.compiled(name, BASE)
    assert found._base is not None
    kept = [parameter.numel() for parameter in found._base.model.parameters()]
    assert sum(kept) == sum(
        int(projection.weight.numel())
        for projection in (backbone().model.model.layers[at].mlp.down_proj
                           for at in range(backbone().n_layers))
    )  # fmt: skip
    assert sorted(path.name for path in found.folder.iterdir()) == ["lock", name]
    found.close()


def test_an_edit_that_no_adapter_carries_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path / "store", users=5)
    found = AdapterFolder(tmp_path / "store", tmp_path / "adapters", prove=False)
    name = found.name_of("user1")
    if an_edit(1).positions == "all":
        pytest.skip("the small store's edits are of all positions")
    assert Front(resolver(found)).ask(str(name)) == "" and "edit_positions last" in caplog.text
    found.close()


def test_vllm_is_told_over_http_and_may_have_unloaded_it_already() -> None:
    seen: list[tuple[str, Any, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            entry = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, entry, self.headers.get("Authorization")))
            status = {"here": 200, "gone": 404}.get(entry["lora_name"], 500)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    unload = unload_at(f"http://127.0.0.1:{server.server_port}/", "key")
    assert [unload(name) for name in ("here", "gone", "broken")] == [True, True, False]
    assert seen[0] == ("/v1/unload_lora_adapter", {"lora_name": "here"}, "Bearer key")
    server.shutdown()
    server.server_close()
    assert unload("here") is False


def test_vllm_finds_the_entry_point_which_needs_a_store(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((root() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = project["entry-points"]["vllm.general_plugins"]
    module, _, name = points["chameleon_lora_resolver"].partition(":")
    assert getattr(import_module(module), name) is register
    for variable in ("STORE", "ADAPTERS", "CAPACITY", "POSITIONS"):
        monkeypatch.delenv(f"CHAMELEON_{variable}", raising=False)
    register()
    assert not registry.resolvers
    monkeypatch.setenv("CHAMELEON_STORE", str(tmp_path / "store"))
    with pytest.raises(UserError, match="CHAMELEON_ADAPTERS"):
        register()
    monkeypatch.setenv("CHAMELEON_ADAPTERS", str(tmp_path / "adapters"))
    register()
    assert list(registry.resolvers) == ["chameleon"]
    assert not any(tmp_path.iterdir())  # nothing is opened before a name is asked for
    monkeypatch.setenv("CHAMELEON_CAPACITY", "many")
    with pytest.raises(UserError, match="CHAMELEON_CAPACITY takes a number"):
        register()


def test_the_docs_say_which_version_and_that_it_ran_nowhere() -> None:
    said = " ".join((import_module("chameleon_lib.serving.vllm_resolver").__doc__ or "").split())
    assert f"vLLM {VLLM}" in said and "on no GPU" in said and "Who authorises" in said


def test_a_gateway_is_told_the_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path, users=5)
    expected = AdapterFolder(tmp_path, tmp_path / "x").name_of("user1")
    assert main(["profiles", "served", "user1", "--store", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == expected
    assert main(["profiles", "served", "nobody", "--store", str(tmp_path)]) == 0
    assert "base model itself" in capsys.readouterr().out
