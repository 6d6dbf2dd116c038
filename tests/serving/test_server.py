"""The example server: whose edit answers, who may ask, and what a request cannot do to others."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from chameleon_lib.core.edit import Edit
from chameleon_lib.errors import UserError
from chameleon_lib.serving.server import EDIT_HEADER, Service
from chameleon_lib.serving.sharded import ShardedStore
from chameleon_lib.serving.ticks import Ask, Full, Limits, Ticks, check_isolation
from chameleon_lib.serving.tokens import TOKENS, Tokens
from tests.serving.small import backbone
from tests.serving.test_sharded import an_edit, filled

PROMPT = "Which tag does this movie relate to? description: a robot learns to feel"
N = 5
OWN, GROUPED, REFUSED_GROUP, STRANGER = "user1", "user10", "user0", "nobody knows"
LIMITS = Limits(waiting=8, rows=8, characters=2000, new_tokens=16, body=20_000)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ShardedStore:
    """300 users; of those without an own edit the ones of group 0 are answered by its edit."""
    return filled(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def client(store: ShardedStore) -> Iterator[TestClient]:
    service = Service.of(store.root, backbone(), LIMITS)
    with TestClient(service.app(), raise_server_exceptions=False) as found:
        yield found


@pytest.fixture(scope="module")
def tokens(store: ShardedStore) -> dict[str, str]:
    made = Tokens(store.root)
    return {user: made.make(user) for user in (OWN, "user2", "user3", GROUPED, STRANGER)}


def asked(client: Any, token: str, path: str = "completions", **body: Any) -> Any:
    default: dict[str, Any] = {"model": backbone().name, "max_tokens": N}
    if path == "completions":
        default["prompt"] = PROMPT
    else:
        default["messages"] = [{"role": "user", "content": PROMPT}]
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return client.post(f"/v1/{path}", content=json.dumps({**default, **body}), headers=headers)


def alone(edit: Edit | None, prompt: str = PROMPT) -> str:
    return backbone().generate([prompt], max_new_tokens=N, edit=edit)[0]


@pytest.mark.parametrize(
    ("user", "edit", "source"),
    [(OWN, an_edit(1), "own"), ("user2", an_edit(2), "own"), (GROUPED, an_edit(1000), "group-0000"),
     (STRANGER, None, "base")],
)  # fmt: skip
def test_a_user_is_answered_by_the_own_edit_or_the_groups_or_the_base_and_told_which(
    client: TestClient, tokens: dict[str, str], user: str, edit: Edit | None, source: str
) -> None:
    found = asked(client, tokens[user], explain=True)
    entry = found.json()
    assert found.status_code == 200, entry
    assert entry["choices"][0]["text"] == alone(edit)
    assert found.headers[EDIT_HEADER] == source
    assert entry["system_fingerprint"] == f"{backbone().fingerprint[:12]}-{source}"
    assert {"own": "own edit", "group-0000": "group-0000", "base": "base answers"}[source] in (
        entry["explanation"]
    )
    chat = asked(client, tokens[user], "chat/completions").json()
    assert chat["choices"][0]["message"] == {"role": "assistant", "content": alone(edit)}
    assert "explanation" not in chat


def test_the_edits_of_this_test_answer_differently() -> None:
    assert len({alone(edit) for edit in (an_edit(1), an_edit(2), an_edit(1000), None)}) == 4


def test_usage_and_the_end_are_told(client: TestClient, tokens: dict[str, str]) -> None:
    entry = asked(client, tokens[OWN]).json()
    count = backbone().count_tokens(PROMPT)
    usage = entry["usage"]
    assert usage["prompt_tokens"] == count
    assert usage["total_tokens"] == count + usage["completion_tokens"]
    full = usage["completion_tokens"] >= N
    assert entry["choices"][0]["finish_reason"] == ("length" if full else "stop")


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer x", "Basic abc", "Bearer ../../etc/passwd", "Bearer {short}",
               "Bearer {other_secret}", "Bearer {unknown_id}"],
)  # fmt: skip
def test_a_wrong_token_gets_nothing_and_is_not_told_why(
    client: TestClient, tokens: dict[str, str], header: str
) -> None:
    number, _, secret = tokens[OWN].partition(".")
    header = header.format(
        short=tokens[OWN][:-1],
        other_secret=f"{number}.{tokens['user2'].partition('.')[2]}",
        unknown_id=f"{'0' * 16}.{secret}",
    )
    found = client.post("/v1/completions", content=b"{", headers={"Authorization": header})
    assert found.status_code == 401 and found.headers["WWW-Authenticate"] == "Bearer"
    assert found.json() == client.post("/v1/completions").json()
    assert client.get("/v1/models", headers={"Authorization": header}).status_code == 401


def test_another_users_name_gets_the_same_answer_whether_there_is_such_a_user_or_not(
    client: TestClient, tokens: dict[str, str], store: ShardedStore
) -> None:
    names = ["user2", "nobody at all", store.name_of(store.key_of("user2")), "",
             f"user:{store.pseudonyms.mark}:{'z' * 32}"]  # fmt: skip
    found = [asked(client, tokens[OWN], user=name) for name in names]
    assert {one.status_code for one in found} == {403}
    assert len({one.text for one in found}) == 1
    assert asked(client, tokens[OWN], user=OWN).status_code == 200
    models = [f"{backbone().name}/user2", "u-" + store.key_of("user2").hex(), "../store.json"]
    found = [asked(client, tokens[OWN], model=name) for name in models]
    assert {one.status_code for one in found} == {404} and len({one.text for one in found}) == 1


def test_the_store_holds_no_token_and_a_revoked_or_forgotten_one_gets_nothing(
    tmp_path: Path,
) -> None:
    store = filled(tmp_path, users=20)
    made = Tokens(tmp_path)
    first, second, other = made.make("user1"), made.make("user1"), made.make("user2")
    kept = (tmp_path / TOKENS).read_text()
    assert not any(part in kept for t in (first, other) for part in (t, t.split(".")[1], "user1"))
    assert (tmp_path / TOKENS).stat().st_mode & 0o077 == 0
    with TestClient(Service.of(tmp_path, backbone(), LIMITS).app()) as client:
        assert [asked(client, t).status_code for t in (first, second, other)] == [200] * 3
        assert store.forget("user1").tokens == 2
        assert [asked(client, t).status_code for t in (first, second, other)] == [401, 401, 200]
        again = made.make("user1")  # who was forgotten is a stranger
        assert asked(client, again).headers[EDIT_HEADER] == "base"
        assert made.revoke("user2") == 1
        assert asked(client, other).status_code == 401
    with pytest.raises(UserError, match="needs a user"):
        made.make(" ")
    (tmp_path / TOKENS).write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        made.user_of(first)


BAD: list[tuple[Any, int, str]] = [
    (b"", 400, "no JSON"),
    (b"{", 400, "no JSON"),
    (b"[]", 400, "no JSON object"),
    ('{"prompt": "x"}'.encode("utf-16"), 400, "no JSON"),
    (b"[" * 10_000, 400, "no JSON"),
    (b'{"max_tokens": NaN}', 400, "NaN"),
    (b" " * 30_000, 413, "longer than"),
    ({"prompt": 3}, 400, "'prompt'"),
    ({"prompt": " \n"}, 400, "empty"),
    ({"prompt": "x" * 3000}, 400, "characters"),
    ({"prompt": "\ud800"}, 400, "surrogate"),
    ({"prompt": ["a", "b"]}, 400, "'prompt'"),
    ({"max_tokens": 0}, 400, "between 1 and 16"),
    ({"max_tokens": 10**30}, 400, "max_tokens"),
    ({"max_tokens": True}, 400, "'max_tokens'"),
    ({"max_tokens": "5"}, 400, "'max_tokens'"),
    ({"stream": True}, 400, "come whole"),
    ({"temperature": 0.7}, 400, "greedy"),
    ({"n": 2}, 400, "one greedy answer"),
    ({"lora_path": "/etc/passwd"}, 400, "does not know"),
    ({"model": "../../etc/passwd"}, 404, "one model"),
    ({"model": 7}, 400, "'model'"),
]


@pytest.mark.parametrize(("body", "status", "words"), BAD)
def test_a_bad_request_gets_a_sentence(
    client: TestClient, tokens: dict[str, str], body: Any, status: int, words: str
) -> None:
    headers = {"Authorization": f"Bearer {tokens[OWN]}"}
    if isinstance(body, dict):
        body = json.dumps({"model": backbone().name, "prompt": PROMPT, "max_tokens": N, **body})
    found = client.post("/v1/completions", content=body, headers=headers)
    message = found.json()["error"]["message"]
    assert found.status_code == status and words in message
    assert len(message) < 400 and message.endswith(".") and "\n" not in message


@pytest.mark.parametrize(
    ("messages", "words"),
    [([], "'messages'"), ([{"role": "system", "content": "x"}], "role"),
     ([{"role": "user", "content": "x"}] * 2, "no dialogue"), ([{"role": "user"}], "needed"),
     ([{"role": "user", "content": [{"type": "text"}]}], "content")],
)  # fmt: skip
def test_a_dialogue_is_refused_in_a_sentence(
    client: TestClient, tokens: dict[str, str], messages: Any, words: str
) -> None:
    found = asked(client, tokens[OWN], "chat/completions", messages=messages)
    assert found.status_code == 400 and words in found.json()["error"]["message"]


def test_other_paths_and_methods(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    for path in ("/", "/docs", "/openapi.json", "/v1/load_lora_adapter", "/v1/../store.json"):
        found = client.get(path)
        assert found.status_code == 404 and found.json()["error"]["type"] == "not_found_error"
    assert client.get("/v1/completions").status_code == 405


# --- ticks ----------------------------------------------------------------------------------------


class Held:
    """The small backbone, whose calls wait until they are let go; notes each call's prompts."""

    def __init__(self) -> None:
        self.go, self.calls = threading.Event(), []  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Any:
        return getattr(backbone(), name)

    def generate(self, prompts: list[str], **named: Any) -> list[str]:
        self.calls.append(list(prompts))
        assert self.go.wait(20)
        if any("poison" in prompt for prompt in prompts):
            raise RuntimeError("no room")
        return backbone().generate(prompts, **named)


async def _held(asks: list[Ask], limits: Limits, cancel: tuple[int, ...] = ()) -> Any:
    """Send one request, the others while the model is at work with it, and cancel some of them."""
    model = Held()
    async with Ticks(model, limits) as ticks:  # type: ignore[arg-type]
        first = asyncio.create_task(ticks.ask(Ask(PROMPT, N, None)))
        while not model.calls:
            await asyncio.sleep(0.001)
        rest = [asyncio.create_task(ticks.ask(ask)) for ask in asks]
        await asyncio.sleep(0)
        for at in cancel:
            rest[at].cancel()
        model.go.set()
        found = await asyncio.gather(first, *rest, return_exceptions=True)
    return model.calls, found


def _texts(found: list[Any]) -> list[str]:
    return [one.text for one in found]


def test_what_arrives_while_the_model_works_is_one_batch_and_each_row_is_as_if_alone() -> None:
    edits = [an_edit(1), None, an_edit(2), None, an_edit(3)]
    prompts = [f"{PROMPT} {at}" for at in range(5)]
    asks = [Ask(prompt, N, edit) for prompt, edit in zip(prompts, edits, strict=True)]
    calls, (_, *found) = asyncio.run(_held(asks, LIMITS))
    assert calls[1:] == [prompts]
    assert _texts(found) == [alone(*one) for one in zip(edits, prompts, strict=True)]


def test_an_aborted_request_is_dropped_and_harms_no_neighbour() -> None:
    edits = [an_edit(1), an_edit(2), None, an_edit(3)]
    prompts = [f"{PROMPT} {at}" for at in range(4)]
    asks = [Ask(prompt, N, edit) for prompt, edit in zip(prompts, edits, strict=True)]
    calls, (_, *found) = asyncio.run(_held(asks, LIMITS, cancel=(1,)))
    assert calls[1:] == [[prompts[0], *prompts[2:]]]
    assert isinstance(found.pop(1), asyncio.CancelledError)
    kept = [(edits[at], prompts[at]) for at in (0, 2, 3)]
    assert _texts(found) == [alone(*one) for one in kept]


def test_a_request_that_ends_its_batch_fails_alone() -> None:
    asks = [Ask(PROMPT, N, an_edit(1)), Ask("poison", N, an_edit(2)), Ask(PROMPT, N, None)]
    _, (_, *found) = asyncio.run(_held(asks, LIMITS))
    assert isinstance(found.pop(1), RuntimeError)
    assert _texts(found) == [alone(an_edit(1)), alone(None)]


def test_answers_of_several_lengths_and_kinds_of_edits_are_calls_of_one_tick() -> None:
    own, weak = an_edit(1), replace(an_edit(2), alpha_p=0.5)
    elsewhere = replace(own, positions="last" if own.positions == "all" else "all")
    asks = [Ask(PROMPT, N, own), Ask(PROMPT, 3, own), Ask(PROMPT, N, weak),
            Ask(PROMPT, N, elsewhere), Ask(PROMPT, N, None)]  # fmt: skip
    calls, (_, *found) = asyncio.run(_held(asks, LIMITS))
    assert sorted(map(len, calls[1:])) == [1, 1, 3]
    short = backbone().generate([PROMPT], max_new_tokens=3, edit=own)[0]
    expected = [alone(own), short, alone(weak), alone(elsewhere), alone(None)]
    assert _texts(found) == expected


def test_a_full_queue_refuses_and_the_others_are_answered() -> None:
    asks = [Ask(PROMPT, N, None) for _ in range(5)]
    _, (_, *found) = asyncio.run(_held(asks, Limits(waiting=3)))
    assert [isinstance(one, Full) for one in found] == [False] * 3 + [True] * 2
    assert _texts(found[:3]) == [alone(None)] * 3


def test_a_prompt_beyond_the_models_context_is_refused_and_its_neighbours_are_answered() -> None:
    limit = backbone().context_limit
    assert limit is not None
    asks = [Ask("robot feels " * limit, N, None), Ask(PROMPT, N, an_edit(1))]
    _, (_, *found) = asyncio.run(_held(asks, LIMITS))
    assert isinstance(found[0], UserError) and f"reads at most {limit}" in str(found[0])
    assert found[1].text == alone(an_edit(1))


def test_who_is_not_answered_when_the_server_goes_down_is_told_so_at_once() -> None:
    async def ended() -> list[Any]:
        model = Held()
        async with Ticks(model, LIMITS) as ticks:  # type: ignore[arg-type]
            first = asyncio.create_task(ticks.ask(Ask(PROMPT, N, None)))
            while not model.calls:
                await asyncio.sleep(0.001)
            second = asyncio.create_task(ticks.ask(Ask(PROMPT, N, None)))
            await asyncio.sleep(0)
            model.go.set()
        told = asyncio.gather(first, second, return_exceptions=True)
        return await asyncio.wait_for(told, LIMITS.seconds / 10)

    assert all(isinstance(found, Full) for found in asyncio.run(ended()))


# --- the self-check -------------------------------------------------------------------------------


def _checked(model: Any, edits: list[Edit]) -> Any:
    async def run() -> Any:
        async with Ticks(model, LIMITS) as ticks:
            return await check_isolation(ticks, edits)

    return asyncio.run(run())


def test_the_check_of_a_server_compares_rows_and_needs_edits() -> None:
    found = _checked(backbone(), [an_edit(1), an_edit(2)])
    assert found.error <= found.bound < found.effect and found.rows > 12
    assert _checked(backbone(), []) is None


class Mixed(Held):
    """A backbone that answers the rows of a batch in another order than they were asked."""

    def generate(self, prompts: list[str], **named: Any) -> list[str]:
        return backbone().generate(prompts, **named)[::-1]


def test_the_check_finds_users_who_are_mixed_up() -> None:
    with pytest.raises(UserError, match="depends on the requests beside it"):
        _checked(Mixed(), [an_edit(1), an_edit(2)])


def test_a_store_of_another_model_or_of_profiles_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "other", users=5, fingerprint="0" * 64)
    with pytest.raises(UserError, match="were fitted on"):
        Service.of(tmp_path / "other", backbone())
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder of profiles"):
        Service.of(tmp_path / "folder", backbone())
