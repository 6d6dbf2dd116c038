"""What all editors share: one call, one way back, nothing half done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.editors.changes import Change
from chameleon_lib.editors.request import Request
from chameleon_lib.editors.undo import Trace, Undo
from chameleon_lib.errors import UserError


class Editor(ABC):
    """Writes requests into the weights of a model.

    Args:
        backbone: The model; unedited when the editor is made.
    """

    name: str  # for tables

    def __init__(self, backbone: HFBackbone) -> None:
        self.backbone = backbone

    @abstractmethod
    def _opened(self, fits: int) -> Callable[[], None]:
        """Gets ready for so many fits; returns what brings the state before this call back."""

    @abstractmethod
    def _written(self) -> Sequence[Change]:
        """What all fits since :meth:`_opened` have added to weights, copied."""

    @abstractmethod
    def _fit(self, requests: Sequence[Request]) -> Trace:
        """Writes these requests together."""

    def edit(self, *requests: Request, joint: bool = False) -> Undo:
        """Writes requests one after another, each into the model that the last one left.

        Args:
            requests: One or more.
            joint: Write all of them in one fit.

        Returns:
            What takes all of them out again; a context manager. Where the call fails, the model is
            as it was, bit for bit.

        Raises:
            UserError: No request, or one that cannot be written.
        """
        if not requests:
            raise UserError("An edit needs a request; give a question, its subject and its answer.")
        groups = [list(requests)] if joint else [[request] for request in requests]
        with self.backbone.lock:
            undo = Undo(self.backbone.model, self._opened(len(groups)), self._written)
            try:
                undo.traces = tuple(self._fit(group) for group in groups)
            except BaseException:
                undo.restore()
                raise
        return undo
