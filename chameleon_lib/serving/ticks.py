"""One batch per tick: what arrives while the model is at work runs next, each row with its edit.

    async with Ticks(backbone, limits) as ticks:
        reply = await ticks.ask(Ask("A bomb saves a riddle", 8, edits.of(user)))

Requests wait in a bounded queue. A tick takes what is there, up to ``Limits.rows``, and runs it in
the one thread that uses the model, as one ``Backbone.generate`` with a per-row edit; requests of
other answer lengths are further calls of the same tick, since a call has one length. A request that
is cancelled before its tick is dropped, one that is cancelled later is answered to nobody; a row
that fails is run alone, so that it fails alone.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.affine import AffineEdit
from chameleon_lib.core.edit import AnyEdit
from chameleon_lib.errors import UserError
from chameleon_lib.serving.agreement import Isolation, hook_rows, isolation
from chameleon_lib.serving.sharded import ShardedStore
from chameleon_lib.serving.shards import GROUPS, shard_path
from chameleon_lib.serving.store import Answering

log = logging.getLogger(__name__)

_KEPT = 1 << 28  # bytes of edits that are kept beside the store
_PROBES = (
    "Which tag does this movie relate to? description: a bomb saves a riddle",
    "What is the score of the following review on a scale of 1 to 5? review: it broke at once",
)


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        waiting: Requests in the queue; one more is refused.
        rows: Requests of one tick.
        tick: Seconds without an arrival after which a tick begins, at most four times as many.
        characters: Of a prompt.
        new_tokens: Of an answer.
        body: Bytes of a request.
        seconds: Until a request is given up.
    """

    waiting: int = 256
    rows: int = 64
    tick: float = 0.004
    characters: int = 20_000
    new_tokens: int = 256
    body: int = 262_144
    seconds: float = 60.0


class Full(Exception):
    """The queue is full, or the server is going down."""


@dataclass(frozen=True, eq=False)
class Reply:
    """An answer.

    Attributes:
        text: Stripped.
        prompt_tokens: Tokens that the model read.
        answer_tokens: Tokens of the text.
    """

    text: str
    prompt_tokens: int
    answer_tokens: int


@dataclass(eq=False)
class Ask:
    """A request; ``edit`` None is the base."""

    prompt: str
    new_tokens: int
    edit: AnyEdit | None
    reply: asyncio.Future[Reply] = field(init=False)


class Edits:
    """Which edit answers a user, looked up in the store and kept until the store changes.

    Args:
        store: The store; other processes may write it meanwhile.
    """

    def __init__(self, store: ShardedStore) -> None:
        self.store = store
        about = store.manifest
        self._most = max(64, min(4096, _KEPT // (32 * about.slots * about.d)))  # U and Z, float64
        self._kept: OrderedDict[bytes, tuple[Any, Answering]] = OrderedDict()
        self._lock = threading.Lock()

    def kept(self, user: bytes) -> Answering | None:
        """What :meth:`of` found for a user, if the store has not changed since; reads no row."""
        with self._lock:
            found = self._kept.get(user)
            if found is None or found[0] != self._mark(user):
                return None
            self._kept.move_to_end(user)
            return found[1]

    def of(self, user: bytes) -> Answering:
        """The edit that answers a user, by the hash of the user's id."""
        mark = self._mark(user)  # before the row: a row that is replaced meanwhile is read again
        found = self.store.answering(self.store.name_of(user))
        if found.edit is not None:  # multiplied out once, as every batch needs it
            found = replace(found, edit=AffineEdit.of(found.edit))
        with self._lock:
            self._kept[user] = mark, found
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return found

    def _mark(self, user: bytes) -> tuple[Any, ...]:
        shard = shard_path(self.store.root, self.store.manifest.shard_of(user))
        return _stamp(shard), _stamp(self.store.root / GROUPS)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_ino


class Ticks:
    """The queue, and the thread that runs the model; an asynchronous context manager.

    Args:
        backbone: The model.
        limits: See :class:`Limits`.

    Attributes:
        batches: Calls of the model so far.
        answered: Rows of them.
    """

    def __init__(self, backbone: HFBackbone, limits: Limits | None = None) -> None:
        self.backbone, self.limits = backbone, limits or Limits()
        self.batches = self.answered = 0
        self._waiting: list[Ask] = []
        self._running: list[Ask] = []  # of the tick that the model is at
        self._arrived: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def __aenter__(self) -> Ticks:
        self._arrived = asyncio.Event()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        task, self._task = self._task, None
        assert task is not None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for ask in (*self._running, *self._waiting):
            if not ask.reply.done():
                ask.reply.set_exception(Full("The server is going down; ask again later."))
        self._running, self._waiting = [], []
        self._thread.shutdown()

    async def ask(self, ask: Ask) -> Reply:
        """The answer to a request; cancelling the call drops the request.

        Raises:
            Full: The queue is full, or the server is going down.
            UserError: The prompt is none that the model can read, or too long.
            TimeoutError: No answer in ``Limits.seconds``.
        """
        if self._task is None or self._arrived is None:
            raise Full("The server is going down; ask again later.")
        if len(self._waiting) >= self.limits.waiting:
            raise Full(f"{self.limits.waiting} requests wait already; ask again later.")
        ask.reply = asyncio.get_running_loop().create_future()
        self._waiting.append(ask)
        self._arrived.set()
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await ask.reply
        finally:
            ask.reply.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = self._running = await self._collected()
            done = await loop.run_in_executor(self._thread, self._answers, batch)
            for ask, reply in zip(batch, done, strict=True):
                if ask.reply.done():  # cancelled meanwhile
                    continue
                if isinstance(reply, Reply):
                    ask.reply.set_result(reply)
                else:
                    ask.reply.set_exception(reply)
            self._running = []

    async def _collected(self) -> list[Ask]:
        """The requests of the next tick, at least one; what was cancelled is dropped here."""
        assert self._arrived is not None
        while True:
            await self._arrived.wait()
            for _ in range(4):
                before = len(self._waiting)
                if before >= self.limits.rows:
                    break
                await asyncio.sleep(self.limits.tick)
                if len(self._waiting) == before:
                    break
            self._waiting = [ask for ask in self._waiting if not ask.reply.done()]
            batch = self._waiting[: self.limits.rows]
            del self._waiting[: self.limits.rows]
            if not self._waiting:
                self._arrived.clear()
            if batch:
                return batch

    # --- in the model's thread --------------------------------------------------------------------

    def _answers(self, batch: Sequence[Ask]) -> list[Reply | Exception]:
        """An answer or an error per request."""
        done: list[Reply | Exception] = [RuntimeError("not run")] * len(batch)
        tokens: dict[int, int] = {}
        calls: dict[tuple[Any, ...], list[int]] = {}
        for at, ask in enumerate(batch):
            try:
                tokens[at] = self._count(ask)
            except Exception as error:
                done[at] = error
            else:
                calls.setdefault((ask.new_tokens, *_kind(ask.edit)), []).append(at)
        for rows in _joined(calls):
            for at, text in zip(rows, self._texts([batch[at] for at in rows]), strict=True):
                done[at] = text if isinstance(text, Exception) else Reply(
                    text, tokens[at], len(self.backbone.codec.answers([text])[0])
                )  # fmt: skip
        return done

    def _count(self, ask: Ask) -> int:
        """Tokens of a prompt.

        Raises:
            UserError: It and its answer are longer than what the model reads.
        """
        count, limit = self.backbone.count_tokens(ask.prompt), self.backbone.context_limit
        if limit is not None and count + ask.new_tokens > limit:
            raise UserError(
                f"The prompt has {count} tokens and the answer may have {ask.new_tokens}, but "
                f"{self.backbone.name} reads at most {limit}; shorten the prompt or max_tokens."
            )
        return count

    def _texts(self, asks: Sequence[Ask]) -> Sequence[str | Exception]:
        """The answers of one call of the model; if it fails, of a call per request."""
        edits = [ask.edit for ask in asks]
        edit = _stacked(edits) if any(one is not None for one in edits) else None
        self.batches += 1
        try:
            found = self.backbone.generate(
                [ask.prompt for ask in asks], max_new_tokens=asks[0].new_tokens, edit=edit
            )
        except Exception as error:
            if len(asks) == 1:
                if not isinstance(error, UserError):
                    log.exception("A request failed.")
                return [error]
            log.warning("A batch of %d failed (%s); its rows run alone.", len(asks), error)
            return [self._texts([ask])[0] for ask in asks]
        self.answered += len(asks)
        return found


def _stacked(edits: Sequence[AnyEdit | None]) -> AffineEdit:
    """``AffineEdit.stack``, in a tenth of its time where all edits have the same shape."""
    given = [edit for edit in edits if isinstance(edit, AffineEdit)]
    alike = {(edit.layers, edit.u.shape, edit.u.dtype, edit.v is None) for edit in given}
    if len(alike) != 1 or len(given) < sum(edit is not None for edit in edits) or given[0].per_row:
        return AffineEdit.stack(edits)
    like = given[0]
    if like.v is not None:
        return AffineEdit.stack(edits)
    nothing = replace(like, u=torch.zeros_like(like.u), z=torch.zeros_like(like.z))
    rows = [edit if isinstance(edit, AffineEdit) else nothing for edit in edits]
    u, z = (torch.stack([getattr(row, name) for row in rows], dim=1) for name in ("u", "z"))
    return replace(like, u=u, z=z)


def _kind(edit: AnyEdit | None) -> tuple[Any, ...]:
    """What the edits of one batch must have in common; nothing for the base."""
    if edit is None:
        return ()
    return edit.positions, edit.site, edit.compute_dtype, edit.d


def _joined(calls: dict[tuple[Any, ...], list[int]]) -> list[list[int]]:
    """Rows per call: those of the base run along with edited ones of the same answer length."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for kind, rows in sorted(calls.items(), key=lambda item: len(item[0]), reverse=True):
        host = next((other for other in found if other[0] == kind[0]), kind)
        found.setdefault(kind if len(kind) > 1 else host, []).extend(rows)
    return [sorted(rows) for rows in found.values()]


# --- the self-check -----------------------------------------------------------------------------


async def check_isolation(
    ticks: Ticks, edits: Sequence[AnyEdit], prompts: Sequence[str] = _PROBES
) -> Isolation | None:
    """Two users and the base, interleaved, in sequence and after an abort, equal each alone.

    First the logits of the model's own batches (:func:`agreement.isolation`), then the texts of
    requests that go through the queue, one of which is cancelled.

    Args:
        ticks: At work, with nothing else to do.
        edits: Of at most two users; without any there is nothing to keep apart, and None comes
            back.
        prompts: What every user asks.

    Raises:
        UserError: An answer depends on its neighbours.
    """
    if not edits:
        return None
    own = list(edits[:2])
    loop = asyncio.get_running_loop()
    rows = hook_rows(ticks.backbone, own)
    found = await loop.run_in_executor(
        ticks._thread, lambda: isolation(ticks.backbone, rows, len(own), prompts)
    )
    asked = [(prompt, edit) for prompt in prompts for edit in (None, *own)]

    async def answer(at: int) -> str:
        prompt, edit = asked[at]
        return (await ticks.ask(Ask(prompt, 8, edit))).text

    every = range(len(asked))
    alone = [await answer(at) for at in every]
    together = await asyncio.gather(*map(answer, every))
    waiting = [asyncio.create_task(answer(at)) for at in every]
    await asyncio.sleep(0)  # all of them are in the queue
    waiting[1].cancel()
    aborted = await asyncio.gather(*waiting, return_exceptions=True)
    after = [await answer(at) for at in every]
    wrong = [
        at for at in every
        if {together[at], after[at], alone[at] if at == 1 else aborted[at]} != {alone[at]}
    ]  # fmt: skip
    if wrong or not isinstance(aborted[1], asyncio.CancelledError):
        raise UserError(
            f"The answer to {asked[wrong[0] if wrong else 1][0]!r} depends on the requests beside "
            "it, so nothing is served; please report this with the model and its libraries."
        )
    return found
