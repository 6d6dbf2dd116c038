"""What a notebook publishes: tables and verdicts, each saved and shown by one call.

Whatever is saved names the notebook that saves it and the function that made it, so that a reader
of the pages gets from a number to its code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from chameleon_lib.kit.figures import FigureOutput, save_figure
from chameleon_lib.kit.tables import Kind, save_table, show_table
from chameleon_lib.kit.verdicts import Verdict, save_verdicts, verdict_frame


@dataclass(frozen=True)
class Publisher:
    """Publishes the results of one notebook in one run.

    Attributes:
        profile: name of the run profile, which every shown caption ends in.
        notebook: stem of the notebook, such as "01_per_user".
    """

    profile: str
    notebook: str

    def __call__(
        self,
        frame: pd.DataFrame,
        table_id: str,
        caption: str,
        *,
        made_by: Callable[..., object],
        kind: Kind = "result",
        shown: pd.DataFrame | None = None,
    ) -> HTML:
        """Save a table, and return what the notebook shows of it.

        Args:
            frame: one row per measured thing; see `tables.save_table`.
            table_id: file stem.
            caption: what the table says, with units; it is shown with the profile behind it.
            made_by: the library function that computed `frame`.
            kind: "result", "control" or "diagnostic".
            shown: another frame to show in its place, such as fewer columns; None for `frame`.
        """
        save_table(
            frame, table_id, self.profile, caption,
            kind=kind, notebook=self.notebook, made_by=made_by,
        )  # fmt: skip
        return self.show(frame if shown is None else shown, caption)

    def show(self, frame: pd.DataFrame, caption: str) -> HTML:
        """Show a frame that is not saved (in an Explore cell, or once more in other words)."""
        return show_table(frame, f"{caption} ({self.profile} profile)")

    def figure(
        self,
        figure: Figure,
        figure_id: str,
        *,
        alt: str,
        caption: str,
        data: pd.DataFrame,
        made_by: Callable[..., object],
    ) -> FigureOutput:
        """Save a figure with the frame behind it, and return what the notebook shows.

        Args: see `figures.save_figure`.
        """
        return save_figure(
            figure, figure_id, alt=alt, caption=caption, data=data,
            profile=self.profile, notebook=self.notebook, made_by=made_by,
        )  # fmt: skip

    def verdicts(
        self, verdicts: Sequence[Verdict], *, made_by: Callable[..., object] | None = None
    ) -> HTML:
        """Save the verdicts of this notebook, and return them as a table.

        Args:
            verdicts: in the order in which pages show them.
            made_by: the library function that judged.
        """
        save_verdicts(verdicts, self.notebook, self.profile, made_by=made_by)
        return self.show(verdict_frame(verdicts), "Verdicts")
