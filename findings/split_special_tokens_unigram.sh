#!/usr/bin/env bash
# Question: a review says "the tag </s> was printed on the box". Does split_special_tokens=True read
#   that mark as text, as its documentation says, for every kind of tokenizer?
# Guess: yes; ['<', '/s', '>'] or the like for BPE and for Unigram (T5, mT5, ALBERT) alike.
# Seen (transformers 5.23.0, tokenizers 0.23.3): for BPE it is. For Unigram the mark stays the real
#   end-of-sequence token: the switch takes the mark out of the added tokens, and the Unigram model
#   finds the same piece in its vocabulary. sanitize_control_tokens=True of apply_chat_template
#   cannot help there: it raises ValueError. Nothing is said in the first case, and a text ends early.
# Who is hurt: a user of T5-class models whose history spells a mark; the rest of it is cut from sight.
# Do: count control ids against those of a neutral text; or rename the pieces in a copy of the
#   tokenizer before it reads what users wrote.
# Exits 1 if that changes.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3 jinja2==3.1.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = "the tag </s> was printed on the box"
LINES = [TEXT.replace("</s>", "</i>"), "a box with a printed tag", "the handle broke"] * 50
MARKS = ["<pad>", "</s>", "<unk>"]


def made(model, trainer):
    core = Tokenizer(model)
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.train_from_iterator(LINES, trainer)
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


found = {}
for kind, tokenizer in {
    "BPE": made(models.BPE(unk_token="<unk>"), trainers.BpeTrainer(special_tokens=MARKS, vocab_size=200, show_progress=False)),
    "Unigram": made(models.Unigram(), trainers.UnigramTrainer(special_tokens=MARKS, unk_token="<unk>", vocab_size=90, show_progress=False)),
}.items():
    ids = tokenizer(TEXT, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    try:
        turn = [{"role": "user", "content": TEXT}]
        tokenizer.apply_chat_template(turn, sanitize_control_tokens=True)
        said = "no error"
    except ValueError as error:
        said = f"ValueError: {error}"
    found[kind] = (tokenizer.eos_token_id in ids, said)
    print(f"{kind}: end-of-sequence inside the text: {found[kind][0]}; sanitized chat: {said}")
expected = {"BPE": (False, "no error")}
ok = found["BPE"] == expected["BPE"] and found["Unigram"][0] and found["Unigram"][1].startswith("ValueError")
print("as described" if ok else "CHANGED")
raise SystemExit(0 if ok else 1)
PY
