"""Every form against the hook, from its own files."""

from __future__ import annotations

import pytest

from chameleon_lib.profiles.agreement import Agreement
from chameleon_lib.sections.serving import answers, forms
from chameleon_lib.sections.serving.answers import Row
from chameleon_lib.sections.serving.forms import PADDED, Shipped, agreement_table, decade
from chameleon_lib.sections.serving.study import POOLED, Service
from tests.sections.serving.conftest import USERS


def test_every_profile_is_an_adapter_and_some_are_weights(shipped: list[Shipped]) -> None:
    for out in shipped:
        kinds = [form for _, form in out.exports]
        assert kinds.count("peft") == USERS + 1 and not out.refused
        assert [kinds.count(form) for form in ("merged", "gguf", PADDED)] == [2, 2, 2]
        assert all(out.untouched.values()) and set(out.untouched) == set(out.exports)
        assert out.exports[POOLED, PADDED].rank == 8


def test_the_forms_agree_with_the_hook_within_the_bounds(
    services: list[Service], shipped: list[Shipped]
) -> None:
    for service, out in zip(services, shipped, strict=True):
        table = agreement_table(service, out)
        assert (table["difference from the hook, below"] <= table["allowed"]).all()
        assert table["same greedy tokens"].tolist() == table["greedy tokens"].tolist()
        assert (table["smallest effect of an edit"] > 100 * table["allowed"]).all()
        assert table["base bit for bit"].all()


def test_peft_answers_the_same_batch_from_the_files(
    services: list[Service], batches: list[list[Row]], shipped: list[Shipped]
) -> None:
    for service, rows, out in zip(services, batches, shipped, strict=True):
        assert out.mixed == answers.together(service, rows)


def test_tokens_of_a_form_that_differs_are_not_counted(
    services: list[Service], shipped: list[Shipped]
) -> None:
    export = shipped[0].exports[POOLED, "gguf"]
    spoiled = type(export)(**{**vars(export), "agreement": Agreement(1.0, 3e-7, 1e-5, False, 24)})
    out = Shipped(shipped[0].backbone, {(POOLED, "gguf"): spoiled}, {(POOLED, "gguf"): False})
    (row,) = agreement_table(services[0], out).to_dict("records")
    assert (row["same greedy tokens"], row["greedy tokens"]) == (0, 24)
    assert row["difference from the hook, below"] == 1e-6 and not row["base bit for bit"]


def test_a_form_that_cannot_carry_an_edit_is_named(
    services: list[Service], batches: list[list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_edit: object, _backbone: object, form: str) -> None:
        if form != "peft":
            raise forms.UserError(f"No {form} here.")

    monkeypatch.setattr(forms, "check_form", refuse)
    out = forms.ship(services[0], batches[0][:3])
    assert {form for _, form in out.exports} == {"peft", PADDED} and len(out.mixed) == 3
    assert out.refused == [
        f"{name}, {title}: No {kind} here."
        for name in ("user 1", POOLED)
        for kind, title in (("merged", "merged weights"), ("gguf", "GGUF adapter"))
    ]


@pytest.mark.parametrize(("error", "power"), [(0.0, 0.0), (3e-7, 1e-6), (1e-6, 1e-6), (0.2, 1.0)])
def test_an_error_is_told_by_its_power_of_ten(error: float, power: float) -> None:
    assert decade(error) == pytest.approx(power)
