"""The embedded models and prompts of their world, as the generation benchmarks use them."""

from __future__ import annotations

import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone, backbone_from, load_backbone
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.task import Task, answer_prompt, get_task
from chameleon_lib.demo import checkpoint
from chameleon_lib.demo.world import NEUTRAL_INSIGHT, WorldSettings, build_world
from chameleon_lib.errors import UserError
from workshop.models import build_model, build_tokenizer

TASK = get_task("LaMP_2")


def embedded_backbone(family: str) -> tuple[HFBackbone, str]:
    """The embedded model of a family and how tables name it.

    Where the checkout holds no trained weights, the same architecture with random ones stands in
    (and is named so): speed does not depend on what a model has learned.
    """
    try:
        folder = checkpoint(family, 0)
    except UserError:
        tokenizer = build_tokenizer()
        model = build_model(family, 0, tokenizer)
        return backbone_from(model, tokenizer, name=f"{family}-random"), f"{family}, random weights"
    return load_backbone(folder), f"{family}, embedded model"


def paired_prompts(n: int, history: int, task: Task = TASK) -> tuple[list[str], list[int]]:
    """``n`` prompts of the pair stage and their users: a P and an N prompt per test user.

    Both prompts of a user start with the same history.

    Args:
        n: Number of prompts, two per user.
        history: History items per user.
        task: Task of the prompts.
    """
    users = -(-n // 2)
    world = build_world(task.name, WorldSettings(users=(0, 0, users), history=(history, history)))
    prompts: list[str] = []
    groups: list[int] = []
    for number, user in enumerate(world.users["test"]):
        insights = {"P": world.truth[user.id].insight, "N": NEUTRAL_INSIGHT[task.name]}
        query = user.queries[0].text
        prompts.append(answer_prompt(task, user.history, query, role="P", insight=insights["P"]))
        prompts.append(answer_prompt(task, user.history, query, role="N", insight=insights["N"]))
        groups += [number, number]
    return prompts[:n], groups[:n]


def random_edit(backbone: HFBackbone, rows: int | None = None) -> Edit:
    """An edit of every layer with random unit directions; one per row if ``rows`` is given."""
    generator = torch.Generator().manual_seed(0)
    lead = (backbone.n_layers,) if rows is None else (backbone.n_layers, rows)

    def unit() -> Tensor:
        drawn = torch.randn(*lead, backbone.d, generator=generator)
        return torch.nn.functional.normalize(drawn, dim=-1)

    return Edit(layers=tuple(range(backbone.n_layers)), theta_p=unit(), theta_n=unit())
