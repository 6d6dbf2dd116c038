"""From notebooks to stages: which pieces they need, and what these come to together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from chameleon_lib.kit.forecast import figures, served, tables
from chameleon_lib.kit.forecast.cell import STAGES, Cell, Key, Piece
from chameleon_lib.kit.forecast.known import MODELS
from chameleon_lib.kit.forecast.scope import Scope

STUDIES: Mapping[str, Callable[[Scope], list[Cell]]] = {
    "00": tables.quickstart,
    "01": tables.per_user,
    "02": tables.unseen_users,
    "03": figures.group_size,
    "04": figures.time_budget,
    "05": figures.history_ablation,
    "06": figures.controls,
    "07": served.serving,
    "09": served.playground,
}


@dataclass(frozen=True)
class StageCost:
    """What a stage costs on one backbone; all numbers are estimates.

    Attributes:
        stage: One of ``STAGES``.
        backbone: Id of the backbone.
        prompts: Texts that are asked or read.
        read: Prompt tokens.
        written: Answer tokens.
        backward: Tokens that a gradient comes back through.
        flops: By the formula of :mod:`chameleon_lib.kit.flops`.
        token_by_token: The part of them that answers are written with, one token after another.
    """

    stage: str
    backbone: str
    prompts: float
    read: int
    written: int
    backward: int
    flops: float
    token_by_token: float


def pieces_of(scope: Scope, notebooks: Iterable[str]) -> dict[Key, Piece]:
    """The union of the pieces of notebooks, by number; of one name the larger counts."""
    found: dict[Key, Piece] = {}
    for number in notebooks:
        for cell in STUDIES[number](scope) if number in STUDIES else []:
            for key, piece in cell.pieces.items():
                if key not in found or found[key].prompts < piece.prompts:
                    found[key] = piece
    return found


def stage_costs(
    scope: Scope, notebooks: Iterable[str], stored: Iterable[str] = ()
) -> list[StageCost]:
    """The stages of notebooks on every backbone, in order.

    Args:
        scope: Size of the run.
        notebooks: Numbers of those that will run.
        stored: Numbers of those that are up to date: what they share is in the store.
    """
    known = pieces_of(scope, stored)
    todo = {key: piece for key, piece in pieces_of(scope, notebooks).items() if key not in known}
    costs = []
    for backbone in dict.fromkeys(key[1] for key in todo):
        for stage in STAGES:
            some = [piece for key, piece in todo.items() if key[:2] == (stage, backbone)]
            if some:
                costs.append(_summed(stage, backbone, some))
    return costs


def _summed(stage: str, backbone: str, pieces: list[Piece]) -> StageCost:
    weights = MODELS[backbone].weights
    written = sum(piece.work.forward.written for piece in pieces)
    generated = written if stage in ("insights", "pairs", "evaluation", "LLM-REC") else 0
    if stage == "evaluation":
        generated //= 3  # of an arm's three answers one is generated and two are scored
    return StageCost(
        stage,
        backbone,
        sum(piece.prompts for piece in pieces),
        sum(piece.work.forward.read for piece in pieces),
        written,
        sum(piece.work.backward.total for piece in pieces),
        float(sum(piece.work.flops(weights) for piece in pieces)),
        2.0 * weights.written * generated,
    )
