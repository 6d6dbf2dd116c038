"""The autoencoder, soft prompts in a frozen model, its loss, its training and its decoding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chameleon_lib.difference import (
    Distiller,
    FreePrompt,
    Recipe,
    Sample,
    SoftPrompted,
    as_released,
    collate,
    make_example,
    nll_of,
    sae_weight,
    train,
    write_all,
)
from chameleon_lib.difference.distil import RHO, Autoencoder, look, sparsity
from chameleon_lib.difference.model import Example
from chameleon_lib.errors import UserError
from tests.backbones.tiny import make_backbone
from tests.difference.small import D, Short, backbone, corpus, last_sample, layout, maker, prompted

CORPUS = corpus()


def examples(n: int = 3, **how: object) -> list[Example]:
    one, samples = maker(CORPUS), CORPUS.splits(4)
    return [
        make_example(backbone(), layout(**how), CORPUS, sample, one.of(sample))
        for sample in (*samples.train, *samples.test)[-n:]
    ]


# --- autoencoder ----------------------------------------------------------------------------------


def test_the_paper_has_30_424_576_trainable_parameters() -> None:
    d, h, hidden = 1024, 512, 3584
    with torch.device("meta"):
        found = sum(weight.numel() for weight in Distiller(d, hidden).parameters())
    sae = d * h + h + h * d + d
    assert found == sae + 2 * (h * hidden + hidden + hidden**2 + hidden) == 30_424_576


def test_sparsity_is_zero_at_rho_and_positive_elsewhere() -> None:
    mask = torch.ones(2, 4, dtype=torch.bool)
    assert float(sparsity(torch.full((2, 4, 5), RHO), mask)) == pytest.approx(0, abs=1e-7)
    assert all(float(sparsity(torch.randn(2, 4, 5), mask)) > 0 for _ in range(5))
    mask[1, 2:] = False  # padding does not count
    codes = torch.full((2, 4, 5), RHO)
    codes[1, 2:] = 3.0
    assert float(sparsity(codes, mask)) == pytest.approx(0, abs=1e-7)
    assert float(sparsity(codes, torch.zeros_like(mask))) == 0


def test_a_dead_unit_has_no_gradient_and_softplus_has_no_dead_units() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    codes = torch.full((1, 4, 3), -0.1, requires_grad=True)
    sparsity(codes, mask).backward()
    assert codes.grad is not None and not codes.grad.any()
    x = torch.randn(50, D)
    assert look(Autoencoder(D, 6, "softplus"), x)["dead units"] == 0
    dead = Autoencoder(D, 6)
    torch.nn.init.constant_(dead.encoder[0].bias, -3.0)
    torch.nn.init.zeros_(dead.encoder[0].weight)
    found = look(dead, x)
    assert found["dead units"] == 1 and found["active codes"] == 0
    assert found["below the floor"] == pytest.approx(float((x < -0.17).float().mean()), abs=0.01)


def test_the_decoder_cannot_reach_below_its_floor() -> None:
    decoded = Autoencoder(D, 6).decoder(100 * torch.randn(200, 6)).detach()
    assert float(decoded.min()) > -0.1701


def test_the_weight_of_the_autoencoder_keeps_its_balance() -> None:
    assert (sae_weight("keep", 64), sae_weight("match", 1024)) == (100, 100)
    assert sae_weight("match", 128) == 12.5
    with pytest.raises(UserError, match="match or keep"):
        sae_weight("none", 4)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="gelu or softplus"):
        Autoencoder(4, 2, "relu")  # type: ignore[arg-type]


# --- prompts --------------------------------------------------------------------------------------


def test_block_and_vector_carry_the_same_review() -> None:
    sample = last_sample(CORPUS)
    vectors = maker(CORPUS).of(sample)
    prompt = layout().prompt(CORPUS, sample.review, vectors.blocks)
    assert prompt.blocks == tuple(review.id for review in vectors.sources)
    made = make_example(backbone(), layout(), CORPUS, sample, vectors)
    assert torch.allclose(made.x[:4], torch.from_numpy(vectors.history).float())
    assert torch.allclose(made.x[4:], torch.from_numpy(vectors.difference).float())
    text = backbone().codec.tokenizer.decode([id_ for id_ in prompt.ids if id_ < 400])
    assert text == "<bos>thing 8 past: thing 7 thing 6 thing 5 thing 4 go:"


def test_every_placeholder_stands_once_between_its_markers() -> None:
    one, sample = layout(), last_sample(CORPUS)
    prompt = one.prompt(CORPUS, sample.review, maker(CORPUS).of(sample).blocks)
    new = [id_ - one.vocabulary for id_ in prompt.ids if id_ >= one.vocabulary]
    names = [one.places[at] for at in new]
    assert len(one.places) == 2 * 4 + 4
    assert names[:6] == [
        "<his_token_start>", "[HIS_TOKEN_0]", "<his_token_end>",
        "<diff_token_start>", "[DIFF_TOKEN_0]", "<diff_token_end>",
    ]  # fmt: skip
    assert sorted(at for at in new if at < 8) == list(range(8)) == list(prompt.rows)


def test_old_blocks_are_dropped_until_the_prompt_fits_and_no_text_makes_a_place() -> None:
    sample = last_sample(CORPUS)
    blocks = maker(CORPUS).of(sample).blocks
    whole, bare = (len(layout().prompt(CORPUS, sample.review, b).ids) for b in (blocks, ()))
    short = layout(max_tokens=whole - 1).prompt(CORPUS, sample.review, blocks)
    assert short.blocks == tuple(review.id for review in blocks[:3])
    assert short.rows == (0, 1, 2, 4, 5, 6)
    with pytest.raises(UserError, match="without any past review"):
        layout(max_tokens=bare - 1).prompt(CORPUS, sample.review, blocks)
    told = layout().prompt(CORPUS, sample.review, told="\ue0003\ue000 [HIS_TOKEN_1]")
    assert all(id_ < layout().vocabulary for id_ in told.ids)


def test_a_prompt_has_the_kinds_that_were_asked_for() -> None:
    (one,) = examples(1, kinds=("difference",))
    assert one.mask.tolist() == [False] * 4 + [True] * 4 and not one.x[:4].any()
    (none,) = examples(1, kinds=())
    assert not none.mask.any() and len(none.ids) < len(one.ids)
    (bare,) = examples(1, bare=True)
    assert bare.mask.all() and len(bare.ids) < len(examples(1)[0].ids)
    with pytest.raises(UserError, match="no soft prompt of kind"):
        layout(kinds=("words",))


def test_fewer_reviews_than_slots_are_padded_and_as_released_they_break() -> None:
    found = corpus(items=3)
    sample = last_sample(found)
    made = make_example(backbone(), layout(), found, sample, maker(found).of(sample))
    assert made.mask.tolist() == [True, True, False, False] * 2
    assert torch.isfinite(nll_of_one(made)).all()
    wild = as_released(misaligned=False, later_reviews=False)
    vectors = maker(found, released=wild).of(sample)
    theirs = make_example(backbone(), layout(released=wild), found, sample, vectors)
    assert len(theirs.x) == 4
    with pytest.raises(IndexError):  # the split at the number of slots is in the wrong place
        nll_of_one(theirs)


def nll_of_one(made: Example) -> torch.Tensor:
    return prompted().nll(collate([made]))[0]


def test_the_chat_template_is_the_tokenizers_and_as_released_a_newline_is_missing() -> None:
    one = make_backbone("qwen2").codec.tokenizer
    one.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    one.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    sample = last_sample(CORPUS)
    blocks = maker(CORPUS).of(sample).blocks

    def said(**how: object) -> str:
        words = Short()
        words.system = "Write."
        made = replace(layout(wording=words, **how), tokenizer=one, vocabulary=len(one))
        ids = made.prompt(CORPUS, sample.review, blocks).ids
        return str(one.decode([id_ for id_ in ids if id_ < len(one)]))

    ours, theirs = said(), said(released=as_released())
    start = "<|im_start|>system\nWrite.<|im_end|>\n<|im_start|>user\nthing 8 past:"
    assert ours.startswith(start)
    assert theirs == ours.replace("<|im_end|>\n<|im_start|>user", "<|im_end|><|im_start|>user")


# --- the frozen model -----------------------------------------------------------------------------


def test_gradients_reach_the_autoencoder_and_the_projections_alone() -> None:
    model = prompted()
    model(collate(examples())).backward()
    got = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert got == {f"soft.{name}" for name, _ in model.soft.named_parameters()}
    assert model.rows.grad is None and not model.rows.requires_grad
    assert all(w.grad is None and not w.requires_grad for w in backbone().model.parameters())


def test_placeholders_are_overwritten_and_everything_else_keeps_its_row() -> None:
    model = prompted()
    batch = collate(examples(2))
    soft, _ = model.soft(batch.x, batch.mask)
    made = model.embeds(batch.ids, soft, batch.mask)
    for b, row in enumerate(batch.ids.tolist()):
        for at, id_ in enumerate(row):
            place = id_ - model.vocabulary
            wanted = (
                backbone().model.get_input_embeddings().weight[id_] if place < 0
                else soft[b, place] if place < 8 else model.rows[place]
            )  # fmt: skip
            assert torch.allclose(made[b, at], wanted)


@pytest.mark.parametrize("wrong", ["missing", "twice", "unwanted"])
def test_a_placeholder_that_is_missing_or_stands_twice_is_an_error(wrong: str) -> None:
    model, batch = prompted(), collate(examples(1))
    ids, mask, at = batch.ids.clone(), batch.mask.clone(), model.vocabulary
    if wrong == "unwanted":
        mask[0, 3] = False
    else:
        ids[ids == at + (2 if wrong == "twice" else 1)] = at + 1 if wrong == "twice" else 5
    soft, _ = model.soft(batch.x, mask)
    with pytest.raises(ValueError, match="stand once"):
        model.embeds(ids, soft, mask)


def test_other_users_and_permuted_halves_change_the_loss() -> None:
    model, (one, other) = prompted(), examples(2)
    swapped = replace(one, x=other.x)
    turned = replace(one, x=one.x.roll(4, dims=0))
    values = [float(model.nll(collate([e]))[0].detach()) for e in (one, swapped, turned)]
    assert len({round(value, 5) for value in values}) == 3


def test_padding_changes_nothing() -> None:
    model = prompted()
    many = [*examples(2), *examples(1, kinds=())]
    together = model.nll(collate(many))[0]
    alone = torch.cat([model.nll(collate([one]))[0] for one in many])
    assert torch.allclose(together, alone, atol=1e-5)


def test_the_loss_is_the_models_alone_at_weight_zero() -> None:
    batch = collate(examples())
    free, weighed = prompted(weight=0.0), prompted(weight=2.0)
    nll, own = free.nll(batch)
    assert float(own.detach()) > 0
    assert float(free(batch)) == pytest.approx(float(nll.mean()))
    assert float(weighed(batch)) == pytest.approx(float(nll.mean() + 2 * own))
    assert float(prompted(sae=False).nll(batch)[1]) == 0


def test_nll_without_soft_prompts_is_that_of_the_backbone() -> None:
    made = examples(2, kinds=())
    texts = [s.review.text for s in CORPUS.splits(4).test[-2:]]
    asked = ["thing 8 go:"] * 2
    wanted = -backbone().score(backbone().prepare(asked), texts, reduce="mean")
    assert prompted().nll(collate(made))[0].tolist() == pytest.approx(wanted.tolist(), abs=1e-4)


def test_decoding_is_step_by_step_argmax_and_returns_new_tokens_only() -> None:
    model, made = prompted(), examples(2)
    written = write_all(model, made, 6)
    with torch.no_grad():
        for one, text in zip(made, written, strict=True):
            inputs, _ = model.read(collate([one], with_answers=False))
            embeds, new = inputs["inputs_embeds"], []
            for _ in range(6):
                logits = backbone().model(inputs_embeds=embeds).logits[0, -1]
                new.append(int(logits.argmax()))
                row = backbone().model.get_input_embeddings()(torch.tensor([[new[-1]]]))
                embeds = torch.cat([embeds, row], dim=1)
            assert text == backbone().codec.decode(torch.tensor([new]))[0]


def test_sampling_repeats_under_its_seed() -> None:
    model, made = prompted(), examples(2)
    first, again, other = (write_all(model, made, 8, temperature=0.8, seed=s) for s in (1, 1, 2))
    assert first == again != other


def test_training_lowers_the_loss_and_leaves_the_model_as_it_was() -> None:
    model, made = prompted(), examples(6)
    before = {name: value.clone() for name, value in backbone().model.state_dict().items()}
    rows, at_first = model.rows.clone(), nll_of(model, made).mean()
    recipe = Recipe(epochs=6, batch=3, accumulate=1, lr=5e-3)
    log = train(model, made[:5], made, recipe)
    assert nll_of(model, made).mean() < at_first and len(log.losses) == 12
    assert log.valid[log.best] == min(log.valid) == pytest.approx(nll_of(model, made).mean())
    assert torch.equal(rows, model.rows)
    assert all(torch.equal(before[n], v) for n, v in backbone().model.state_dict().items())


def test_accumulated_samples_make_the_step_of_one_batch() -> None:
    made, steps = examples(4), []
    for batch, accumulate in ((4, 1), (1, 4)):
        model = prompted(weight=0.0)
        train(model, made, [], Recipe(1, batch, accumulate, 1e-2))
        steps.append(torch.cat([w.detach().flatten() for w in model.soft.history.parameters()]))
    assert torch.allclose(*steps, atol=1e-4)


def test_meteor_selects_as_released() -> None:
    model, made = prompted(), examples(2)
    recipe = Recipe(2, 2, 1, 1e-3, select="meteor", new_tokens=4)
    log = train(model, made, made, recipe, golds=["so it goes"] * 2)
    assert len(log.valid) == 2 and all(-1 <= score <= 0 for score in log.valid)


def test_a_learned_soft_prompt_is_the_same_for_everybody() -> None:
    hidden = backbone().model.get_input_embeddings().weight.shape[1]
    model = SoftPrompted(backbone(), FreePrompt(8, hidden), slots=4, weight=1.0)
    one, other = examples(2, bare=True)
    values = [float(nll_of(model, [e])[0]) for e in (one, replace(one, x=other.x))]
    assert values[0] == values[1]


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(UserError, match="no sample to train on"):
        train(prompted(), [], [], Recipe())
    with pytest.raises(UserError, match="1 or more"):
        Recipe(epochs=0)
    with pytest.raises(UserError, match="loss or meteor"):
        Recipe(select="f1")
    with pytest.raises(UserError, match="no decoder"):
        SoftPrompted(make_backbone("t5"), FreePrompt(8, 24), slots=4, weight=1.0)


def test_swapped_users_have_the_others_vectors() -> None:
    mine, yours = CORPUS.splits(4).test[:2]
    swapped = Sample(mine.review, CORPUS.before(yours.owner, mine.review))
    assert swapped.owner == yours.owner != mine.owner
    assert {review.user for review in maker(CORPUS).of(swapped).sources} == {yours.owner}
