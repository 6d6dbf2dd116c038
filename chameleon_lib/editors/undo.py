"""Taking an edit back, bit for bit, and what is known of how it was made.

Old weights are kept as copies: subtracting a change again does not give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

from chameleon_lib.editors.changes import Change, WeightEdit
from chameleon_lib.errors import UserError


@dataclass(frozen=True)
class Trace:
    """How one fit of an editor went.

    Attributes:
        editor: Its name.
        loss: Nats, one per step, before the step is taken; the last one may have none.
        norms: After every step: of ROME the norm of the value's change, else of the weight's.
        limit: What ``norms`` may not exceed; infinity where nothing bounds them.
        steps: Updates taken.
        seconds: Wall time; reaches no table that is compared.
        changed: Names of the weights that the edit changes or adds.
        nbytes: What has to be kept of the edit to apply it again, in bytes.
        trained: How many numbers the fit moves at a time; each needs a gradient and two moments.
    """

    editor: str
    loss: tuple[float, ...]
    norms: tuple[float, ...]
    limit: float
    steps: int
    seconds: float
    changed: tuple[str, ...]
    nbytes: int
    trained: int


_open: WeakKeyDictionary[Any, list[Undo]] = WeakKeyDictionary()  # model → its edits, latest last


class Undo:
    """An edit that is in the model; leaving its ``with`` block, or ``restore``, takes it out.

    Args:
        model: The edited model.
        put_back: Restores what was there before.
        written: What the edit adds to weights, as long as it is in the model.

    Attributes:
        traces: Of the fits that made it, in order.
    """

    def __init__(
        self, model: Any, put_back: Callable[[], None], written: Callable[[], Sequence[Change]]
    ) -> None:
        self.traces: tuple[Trace, ...] = ()
        self._model, self._put_back, self._written = model, put_back, written
        _open.setdefault(model, []).append(self)

    @property
    def active(self) -> bool:
        """Whether the edit is in the model."""
        return self in _open.get(self._model, [])

    def changes(self) -> tuple[Change, ...]:
        """What the edit adds to weights, one change per module; copies, which outlive it.

        Raises:
            UserError: It, or an earlier edit, was taken out, or a later one is in the model.
        """
        if self not in _open.get(self._model, [])[-1:]:
            raise UserError(
                "This edit is not the latest in its model, which alone tells what it adds to "
                "weights; ask before it is undone and before the next one."
            )
        return tuple(self._written())

    def written(self) -> WeightEdit:
        """The edit by itself: its editor's name and :meth:`changes`."""
        return WeightEdit(self.traces[-1].editor, self.changes())

    @property
    def seconds(self) -> float:
        """Wall time of all fits."""
        return sum(trace.seconds for trace in self.traces)

    @property
    def nbytes(self) -> int:
        """What has to be kept of the edit, in bytes.

        Fits of one and the same whole weight or adapter add up to one; changes of rank one do not.
        """
        sizes = [trace.nbytes for trace in self.traces]
        grows = any(trace.editor == "ROME" for trace in self.traces)
        return sum(sizes) if grows else max(sizes, default=0)

    def restore(self) -> None:
        """Brings back every bit; a second call does nothing.

        Raises:
            UserError: A later edit of the same model is still in it.
        """
        mine = _open.get(self._model, [])
        if self not in mine:
            return
        if mine[-1] is not self:
            raise UserError(
                "A later edit of this model is still in it, and would be lost in part; undo the "
                "latest edit first."
            )
        self._put_back()
        mine.remove(self)

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.restore()
