"""EditSettings: one frozen object holds every choice; invalid ones and contradictions raise."""

from __future__ import annotations

import math
import types
import typing
from dataclasses import Field, dataclass, fields, replace
from typing import Any

from chameleon_lib.core.settings_fields import EditFields, TextFields
from chameleon_lib.errors import UserError

# Readings that the ledger lists and the kit refuses: silence about a setting would be worse.
NOT_OFFERED = (
    ("t5_stack", "encoder", "decoder"),
    ("t5_pair_layout", "enc_all", "enc_ctx_dec_answer"),
    ("pairs_history", "full", "selected"),
    ("pairs_query_source", "history_loo", "task"),
)


@dataclass(frozen=True, kw_only=True)
class EditSettings(EditFields, TextFields):
    """All settings of the method. Defaults are the reading called ``paper``.

    Field names are the keys of section 15 of the method reference with dots as underscores; each
    field's metadata tells the paper's silence and why the default was taken.

    Raises:
        UserError: A value outside its options or bounds, or a combination that has no meaning.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in fields(self):
            object.__setattr__(self, item.name, _checked(item, getattr(self, item.name), hints))
        self._check_combinations()

    def _check_combinations(self) -> None:
        rules = (
            (
                self.selection_rule != "pca"
                and (self.selection_center, self.selection_norm) != ("both", "l2"),
                "selection_center and selection_norm are details of eq. 2; leave them at their "
                f"defaults where selection_rule is {self.selection_rule}.",
            ),
            (
                self.selection_rule != "pca" and self.selection_n_components is not None,
                "selection_n_components belongs to selection_rule pca; set it to None where "
                f"selection_rule is {self.selection_rule}.",
            ),
            (
                self.pairs_text == "answer_history" and self.embed_pooling != "mean_all",
                "pairs_text answer_history puts the history behind the answer, in one text: "
                "embed_pooling last would read the history alone, and mean_answer no more of the "
                "answer than mean_all; use mean_all or another pairs_text.",
            ),
            (
                (self.layers_rule == "top_k") != (self.layers_k is not None),
                "layers_k belongs to layers_rule top_k: set both or neither.",
            ),
            (
                self.decode_temperature is not None and not self.decode_do_sample,
                "decode_temperature needs decode_do_sample=True.",
            ),
            (
                self.decode_do_sample and self.decode_num_beams > 1,
                "Sampling with beams is not offered; set decode_num_beams to 1 or decode_do_sample "
                "to False.",
            ),
            (
                self.decode_num_beams > 1 and self.edit_positions == "generated",
                "Beam search starts at the last prompt token, which edit_positions generated "
                "leaves unedited; set decode_num_beams to 1 or edit_positions to last.",
            ),
            *(
                (
                    getattr(self, name) == value,
                    f"{name} {value!r} is a known reading that is not offered; use {use!r}.",
                )
                for name, value, use in NOT_OFFERED
            ),
            (
                len(self.group_seeds) != self.group_draws,
                f"group_seeds has {len(self.group_seeds)} seeds for {self.group_draws} draws.",
            ),
            (
                len(set(self.group_seeds)) != len(self.group_seeds),
                "group_seeds repeats a seed; the same group would count twice.",
            ),
            (
                self.pairs_k_max is not None and self.pairs_k_max < self.pairs_k_min,
                f"pairs_k_max {self.pairs_k_max} is below pairs_k_min {self.pairs_k_min}; no fit "
                "could have both.",
            ),
            (
                self.fit_holdout >= 1,
                "fit_holdout is a share of the users; give a number below 1.",
            ),
            (
                self.eval_user_mode == "unseen"
                and self.unseen_prompt == "no_history"
                and self.infer_insight_in_prompt,
                "An unseen user without history has no insight: set infer_insight_in_prompt to "
                "False or unseen_prompt to history.",
            ),
            (
                self.theta_method == "fitted" and self.edit_sign_gate != "none",
                "edit_sign_gate compares class means of SVD and CCS directions; fitted directions "
                "have no side, set it to none.",
            ),
            (
                self.theta_method == "fitted" and self.edit_site == "gate_proj",
                "Fitted directions are as wide as the model, and edit_site gate_proj is wider; use "
                "mlp_out or block_out.",
            ),
        )
        for broken, sentence in rules:
            if broken:
                raise UserError(sentence)

    def with_(self, **changes: Any) -> EditSettings:
        """A copy with these fields changed and everything checked again."""
        known = {item.name for item in fields(self)}
        for name in changes:
            if name not in known:
                raise UserError(f"EditSettings has no field {name!r}; see ambiguity_ledger().")
        return replace(self, **changes)

    def canonical(self) -> dict[str, Any]:
        """All fields, sorted by name, as JSON-able values; equal settings give equal dicts."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in sorted(values.items())
        }

    @classmethod
    def paper(cls) -> EditSettings:
        """The paper, silent points at their documented defaults."""
        return cls()

    @classmethod
    def alignez_v1(cls) -> EditSettings:
        """AlignEZ code v1; its element-wise boost is ``core.edit.elementwise_boost`` instead."""
        return cls(
            edit_site="gate_proj",
            edit_order="n_then_p",
            edit_sign_gate="class_mean",
            layers_rule="elbow_literal",
        )

    @classmethod
    def alignez_v3(cls) -> EditSettings:
        """AlignEZ v3: SVD of differences, boost alone, 5 layers; CCS only ranks the layers."""
        return cls(
            direction_personal="svd_diff",
            direction_neutral="none",
            layers_rule="top_k",
            layers_k=5,
        )


def ambiguity_ledger() -> list[dict[str, Any]]:
    """One row per field that settles an open point, ordered A1..A23, B1..B10."""
    rows = [
        {
            "id": item.metadata["id"],
            "field": item.name,
            "default": item.default,
            "options": item.metadata["options"],
            "help": item.metadata["help"],
        }
        for item in fields(EditSettings)
        if item.metadata["id"]
    ]
    return sorted(rows, key=lambda row: (row["id"][0], int(row["id"][1:]), row["field"]))


def _checked(item: Field[Any], value: Any, hints: dict[str, Any]) -> Any:
    """The value in its field's type, or a UserError that names the field."""
    kind = hints[item.name]
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if typing.get_origin(kind) is tuple:
        return _checked_tuple(item, value, typing.get_args(kind)[0])
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)  # 1 and 1.0 must give the same canonical form
    if type(value) is not kind:
        raise UserError(f"{item.name} must be {kind.__name__}, not {value!r}.")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{item.name} is {value}; give a finite number.")
    if kind is str and not value:
        raise UserError(f"{item.name} is empty.")
    options = item.metadata["options"]
    if options and value not in options:
        raise UserError(f"{item.name} is {value!r}; choose one of {', '.join(options)}.")
    at_least, above = item.metadata["at_least"], item.metadata["above"]
    if at_least is not None and value < at_least:
        raise UserError(f"{item.name} is {value}; it must be at least {at_least}.")
    if above is not None and value <= above:
        raise UserError(f"{item.name} is {value}; it must be above {above}.")
    return value


def _checked_tuple(item: Field[Any], value: Any, kind: type) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, (tuple, list)):
        raise UserError(f"{item.name} must be a list, not {value!r}.")
    options = item.metadata["options"]
    for part in value:
        if type(part) is not kind or (options and part not in options):
            wanted = ", ".join(options) if options else f"{kind.__name__} values"
            raise UserError(f"{item.name} holds {part!r}; allowed are {wanted}.")
    return tuple(value)
