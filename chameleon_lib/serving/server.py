"""A small OpenAI-compatible server of one model and everybody's edits, for one machine.

    python -m chameleon_lib serve --store DIR --backbone chameleon_lib/demo/decoder-0

``model`` in a request names the base model; who asks is told by the bearer token alone
(``serving.tokens``), so no text of a client ever names an edit, a file or another user. The answer
says which edit answered in ``X-Chameleon-Edit`` and ``system_fingerprint``, and why with
``"explain": true``. Answers are greedy and come whole. The server keeps nothing: the store is its
state, so it may be killed and started again at any time.

It is an example to try the chain with, for the loopback device or behind a proxy that speaks TLS:
it has no rate limits per user and no roles.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.backbone import same_weights
from chameleon_lib.core.edit import AnyEdit
from chameleon_lib.errors import UserError
from chameleon_lib.serving.agreement import Isolation
from chameleon_lib.serving.forget import spellings
from chameleon_lib.serving.sharded import ShardedStore, open_store
from chameleon_lib.serving.store import Answering
from chameleon_lib.serving.ticks import Ask, Edits, Full, Limits, Reply, Ticks, check_isolation
from chameleon_lib.serving.tokens import Tokens

log = logging.getLogger(__name__)

R = TypeVar("R", bound="_Wanted")
T = TypeVar("T")
NEW_TOKENS = 64  # where a request does not say
EDIT_HEADER = "X-Chameleon-Edit"
_BEARER = re.compile(r"bearer +(\S{1,200}) *", re.IGNORECASE)
_LOOKED_AT = 10_000  # rows that are looked through for two edits to check
_CODES = {400: "invalid_request_error", 401: "invalid_request_error", 403: "permission_error",
          404: "not_found_error", 405: "invalid_request_error", 413: "invalid_request_error",
          500: "server_error", 503: "overloaded_error", 504: "timeout_error"}  # fmt: skip


# --- requests -----------------------------------------------------------------------------------


class _Wanted(BaseModel, ABC):
    """What both kinds of requests say."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(max_length=500)
    max_tokens: int | None = None
    n: Literal[1] = 1
    stream: Literal[False] = False
    temperature: float = Field(0.0, ge=0, le=0)
    top_p: float = Field(1.0, ge=1, le=1)
    user: str | None = Field(None, max_length=500)
    explain: bool = False

    @property
    @abstractmethod
    def text(self) -> str:
        """The prompt."""

    @property
    def new_tokens(self) -> int:
        """The most tokens of the answer."""
        return NEW_TOKENS if self.max_tokens is None else self.max_tokens


class CompletionWanted(_Wanted):
    """The body of ``/v1/completions``."""

    prompt: str

    @property
    def text(self) -> str:
        return self.prompt


class Message(BaseModel):
    """A turn of a dialogue."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["user"]
    content: str


class ChatWanted(_Wanted):
    """The body of ``/v1/chat/completions``: one turn of the user, as the edits were fitted."""

    messages: list[Message] = Field(min_length=1, max_length=1)
    max_completion_tokens: int | None = None

    @property
    def text(self) -> str:
        return self.messages[0].content

    @property
    def new_tokens(self) -> int:
        own = self.max_completion_tokens
        return super().new_tokens if own is None else own


# What pydantic finds, in words that say what to do.
_WORDS = {
    "extra_forbidden": "this server does not know it; leave it out",
    "missing": "it is needed",
    "string_unicode": "half of a surrogate pair is no text; send whole characters",
    ("stream", "literal_error"): "answers come whole; leave it out",
    ("n", "literal_error"): "there is one greedy answer; leave it out",
    ("temperature", "less_than_equal"): "answers are greedy; leave it out or give 0",
    ("top_p", "greater_than_equal"): "answers are greedy; leave it out or give 1",
    ("role", "literal_error"): "the one role here is user; put instructions into its content",
    ("messages", "too_long"): "give one message of the user: this server keeps no dialogue",
}


class Refused(Exception):
    """A request that is not answered.

    Args:
        status: Of HTTP.
        sentence: What is wrong and what to do.
        param: Part of the request that it is about.
    """

    def __init__(self, status: int, sentence: str, param: str | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.param = status, sentence, param

    def response(self) -> JSONResponse:
        """As OpenAI's clients read it."""
        entry = {
            "message": self.sentence, "type": _CODES.get(self.status, "invalid_request_error"),
            "param": self.param, "code": None,
        }  # fmt: skip
        headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}
        return JSONResponse({"error": entry}, self.status, headers.get(self.status))


def parsed(body: bytes, kind: type[R]) -> R:
    """A request from its bytes.

    Raises:
        Refused: They are no JSON object of that kind.
    """

    def no_number(text: str) -> float:
        raise ValueError(f"{text} is no number of JSON")

    try:
        entry = json.loads(body.decode(), parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refused(400, f"The body is no JSON: {reason[:100]}.") from None
    if not isinstance(entry, dict):
        raise Refused(400, "The body is no JSON object; give one with model and prompt.")
    try:
        return kind.model_validate(entry)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)[0]
        place = [str(part)[:40].encode("ascii", "replace").decode() for part in found["loc"]]
        last = next((part for part in reversed(place) if not part.isdigit()), "")
        what = _WORDS.get((last, found["type"])) or _WORDS.get(found["type"]) or found["msg"]
        param = ".".join(place)
        raise Refused(400, f"{param!r}: {what[:200].rstrip('.')}.", param) from None


def check_text(wanted: _Wanted, limits: Limits) -> None:
    """Refuse a prompt that no model reads, and an answer longer than the server's limit.

    Raises:
        Refused: It is empty, too long, or holds half a character.
    """
    text, tokens = wanted.text, wanted.new_tokens
    if not text.strip():
        raise Refused(400, "The prompt is empty; give text.", "prompt")
    if len(text) > limits.characters:
        raise Refused(
            400, f"The prompt has {len(text)} characters; this server reads {limits.characters}.",
            "prompt",
        )  # fmt: skip
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused(400, f"The prompt: {_WORDS['string_unicode']}.", "prompt") from None
    if not 1 <= tokens <= limits.new_tokens:
        raise Refused(400, f"max_tokens must lie between 1 and {limits.new_tokens}.", "max_tokens")


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body, as far as the limit allows.

    Raises:
        Refused: It is longer, or does not come.
    """
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.body:
                    raise Refused(413, f"The body is longer than {limits.body} bytes.")
                parts.append(part)
    except ClientDisconnect:
        raise Refused(400, "The client went away.") from None
    except TimeoutError:
        raise Refused(400, f"The body did not come within {limits.seconds:g} s.") from None
    return b"".join(parts)


# --- the server ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Service:
    """What a server answers from.

    Attributes:
        backbone: The base model.
        store: Whose edits answer.
        limits: What it takes.
        edits: False answers everybody by the base, to measure what edits cost.
    """

    backbone: HFBackbone
    store: ShardedStore
    limits: Limits = Limits()
    edits: bool = True

    @classmethod
    def of(
        cls, root: Path, backbone: HFBackbone, limits: Limits | None = None, *, edits: bool = True
    ) -> Service:
        """The service of a store's folder.

        Raises:
            UserError: It is no store that ``fit`` wrote, or one of another model.
        """
        store = open_store(root)
        if not isinstance(store, ShardedStore):
            raise UserError(
                f"{root} is a folder of profiles; a server answers from a store that 'python -m "
                "chameleon_lib fit' wrote. Export the profiles for other servers."
            )
        found = store.manifest
        if not same_weights(found.fingerprint, backbone.fingerprint):
            raise UserError(
                f"The edits of {root} were fitted on {found.backbone} ({found.fingerprint[:12]}), "
                f"not on {backbone.name} ({backbone.fingerprint[:12]}); give that model as "
                "--backbone."
            )
        return cls(backbone, store, limits or Limits(), edits)

    def checked_edits(self) -> Sequence[AnyEdit]:
        """The edits of the first two users who have their own, or else of groups."""
        cells = islice(self.store.rows(("user", "alpha_p")), _LOOKED_AT)
        keys = (row["user"] for row in cells if row["alpha_p"] is not None)
        rows = (self.store.row(key) for key in islice(keys, 2))
        found = [row.edit for row in rows if row is not None and row.edit is not None]
        return found or [one.edit for one in self.store.groups if one.edit is not None][:2]

    def app(self, *, check: bool = True) -> FastAPI:
        """The application; it checks that users are kept apart before it answers the first."""
        return _app(self, check)


def _app(service: Service, check: bool) -> FastAPI:
    backbone, limits = service.backbone, service.limits
    tokens, edits = Tokens(service.store.root), Edits(service.store)
    ticks = Ticks(backbone, limits)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        async with ticks:
            own = service.checked_edits() if check and service.edits else []
            app.state.isolation = await check_isolation(ticks, own)
            yield

    app = FastAPI(lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.ticks = ticks

    def asking(request: Request) -> bytes:
        """The hash of who asks."""
        match = _BEARER.fullmatch(request.headers.get("authorization", ""))
        user = tokens.user_of(match[1] if match else "")
        if user is None:
            raise Refused(
                401, "Give a token of this server as 'Authorization: Bearer TOKEN' (python -m "
                "chameleon_lib token USER --store DIR makes one).",
            )  # fmt: skip
        return user

    def own_name(user: bytes, named: str | None) -> None:
        """Refuse another's name; whether there is such a user is not told."""
        of = service.store.pseudonyms.of
        if named is not None and user.hex() not in {
            of(one).rpartition(":")[2] for one in spellings(named)
        }:
            raise Refused(403, "This token answers for its own user alone; leave 'user' out.",
                          "user")  # fmt: skip

    async def answering(user: bytes) -> Answering | None:
        if not service.edits:
            return None
        return edits.kept(user) or await asyncio.to_thread(edits.of, user)

    async def answered(request: Request, kind: type[R]) -> tuple[R, Answering | None, Reply]:
        user = asking(request)  # before the body is read
        wanted = parsed(await read_body(request, limits), kind)
        own_name(user, wanted.user)
        if wanted.model != backbone.name:
            raise Refused(
                404, f"This server has the one model {backbone.name!r}; who asks is told by the "
                "token.", "model",
            )  # fmt: skip
        check_text(wanted, limits)
        found = await answering(user)
        ask = Ask(wanted.text, wanted.new_tokens, None if found is None else found.edit)
        try:
            return wanted, found, await _while_connected(request, ticks.ask(ask))
        except Full as error:
            raise Refused(503, str(error)) from None
        except UserError as error:
            raise Refused(400, str(error), "prompt") from None
        except TimeoutError:
            raise Refused(504, f"There was no answer within {limits.seconds:g} s.") from None

    def response(
        kind: str, wanted: _Wanted, found: Answering | None, reply: Reply, choice: dict[str, Any]
    ) -> JSONResponse:
        source = "base"
        if found is not None and found.edit is not None:
            source = found.group if found.source == "group" else found.source
        # Counted in the text again, which is what the model wrote up to rare splittings of words.
        full = reply.answer_tokens >= wanted.new_tokens
        entry: dict[str, Any] = {
            "id": f"{'chatcmpl' if kind == 'chat.completion' else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": backbone.name,
            "system_fingerprint": f"{backbone.fingerprint[:12]}-{source}",
            "choices": [{"index": 0, **choice, "logprobs": None,
                         "finish_reason": "length" if full else "stop"}],
            "usage": {
                "prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.answer_tokens,
                "total_tokens": reply.prompt_tokens + reply.answer_tokens,
            },
        }  # fmt: skip
        if wanted.explain:
            off = "This server answers everybody by the base (--no-edits)."
            entry["explanation"] = off if found is None else found.why
        return JSONResponse(entry, headers={EDIT_HEADER: source})

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        asking(request)
        entry = {"id": backbone.name, "object": "model", "created": 0, "owned_by": "chameleon_lib"}
        return {"object": "list", "data": [entry]}

    @app.post("/v1/completions")
    async def completions(request: Request) -> JSONResponse:
        wanted, found, reply = await answered(request, CompletionWanted)
        return response("text_completion", wanted, found, reply, {"text": reply.text})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> JSONResponse:
        wanted, found, reply = await answered(request, ChatWanted)
        message = {"role": "assistant", "content": reply.text}
        return response("chat.completion", wanted, found, reply, {"message": message})

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def no_route(_: Request, error: HTTPException) -> JSONResponse:
        said = {404: "There is no such path; see /v1/models, /v1/completions and "
                "/v1/chat/completions.", 405: "This path takes another method."}  # fmt: skip
        sentence = said.get(error.status_code, "The request cannot be read.")
        return Refused(error.status_code, sentence).response()

    @app.exception_handler(UserError)
    async def damaged(_: Request, error: UserError) -> JSONResponse:
        log.error("%s", error)  # names files, so not the client's to read
        return Refused(500, "The store cannot be read; its keeper finds the reason in the log."
                       ).response()  # fmt: skip

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> JSONResponse:
        return Refused(500, "The answer failed; the keeper finds the reason in the log.").response()

    return app


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """What work comes to; it is cancelled when the client goes away."""
    running = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            raise Refused(400, "The client went away.")
        return await running
    finally:
        running.cancel()
        gone.cancel()
        await asyncio.gather(running, gone, return_exceptions=True)


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def serve(
    service: Service, host: str, port: int, *, only_check: bool = False
) -> Iterable[str]:
    """Answer until interrupted; yields what to tell whoever started it.

    Args:
        service: What to answer from.
        host: Address to listen at.
        port: Of it; 0 takes a free one.
        only_check: Check that users are kept apart, and end.

    Raises:
        UserError: The address is taken, or users are not kept apart.
    """
    found = asyncio.run(_checked(service))
    if found is None:
        yield "The base answers everybody: there is no edit, or none is used."
    else:
        yield (
            f"Users are kept apart: {found.rows} rows in batches, in sequence and after an abort "
            f"differ by {found.error:.0e} from each alone; the edits change {found.effect:.0e}."
        )
    if only_check:
        return
    try:
        listening = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}:{port} cannot be listened at ({error}); give another --port.") \
            from None  # fmt: skip
    address = f"http://{host}:{listening.getsockname()[1]}"
    yield f"{service.backbone.name} answers at {address}/v1; Ctrl-C ends it."
    config = uvicorn.Config(
        service.app(check=False), log_level="warning", access_log=False, timeout_keep_alive=30
    )
    uvicorn.Server(config).run(sockets=[listening])


async def _checked(service: Service) -> Isolation | None:
    async with Ticks(service.backbone, service.limits) as ticks:
        return await check_isolation(ticks, service.checked_edits() if service.edits else [])
