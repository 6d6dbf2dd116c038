"""Tables, sentences and the figure of the serving notebook.

What a form takes on disk and adds to a token is computed, so that it depends on no machine. For L
edited layers, MLP output d and MLP width f, with b bytes per number:

    directions θP, θN       2·L·d·b                       and 8·L·d operations per token (the hook)
    adapter of rank r       r·L·(f + d)·b                 and 2·r·L·(f + d)
    merged weights          all weights of the base       and none

Twice as many operations as weights multiply a token; the base's own are 2·N for N weights that
multiply an answer token. An adapter's A holds the base's matrix, hence f.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from chameleon_lib.kit.digits import significant
from chameleon_lib.kit.figures import FigureOutput
from chameleon_lib.kit.models import MODELS
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import bootstrap_metric, sums_by_user
from chameleon_lib.kit.tables import estimate_columns
from chameleon_lib.serving.factors import projection
from chameleon_lib.studies.frame import forest
from chameleon_lib.studies.s07_serving import FORMS, PADDED, SERVER_RANK, Row, Service, Shipped

UNEDITED = "no edit"
PAPER = ("mistralai/Mistral-7B-Instruct-v0.3", "google/flan-t5-xxl")
_MILLION = 10**6
_HALF, _FULL = 2, 4  # bytes per number: bfloat16, float32


def answer_table(service: Service, answers: Sequence[str]) -> pd.DataFrame:
    """One line per user: what the model says without an edit, under the own one, the pooled one.

    ``answers`` are those to the rows of ``Service.one_query``, three per user.
    """
    said = iter(answers)
    return pd.DataFrame(
        {
            "model": service.title,
            "user": user.name,
            "pairs": user.profile.n_pairs,
            "what the model notes of the user": user.asks.insight_p,
            UNEDITED: next(said),
            "own edit": next(said),
            "the paper's edit from all pairs": next(said),
        }
        for user in service.served
    )


def batch_table(
    service: Service, rows: Sequence[Row], ways: dict[str, Sequence[str]]
) -> pd.DataFrame:
    """How many answers of the one batch equal those of every other way to serve it.

    ``ways`` are the answers of every way; the first is the reference.
    """
    (reference, expected), *others = ways.items()
    layers = {service.profiles[row.profile].edit.layers for row in rows if row.profile}
    return pd.DataFrame(
        {
            "model": service.title,
            "batch": f"{len(rows)} rows, {len({row.profile for row in rows})} different edits or "
            f"none, {len(layers)} different sets of layers",
            "served by": way,
            "compared with": reference,
            "equal answers": sum(a == b for a, b in zip(found, expected, strict=True)),
            "answers": len(rows),
            "n": len(service.served),
            "seeds": 1,
        }
        for way, found in others
    )


def agreement_table(shipped: Shipped) -> pd.DataFrame:
    """One row per form: how far it is from the hook, over the profiles that were exported."""
    rows = []
    for form in [*FORMS, PADDED]:
        found = {name: e for (name, kind), e in shipped.exports.items() if kind == form}
        if not found:
            continue
        checks = [export.agreement for export in found.values()]
        rows.append(
            {
                "model": shipped.service.title,
                "form": FORMS.get(form, f"PEFT adapter padded to rank {SERVER_RANK}"),
                "profiles": len(found),
                "smallest effect of an edit": significant(min(c.effect for c in checks), 2),
                "difference from the hook, below": decade(max(c.error for c in checks)),
                "allowed": significant(min(c.bound for c in checks), 2),
                "same greedy tokens": sum(c.tokens for c in checks if c.same_tokens),
                "greedy tokens": sum(c.tokens for c in checks),
                "base bit for bit": all(shipped.untouched[name, form] for name in found),
                "n": len(shipped.service.served),
                "seeds": 1,
            }
        )
    return pd.DataFrame(rows)


def decade(error: float) -> float:
    """The power of ten that an error stays below: its digits differ from machine to machine."""
    return 0.0 if error == 0 else 10.0 ** math.ceil(math.log10(error))


@dataclass(frozen=True)
class Shape:
    """What sizes follow from: edited layers, widths of the MLP's output and inside, all weights of
    the base, and those that multiply an answer token.
    """

    layers: int
    width: int
    inner: int
    total: int
    written: int = 0

    @classmethod
    def known(cls, name: str) -> Shape:
        """The shape of a model whose sizes are published, all layers edited."""
        model, weights = MODELS[name], MODELS[name].weights
        return cls(model.layers, model.width, model.inner, weights.total, weights.written)

    def directions(self, bytes_each: int) -> int:
        """Bytes of θP and θN."""
        return 2 * self.layers * self.width * bytes_each

    def adapter(self, bytes_each: int, rank: int = 2) -> int:
        """Bytes of A and B."""
        return rank * self.layers * (self.inner + self.width) * bytes_each

    def hook_flops(self) -> int:
        """Operations per token: ``Z x`` and ``U (Z x)``, two numbers between them."""
        return 8 * self.layers * self.width

    def adapter_flops(self, rank: int = 2) -> int:
        """Operations per token: ``A h`` and ``B (A h)``."""
        return 2 * rank * self.layers * (self.inner + self.width)


def measured_sizes(shipped: Shipped) -> pd.DataFrame:
    """Bytes of the first user's files, beside the formula, and for a million users.

    A file also holds names and shapes of its tensors, which is all that lies between the two.
    """
    backbone, each = shipped.backbone, shipped.backbone.model.dtype.itemsize
    inner = int(projection(backbone, 0).weight.shape[-1])
    total = sum(parameter.numel() for parameter in backbone.model.parameters())
    shape = Shape(backbone.n_layers, backbone.d, inner, total)
    formulas = {
        "peft": shape.adapter(each),
        PADDED: shape.adapter(each, SERVER_RANK),
        "gguf": shape.adapter(_FULL),
        "merged": shape.total * each,
    }
    rows = [("profile: directions, float32", shipped.directions[0], shape.directions(_FULL))]
    for form, formula in formulas.items():
        if form in shipped.tensors:
            title = FORMS.get(form, f"PEFT adapter, rank {SERVER_RANK}")
            rows.append((f"{title}, tensors", shipped.tensors[form], formula))
    return pd.DataFrame(
        {
            "model": shipped.service.title,
            "one user's": what,
            "bytes of the file": found,
            "bytes by the formula": formula,
            "GB for 1 M users": found * _MILLION / 1e9,
            "n": 1,
            "seeds": 1,
        }
        for what, found, formula in rows
    )


def sizes_at_scale() -> pd.DataFrame:
    """Bytes per layer, per user and per million users for the paper's two backbones, computed."""

    def forms(shape: Shape) -> dict[str, int]:
        return {
            "directions, bfloat16": shape.directions(_HALF),
            "directions, float32": shape.directions(_FULL),
            "adapter of rank 2, bfloat16": shape.adapter(_HALF),
            f"adapter padded to rank {SERVER_RANK}, bfloat16": shape.adapter(_HALF, SERVER_RANK),
            "merged weights, bfloat16": shape.total * _HALF,
        }

    return pd.DataFrame(
        {
            "backbone": name.split("/")[1],
            "form": form,
            "KiB per edited layer": ""
            if form.startswith("merged")
            else f"{size / shape.layers / 1024:g}",
            "edited layers": shape.layers,
            "MB per user": size / 1e6,
            "TB for 1 M users": size * _MILLION / 1e12,
            "n": 1,
            "seeds": 1,
        }
        for name in PAPER
        for shape in [Shape.known(name)]
        for form, size in forms(shape).items()
    )


def size_figure(sizes: pd.DataFrame, publish: Publisher) -> FigureOutput:
    """Bytes per user, every form and both backbones, as powers of ten."""
    drawn = sizes[["backbone", "form", "MB per user", "n", "seeds"]].copy()
    drawn["value"] = [math.log10(size * 1e6) for size in drawn["MB per user"]]
    drawn["ci_low"] = drawn["ci_high"] = drawn["value"]
    return forest(
        publish,
        drawn,
        "07_sizes",
        made_by=sizes_at_scale,
        title="What one user takes on disk",
        alt="Dots on a logarithmic scale: directions take least, adapters more, merged weights by "
        f"far most: {drawn['MB per user'].min():.1f} to {drawn['MB per user'].max():,.0f} MB.",
        caption="Bytes per user, computed from the shapes of the paper's backbones, all decoder "
        "layers edited",
        xlabel="bytes, power of ten",
        row="form",
        panel="backbone",
        reference=None,
        better="lower",
    )


def costs_at_scale() -> pd.DataFrame:
    """What each form adds to one token of one user when all layers are edited, computed.

    Bytes are those read for the edit beside the base's weights. Two users of one batch read two
    edits; merged weights have no second user in the batch at all.
    """

    def forms(shape: Shape) -> dict[str, tuple[int, int]]:
        padded = shape.adapter_flops(SERVER_RANK), shape.adapter(_HALF, SERVER_RANK)
        return {
            "hook": (shape.hook_flops(), 2 * shape.directions(_FULL)),
            "adapter of rank 2": (shape.adapter_flops(), shape.adapter(_HALF)),
            f"adapter padded to rank {SERVER_RANK}": padded,
            "merged weights": (0, 0),
        }

    return pd.DataFrame(
        {
            "backbone": name.split("/")[1],
            "form": form,
            "extra operations per token": flops,
            "of the base's, %": 100 * flops / (2 * shape.written),
            "extra bytes read per token": read,
            "of the base's bytes, %": 100 * read / (_HALF * shape.written),
            "several users in one batch": "yes" if flops else "no: one copy of the base per user",
            "n": 1,
            "seeds": 1,
        }
        for name in PAPER
        for shape in [Shape.known(name)]
        for form, (flops, read) in forms(shape).items()
    )


def whose_edit(service: Service) -> dict[str, Any]:
    """Every held-out query of every user under the own edit, and under every other user's.

    In the embedded world it is also counted how often the answer is the planted one.
    """
    prompts, wanted, owners = [], [], []
    for user in service.served:
        asked = service.prompts([user.asks])
        prompts += asked
        owners += [user.name] * len(asked)
        if service.data.truth is not None:
            wanted += list(service.data.truth[user.asks.user.id].personal[-len(asked) :])
    base = service.say(prompts, None)
    by_edit = {user.name: service.say(prompts, user.profile.edit) for user in service.served}
    own = [(at, by_edit[owner][at]) for at, owner in enumerate(owners)]
    others = [
        (at, said[at])
        for name, said in by_edit.items()
        for at, owner in enumerate(owners)
        if owner != name
    ]

    def share(
        said: Sequence[tuple[int, str]], like: Sequence[str], name: str, *, same: bool = True
    ) -> dict[str, Any]:
        """How often an answer to a prompt is (not) that of a list, with an interval over users."""
        hits = [float((text == like[at]) is same) for at, text in said]
        sums = sums_by_user(hits, [owners[at] for at, _ in said])
        return estimate_columns(bootstrap_metric("mean", sums), name)

    found: dict[str, Any] = {
        "model": service.title,
        "held-out queries": len(prompts),
        **share(own, base, "changed by the own edit", same=False),
        **share(others, [text for _, text in own], "another user's edit says the same"),
    }
    if wanted:
        found |= share(list(enumerate(base)), wanted, f"right: {UNEDITED}")
        found |= share(own, wanted, "right: own edit")
        found |= share(others, wanted, "right: another user's edit")
    counts = {"n": len(service.served), "seeds": 1}
    return {name: value for name, value in found.items() if name not in counts} | counts
