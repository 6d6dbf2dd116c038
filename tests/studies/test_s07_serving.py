"""Who is served with which edit, in which form: one batch, every form, both solvers."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import PROFILES
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.kit.tables import check_table
from chameleon_lib.studies import s07_serving as serving
from chameleon_lib.studies import s07_tables as tables
from chameleon_lib.studies.data import load_task_data
from chameleon_lib.studies.s07_serving import ASKED, LEARNED, PADDED, POOLED, Row, Service, Shipped
from tests.studies.small import BACKBONES, SETTINGS, small_kit, small_profile, use_small_models

PROFILE = small_profile(studied=BACKBONES)
USERS = 3
HEADER = 10_000  # bytes of names and shapes of the tensors; a T5 has many


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Service]]:
    """Three users of both families, on tiny random models."""
    with small_kit(tmp_path_factory.mktemp("serving")) as _:
        settings = SETTINGS.with_(edit_positions="all", decode_max_new_tokens=4)
        yield serving.run(PROFILE, settings, task="LaMP_7", users=USERS)


@pytest.fixture(scope="module")
def batches(services: list[Service]) -> list[list[Row]]:
    return [service.one_query() for service in services]


@pytest.fixture(scope="module")
def shipped(services: list[Service], batches: list[list[Row]]) -> list[Shipped]:
    return [serving.ship(service, rows) for service, rows in zip(services, batches, strict=True)]


def test_nobody_is_asked_what_the_fit_has_seen(services: list[Service]) -> None:
    for service in services:
        everything = {user.id: user.queries for user in service.data.train}
        for user in service.served:
            queries = everything[user.asks.user.id]
            assert len(queries) == LEARNED + ASKED
            asked = [query.text for query in user.asks.user.queries]
            assert asked == [query.text for query in queries[LEARNED:]]
            assert user.profile.users == (user.asks.user.id,)
            assert user.profile.n_pairs + user.profile.n_identical == LEARNED


def test_own_edits_differ_and_the_pooled_one_has_all_pairs(services: list[Service]) -> None:
    for service in services:
        thetas = [user.profile.edit.theta_p for user in service.served]
        assert not torch.equal(thetas[0], thetas[1])
        assert {user.profile.edit.layers for user in service.served} == {(0, 1, 2)}
        assert service.pooled.n_pairs == sum(user.profile.n_pairs for user in service.served)
        assert len(service.pooled.users) == USERS and service.pooled.directions is not None
        assert list(service.profiles)[-1] == POOLED
        assert {profile.edit.positions for profile in service.profiles.values()} == {"all"}
    assert serving.settings_of(PROFILES["demo"]).edit_positions == "all"


def test_files_with_one_query_per_user_give_groups_and_ask_test_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    data = replace(load_task_data(PROFILE, "LaMP_3"), truth=None)
    monkeypatch.setattr(serving, "load_task_data", lambda *_: data)
    monkeypatch.setattr(serving, "MEMBERS", 3)
    settings = SETTINGS.with_(edit_positions="all")
    (service, _) = serving.run(
        PROFILE, settings, task="LaMP_3", users=2, data_dir="x", store=ArtifactStore(tmp_path)
    )
    assert [len(user.profile.users) for user in service.served] == [3, 3]
    assert [user.asks.user.id for user in service.served] == [user.id for user in data.test[:2]]


@pytest.mark.parametrize(("users", "says"), [(1, "at least 2"), (13, "too few to serve 13")])
def test_a_number_of_users_that_cannot_be_served_is_refused(
    users: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    world = load_task_data(PROFILE, "LaMP_7", max_users=5, world={"queries": LEARNED + ASKED})
    monkeypatch.setattr(serving, "load_task_data", lambda *_, **__: world)
    with pytest.raises(UserError, match=says):
        serving.run(PROFILE, SETTINGS, task="LaMP_7", users=users, store=ArtifactStore(tmp_path))


def test_one_query_under_every_edit_in_one_batch_is_what_single_runs_give(
    services: list[Service], batches: list[list[Row]]
) -> None:
    for service, rows in zip(services, batches, strict=True):
        query = service.served[0].asks.user.queries[0].text
        assert len(rows) == 3 * USERS and all(query in row.prompt for row in rows)
        assert len({row.prompt for row in rows}) == USERS  # each with a history of its own
        assert [row.profile for row in rows[:3]] == [None, "user 1", POOLED]
        together, alone = service.together(rows), service.alone(rows)
        assert together == alone
        assert together[::3] != together[1::3]  # the edits do something
        shown = tables.answer_table(service, together)
        assert shown["own edit"].tolist() == together[1::3]
        assert shown[tables.UNEDITED].tolist() == together[::3]
        ways = {"batch": together, "alone": alone, "other": ["another text", *alone[1:]]}
        table = tables.batch_table(service, rows, ways)
        assert table["equal answers"].tolist() == [3 * USERS, 3 * USERS - 1]


def test_two_decoders_side_by_side_have_rows_of_their_own(
    services: list[Service], batches: list[list[Row]], shipped: list[Shipped]
) -> None:
    """Rows about a backbone are titled by its model, as the tables of results are."""
    decoder, rows, out = services[0], batches[0], shipped[0]
    other = replace(decoder, study=copy(decoder.study))
    other.study.backbone_id = "meta-llama/Llama-3.1-8B-Instruct"
    said = decoder.together(rows)
    for table in (
        [tables.answer_table(one, said) for one in (decoder, other)],
        [tables.batch_table(one, rows, {"a": said, "b": said}) for one in (decoder, other)],
        [tables.agreement_table(replace(out, service=one)) for one in (decoder, other)],
        [tables.measured_sizes(replace(out, service=one)) for one in (decoder, other)],
        [pd.DataFrame([tables.whose_edit(one)]) for one in (decoder, other)],
    ):
        titles = pd.concat(table)["model"].unique().tolist()
        assert titles == ["decoder (Mistral class)", "Llama-3.1-8B-Instruct"]


def test_every_form_agrees_with_the_hook_and_leaves_the_base(shipped: list[Shipped]) -> None:
    for out in shipped:
        kinds = [form for _, form in out.exports]
        assert kinds.count("peft") == USERS + 1 and not out.refused
        assert [kinds.count(form) for form in ("merged", "gguf", PADDED)] == [2, 2, 2]
        assert all(out.untouched.values()) and set(out.untouched) == set(out.exports)
        assert out.exports[POOLED, PADDED].rank == 8
        table = tables.agreement_table(out)
        assert (table["difference from the hook, below"] <= table["allowed"]).all()
        assert table["same greedy tokens"].tolist() == table["greedy tokens"].tolist()
        assert (table["smallest effect of an edit"] > 100 * table["allowed"]).all()


def test_peft_answers_the_same_batch_from_the_files(
    batches: list[list[Row]], shipped: list[Shipped]
) -> None:
    for rows, out in zip(batches, shipped, strict=True):
        assert out.mixed == out.service.together(rows)


def test_a_form_that_cannot_carry_an_edit_is_named(
    services: list[Service], batches: list[list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_edit: object, _backbone: object, form: str) -> None:
        if form != "peft":
            raise UserError(f"No {form} here.")

    monkeypatch.setattr(serving, "check_form", refuse)
    out = serving.ship(services[0], batches[0][:3])
    assert {form for _, form in out.exports} == {"peft", PADDED} and len(out.mixed) == 3
    assert out.refused == [
        f"{name}, {title}: No {kind} here."
        for name in ("user 1", POOLED)
        for kind, title in (("merged", "merged weights"), ("gguf", "GGUF adapter"))
    ]


def test_files_are_as_large_as_the_formulas_say(shipped: list[Shipped]) -> None:
    for out in shipped:
        table = tables.measured_sizes(out)
        over = table["bytes of the file"] - table["bytes by the formula"]
        assert set(table["n"]) == {1}  # the files of one user, however many are served
        assert len(table) == 5 and over.between(1, HEADER).all()


def test_the_operations_are_those_of_the_products_and_merged_weights_add_none() -> None:
    shape = tables.Shape(layers=3, width=10, inner=40, total=0)
    # Z x: 2 x 10 products and sums, U (Z x) likewise; A h: 2 x 40, B (A h): 10 x 2.
    assert shape.hook_flops() == 3 * (2 * 2 * 10 + 2 * 10 * 2)
    assert shape.adapter_flops() == 3 * (2 * 2 * 40 + 2 * 10 * 2)
    assert shape.adapter(2, rank=8) == 4 * shape.adapter(2)
    table = tables.costs_at_scale()
    merged = table["form"] == "merged weights"
    assert table.loc[merged, "extra operations per token"].tolist() == [0, 0]
    assert table.loc[merged, "several users in one batch"].str.startswith("no").all()
    assert table.loc[~merged, "of the base's, %"].between(0, 0.1, inclusive="neither").all()


def test_the_control_asks_under_every_other_users_edit(
    services: list[Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = services[0]
    owner = {id(user.profile.edit): user.name for user in service.served}

    def say(_service: Service, prompts: list[str], edit: object) -> list[str]:
        # The first user's edit differs from the others', which all say the same.
        name = owner.get(id(edit), "base")
        return ["first" if name == "user 1" else name[:4]] * len(prompts)

    monkeypatch.setattr(Service, "say", say)
    found = tables.whose_edit(service)
    assert found["held-out queries"] == 2 * USERS and found["changed by the own edit"] == 1
    # Of six ordered pairs of users, the two among users 2 and 3 agree.
    assert found["another user's edit says the same"] == pytest.approx(2 / 6)
    assert found["right: own edit"] == found["right: no edit"] == 0


def test_answers_of_both_solvers_are_compared_at_the_reference_s_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    one_task = replace(PROFILE, tasks=("LaMP_3",))
    found = serving.solver_table(one_task, SETTINGS, store=ArtifactStore(tmp_path))
    assert found["backbone"].tolist() == list(PROFILE.studied) and set(found["n"]) == {8}
    assert (found["mean loss, span"] <= found["mean loss, reference"]).all()
    assert found[serving.EQUAL].between(0, 1).all()
    for row in found.to_dict("records"):
        assert sorted(row["layers by loss"].strip("[]").split()) == ["0", "1", "2"]
    assert not set(serving.stable_part(found)) & {"mean loss, span", serving.EQUAL}


def test_the_figure_and_its_table_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    sizes = tables.sizes_at_scale()
    check_table(sizes, "sizes", "demo", "diagnostic")
    check_table(tables.costs_at_scale(), "costs", "demo", "diagnostic")
    tables.size_figure(sizes, Publisher("demo", "07_serving"))
    drawn = pd.read_csv(tmp_path / "demo" / "figures" / "07_sizes.csv")
    merged = drawn.loc[drawn["form"] == "merged weights, bfloat16", "value"]
    assert merged.round(1).tolist() == [10.2, 10.3]
    assert tables.decade(3e-7) == pytest.approx(1e-6) and tables.decade(0.0) == 0
