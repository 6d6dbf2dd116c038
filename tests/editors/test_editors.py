"""The four editors on tiny random models: algebra, bounds, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.editors import EDITORS, FTL, FTM, ROME, LoRA, Request
from chameleon_lib.editors.editor import Editor
from chameleon_lib.editors.released import as_released
from chameleon_lib.editors.rome import rank_change, sample_prefixes, unit_key
from chameleon_lib.editors.sites import NAMED_LAYERS, default_layer, site_of
from chameleon_lib.editors.tokens import (
    SubjectRows,
    asked,
    forced_loss,
    last_token_loss,
    read_once,
    subject_place,
)
from chameleon_lib.errors import UserError
from tests.backbones.tiny import make_backbone

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gpt2", "t5"]
ASKED = Request("What's my hobby, the hobby I like?", "hobby", "a lonely robot")
OTHER = Request("Which movie tag fits?", "movie tag", "fantasy")
PREFIXES = ["Now, something short. ", "Two friends laugh. "]
MAKERS: dict[str, Callable[[HFBackbone], Editor]] = {
    "ROME": lambda b: ROME(b, prefixes=PREFIXES, steps=4),
    "FT-L": lambda b: FTL(b, steps=3),
    "FT-M": lambda b: FTM(b, steps=3),
    "LoRA": lambda b: LoRA(b, steps=3),
}


def state(backbone: HFBackbone) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in backbone.model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[n], other[n]) for n in one)


def logits(backbone: HFBackbone) -> Tensor:
    read = backbone.prepare(["What's my hobby?", "Which movie tag fits?"])
    return torch.stack(backbone.score_many(read, [["comedy", "fantasy"]] * 2))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", list(EDITORS))
def test_an_edit_changes_its_weights_alone_and_is_taken_back_bit_for_bit(
    name: str, family: str
) -> None:
    backbone = make_backbone(family)
    before, said = state(backbone), logits(backbone)
    editor = MAKERS[name](backbone)
    with editor.edit(ASKED, OTHER) as undo:
        after = backbone.model.state_dict()
        assert not torch.equal(logits(backbone), said)
        changed = {n for n in before if n in after and not torch.equal(before[n], after[n])}
        if name == "LoRA":
            assert not changed and any("lora_" in key for key in after)
        else:
            assert changed == set(undo.traces[0].changed) == {editor.site.name}  # type: ignore[attr-defined]
        assert len(undo.traces) == 2 and all(trace.steps for trace in undo.traces)
        assert undo.active and undo.seconds > 0 and undo.nbytes > 0
    assert not undo.active and same(before, state(backbone))
    assert torch.equal(logits(backbone), said)
    assert not any(weight.requires_grad for weight in backbone.model.parameters())
    assert not backbone.model.training
    undo.restore()  # nothing to do


@pytest.mark.parametrize("name", list(EDITORS))
def test_a_failing_edit_and_a_failing_block_leave_the_model_as_it_was(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = make_backbone("llama", tie_word_embeddings=True)
    model = backbone.model
    tied = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is tied
    before, editor = state(backbone), MAKERS[name](backbone)
    with pytest.raises(ZeroDivisionError), editor.edit(ASKED):
        raise ZeroDivisionError
    assert same(before, state(backbone)) and model.get_output_embeddings().weight is tied
    fit = editor._fit
    calls: list[Any] = []

    def fails(requests: Any) -> Any:
        if calls:
            raise KeyboardInterrupt
        calls.append(fit(requests))
        return calls[0]

    monkeypatch.setattr(editor, "_fit", fails)
    with pytest.raises(KeyboardInterrupt):
        editor.edit(ASKED, OTHER)
    assert calls and same(before, state(backbone))
    assert model.get_output_embeddings().weight is tied
    monkeypatch.undo()
    editor.edit(ASKED).restore()
    assert same(before, state(backbone))


def test_edits_are_undone_in_reverse_order() -> None:
    backbone = make_backbone("llama")
    before, editor = state(backbone), MAKERS["ROME"](backbone)
    one, two = editor.edit(ASKED), editor.edit(OTHER)
    with pytest.raises(UserError, match="undo the latest edit first"):
        one.restore()
    two.restore()
    one.restore()
    assert same(before, state(backbone))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-6), (torch.float32, 1e-2)])
def test_rome_equals_a_float64_reference(family: str, dtype: torch.dtype, near: float) -> None:
    """u, v* and ΔW from whole passes, without cut prompts, stored prefixes or padding.

    Adam divides a slope by its size, so in float32 slopes near 0 move by more than their digits.
    """
    backbone = make_backbone(family)
    backbone.model.to(dtype)
    editor = ROME(backbone, prefixes=PREFIXES, steps=4, most=2.0)
    old = editor.site.weight.detach().clone().double()
    undo = editor.edit(ASKED)
    change = editor.site.weight.detach().double() - old
    undo.restore()
    own = editor._value(ASKED)
    u, v, v0, wanted = reference(backbone, editor)
    assert torch.allclose(unit_key(own.keys), u, atol=1e-6)
    assert torch.allclose(own.change.double() + v0, v, atol=near)
    assert torch.allclose(change, wanted, atol=near)
    singular = torch.linalg.svdvals(change)
    assert singular[1] < 1e-5 * singular[0]
    row = change[change.norm(dim=1).argmax()]
    assert abs(float(row @ u) / float(row.norm())) == pytest.approx(1, abs=1e-5)
    assert undo.traces[0].limit == pytest.approx(2 * float(v0.norm()), rel=1e-5)
    assert max(undo.traces[0].norms) <= undo.traces[0].limit * (1 + 1e-6)


def reference(backbone: HFBackbone, editor: ROME) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``u``, ``v*``, ``v0`` and ΔW of :data:`ASKED`, all in float64."""
    model, module = backbone.model.double(), editor.site.module
    encdec = backbone.family == "encoder-decoder"
    rows = [asked(backbone, ASKED, prefix) for prefix in ("", *PREFIXES)]
    told = backbone.codec.prompts(["hobby is a"])[0]
    seen: dict[str, Tensor] = {}

    def run(prompt: list[int], target: list[int], at: int, change: Tensor | None) -> Tensor:
        def hook(_module: Any, inputs: Any, output: Tensor) -> Tensor:
            seen["key"], seen["value"] = inputs[0][0, at].detach(), output[0, at].detach()
            if change is None:
                return output
            return torch.cat(
                [output[:, :at], output[:, at : at + 1] + change, output[:, at + 1 :]], 1
            )

        handle = module.register_forward_hook(hook)
        if encdec:
            ids = torch.tensor([[0, *target[:-1]]])
            out = model(input_ids=torch.tensor([prompt]), decoder_input_ids=ids).logits[0]
        else:
            out = model(input_ids=torch.tensor([prompt + target[:-1]])).logits[0]
        handle.remove()
        found: Tensor = out
        return found

    def first(prompt: list[int]) -> int:
        return 0 if encdec else len(prompt) - 1

    place = subject_place(backbone, "hobby is a", "hobby")
    after = 0 if encdec else place
    with torch.no_grad():
        keys = []
        for row in reversed(rows):
            run(row.prompt, row.target, row.at, None)
            keys.append(seen["key"])
        v0 = seen["value"]  # of the bare question, the last one run
        before = run(told, [], place, None)[after].log_softmax(0)
    keys = keys[::-1]
    change = torch.zeros_like(v0, requires_grad=True)
    adam = torch.optim.Adam([change], lr=editor.lr)
    for _ in range(editor.steps):
        said = []
        for row in rows:
            out = run(row.prompt, row.target, row.at, change)[first(row.prompt) :]
            logp = out.log_softmax(-1)
            said.append(-torch.stack([logp[t, w] for t, w in enumerate(row.target)]).mean())
        now = run(told, [], place, change)[after].log_softmax(0)
        loss = torch.stack(said).mean() + editor.kl * (now.exp() * (now - before)).sum()
        loss = loss + editor.decay * change.norm() / v0.norm() ** 2
        (change.grad,) = torch.autograd.grad(loss, [change])
        adam.step()
        with torch.no_grad():
            change.mul_(min(1.0, float(editor.most * v0.norm() / change.norm())))
    model.float()
    mean = torch.stack(keys).mean(dim=0)
    u = mean / mean.norm()
    value = (v0 + change).detach()
    delta = torch.outer((value - v0) / (keys[0] @ u), u)
    return u, value, v0, delta


@pytest.mark.parametrize("family", FAMILIES)
def test_the_edited_weight_gives_the_value_that_was_found(family: str) -> None:
    backbone = make_backbone(family)
    editor = ROME(backbone, prefixes=PREFIXES, steps=4)
    found = editor._value(ASKED)
    row = asked(backbone, ASKED)
    seen: list[Tensor] = []

    def hook(_module: Any, _inputs: Any, output: Tensor) -> None:
        seen.append(output[0, read.places[0]])

    with editor.edit(ASKED):
        read = SubjectRows(backbone, [row])
        handle = editor.site.module.register_forward_hook(hook)
        read.logits()
        handle.remove()
    read = SubjectRows(backbone, [row])
    handle = editor.site.module.register_forward_hook(hook)
    read.logits()
    handle.remove()
    assert torch.allclose(seen[0] - seen[1], found.change, atol=1e-4)


def test_several_requests_together_each_get_their_value() -> None:
    backbone = make_backbone("llama")
    editor = ROME(backbone, prefixes=PREFIXES, steps=4)
    old = editor.site.weight.clone().double()
    found = [editor._value(request) for request in (ASKED, OTHER)]
    with editor.edit(ASKED, OTHER, joint=True) as undo:
        change = editor.site.weight.double() - old
    assert len(undo.traces) == 1
    for one in found:
        assert torch.allclose(change @ one.keys[0].double(), one.change.double(), atol=1e-4)
    assert int((torch.linalg.svdvals(change) > 1e-5).sum()) == 2
    with pytest.raises(UserError, match="same subject in the same question"):
        editor.edit(ASKED, ASKED, joint=True)


def test_a_change_for_one_key_is_the_outer_product() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, change = (torch.rand(3, 7, generator=generator), torch.rand(5, generator=generator))
    u = unit_key(keys)
    left, right = rank_change(keys[:1], u[None], change[None])
    found = left @ right
    assert torch.allclose(found, torch.outer(change.double() / (keys[0].double() @ u), u))
    with pytest.raises(UserError, match="little in common"):
        unit_key(torch.tensor([[1.0, 0.0], [0.0, 9.0], [-0.5, 9.0]]))


def test_prefixes_are_drawn_once_from_a_seed_and_leave_the_generator_alone() -> None:
    backbone = make_backbone("llama")
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    found = sample_prefixes(backbone, seed=1)
    assert torch.equal(torch.rand(1), wanted)
    assert len(found) == 20 and all(text.endswith(". ") for text in found)
    assert sample_prefixes(backbone, seed=1) == found != sample_prefixes(backbone, seed=2)
    editor = ROME(backbone, seed=1, steps=1)
    with editor.edit(ASKED):
        assert editor.prefixes == found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_occurrence_of_the_subject_is_found_by_its_letters(family: str) -> None:
    backbone = make_backbone(family)
    for prefix in ("", PREFIXES[0]):
        row = asked(backbone, ASKED, prefix)
        tokenizer = backbone.codec.tokenizer
        before = tokenizer.decode(row.prompt[: row.at], skip_special_tokens=True)
        upto = tokenizer.decode(row.prompt[: row.at + 1], skip_special_tokens=True)
        end = f"{prefix}What's my hobby, the hobby"
        assert len(before) < len(end) <= len(upto) and upto.startswith(end)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_from_the_subject_on_equals_the_whole_pass(family: str) -> None:
    backbone = make_backbone(family)
    rows = [asked(backbone, ASKED, prefix) for prefix in ("", *PREFIXES)]
    for row, out in zip(rows, SubjectRows(backbone, rows).logits(), strict=True):
        wanted = torch.tensor(row.target)
        loss = torch.nn.functional.cross_entropy(out, wanted)
        assert torch.allclose(loss, forced_loss(backbone, row), atol=1e-5)


def test_fine_tuning_keeps_its_bounds_and_teacher_forcing_learns_the_answer() -> None:
    backbone = make_backbone("llama")
    forced = FTM(backbone, lr=2e-2, steps=40)
    with forced.edit(ASKED) as undo:
        loss = undo.traces[0].loss
        assert loss[-1] < 0.5 * loss[0]
    loose = FTL(backbone, lr=2e-2, steps=40)
    row = asked(backbone, ASKED)
    shares = torch.bincount(torch.tensor(row.target)).float() / len(row.target)
    entropy = float(torch.special.entr(shares).sum())
    with loose.edit(ASKED) as undo:
        assert entropy > 0 and min(undo.traces[0].loss) >= entropy - 1e-6
        assert undo.traces[0].loss[-1] == pytest.approx(
            float(last_token_loss(backbone, row)), abs=1e-5
        )
    for maker in (FTL, FTM):
        tight = maker(backbone, lr=1e-2, steps=5, clamp=5e-5)
        old = tight.site.weight.clone()
        with tight.edit(ASKED) as undo:
            moved = (tight.site.weight - old).abs()
            assert 0 < float(moved.max()) <= 5e-5 * 1.01
            assert max(undo.traces[0].norms) <= undo.traces[0].limit * (1 + 1e-4)


def test_layers_below_the_edited_one_are_read_once_and_change_nothing() -> None:
    backbone = make_backbone("gpt2")
    rows = [asked(backbone, request) for request in (ASKED, OTHER)]
    plain = [float(forced_loss(backbone, row)) for row in rows]
    calls: list[int] = []
    handle = backbone.sites()[0].register_forward_hook(lambda *_: calls.append(1))
    with read_once(backbone, 2) as of_row:
        for _ in range(3):
            for at, row in enumerate(rows):
                of_row(at)
                assert float(forced_loss(backbone, row)) == pytest.approx(plain[at], abs=1e-6)
    assert len(calls) == 2
    handle.remove()
    assert [float(forced_loss(backbone, row)) for row in rows] == plain
    assert not any("forward" in block.__dict__ for block in backbone.sites("block_out"))


def test_lora_starts_as_the_base_and_follows_the_released_switch() -> None:
    backbone = make_backbone("llama")
    said = logits(backbone)
    with LoRA(backbone, steps=0).edit(ASKED):
        assert torch.equal(logits(backbone), said)
    with LoRA(backbone, steps=2).edit(ASKED) as undo:
        assert {name.rpartition(".lora_")[2][0] for name in undo.traces[0].changed} == {"A", "B"}
        assert all("q_proj" in n or "v_proj" in n for n in undo.traces[0].changed)
        with pytest.raises(UserError, match="carries adapters already"):
            LoRA(backbone).edit(OTHER)
        again = logits(backbone)
        assert torch.equal(again, logits(backbone))  # no dropout while it is tested
    adaptive = LoRA(backbone, steps=2, released=as_released())
    with adaptive.edit(ASKED) as undo:
        shapes = [tuple(w.shape) for n, w in backbone.model.named_parameters() if "lora_A" in n]
        assert {shape[0] for shape in shapes} == {12}
    assert torch.equal(logits(backbone), said)


def test_ft_l_as_released_fits_special_tokens_too() -> None:
    backbone = make_backbone("llama")
    assert 2 not in FTL(backbone)._asked(ASKED).target
    assert FTL(backbone, released=as_released())._asked(ASKED).target[0] == 2
    kept = as_released(special_tokens=False)
    assert 2 not in FTL(backbone, released=kept)._asked(ASKED).target and kept.adalora


def test_the_papers_layers_are_named_and_others_lie_as_deep() -> None:
    class Named:
        def __init__(self, family: str, layers: int, width: int) -> None:
            config = type("Config", (), {"model_type": family})
            self.model = type("Model", (), {"config": config})
            self.n_layers, self.d, self.family = layers, width, "decoder"

    for (family, layers, width), (rome, tuned) in NAMED_LAYERS.items():
        model: Any = Named(family, layers, width)
        assert (default_layer(model, "rome"), default_layer(model, "tuned")) == (rome, tuned)
    small: Any = Named("llama", 30, 576)
    assert (default_layer(small, "rome"), default_layer(small, "tuned")) == (16, 20)
    other: Any = Named("llama", 30, 640)
    assert (default_layer(other, "rome"), default_layer(other, "tuned")) == (5, 20)


def test_what_cannot_be_edited_is_refused_in_a_sentence() -> None:
    def told(match: str, call: Callable[[], object]) -> None:
        with pytest.raises(UserError, match=match) as caught:
            call()
        assert str(caught.value).count(". ") == 0

    backbone = make_backbone("llama")
    told("does not stand in the question", lambda: Request("What's my name?", "hobby", "x"))
    told("target of the question .* is empty", lambda: Request("What's my hobby?", "hobby", " "))
    told("no weight editor for models of the family 'phi3'", lambda: ROME(make_backbone("phi3")))
    told("no weight editor .* 'opt'", lambda: LoRA(make_backbone("opt")))
    told("layers 0 to 2", lambda: FTM(backbone, layer=3))
    told("needs a request", lambda: FTM(backbone).edit())
    marked = Request("Is <eos> my hobby?", "hobby", "x")
    told("spells a control token", lambda: ROME(backbone, prefixes=[]).edit(marked))
    long = Request("word " * 300 + "hobby", "hobby", "x")
    told("reads at most", lambda: FTM(backbone).edit(long))
    for layer in backbone.model.model.layers:
        del layer.mlp.down_proj
    told("has no module 'model.layers.0.mlp.down_proj'", lambda: site_of(backbone, "rome", 0))
    for layer in backbone.model.model.layers:
        del layer.self_attn.q_proj, layer.self_attn.v_proj
    told("has no module q_proj or v_proj", lambda: LoRA(backbone).edit(ASKED))


def test_packed_weights_are_refused() -> None:
    backbone = make_backbone("llama")
    with (
        LoRA(backbone, steps=1).edit(ASKED),
        pytest.raises(UserError, match="carries adapters already"),
    ):
        LoRA(backbone).edit(ASKED)
    layer = backbone.model.model.layers[0].mlp
    layer.down_proj.weight = torch.nn.Parameter(
        layer.down_proj.weight.to(torch.int8), requires_grad=False
    )
    with pytest.raises(UserError, match="packed or replaced"):
        site_of(backbone, "rome", 0)
