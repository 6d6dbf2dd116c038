#!/usr/bin/env bash
# transformers gives a GGUF model with a byte-level vocabulary one token more than the file lists.
#
# Versions: transformers 5.23.0, gguf 0.19.0, torch 2.13.0.
# Guess: the tokenizer that AutoTokenizer reads from a GGUF file has the tokens of that file.
# Seen: where the vocabulary is byte-level (tokenizer.ggml.model "gpt2": Llama 3, Qwen, SmolLM …) and
# has no token of GPT-2's name "<|endoftext|>", as Llama 3's has none, that token is added at the
# end, without a word: its id is the number of rows of the embedding table, one beyond the last.
# Hurts: a check of tokenizer against embedding table refuses a sound model; code that resizes
# embeddings to len(tokenizer) changes the model; and a user's text that quotes the marker is encoded
# with an id that the model has no row for.
# Do: take the words with an id below the file's own count, before the tokenizer is saved or used.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  transformers==5.23.0 gguf==0.19.0 torch==2.13.0 accelerate==1.15.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import gguf
import numpy as np
from transformers import AutoTokenizer
from transformers.models.gpt2.tokenization_gpt2 import GPT2Tokenizer  # noqa: F401  (what is built)

# The alphabet of byte-level vocabularies, two merges, and special tokens as Llama 3 names them.
visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
hidden = [byte for byte in range(256) if byte not in visible]
alphabet = [chr(b) for b in visible] + [chr(256 + n) for n in range(len(hidden))]
tokens = [*alphabet, "th", "the", "<|begin_of_text|>", "<|end_of_text|>"]
writer = gguf.GGUFWriter("tiny.gguf", "llama")
writer.add_block_count(1)
writer.add_context_length(64)
writer.add_embedding_length(8)
writer.add_feed_forward_length(8)
writer.add_head_count(2)
writer.add_head_count_kv(2)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_vocab_size(len(tokens))
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("llama-bpe")
writer.add_token_list(tokens)
writer.add_token_types([1] * (len(tokens) - 2) + [3, 3])
writer.add_token_merges(["t h", "th e"])
writer.add_bos_token_id(len(tokens) - 2)
writer.add_eos_token_id(len(tokens) - 1)
writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 8), dtype=np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
tokenizer = AutoTokenizer.from_pretrained(".", gguf_file="tiny.gguf")
print(f"tokens in the file, and rows of its embedding table: {len(tokens)}")
print(f"tokens of the tokenizer: {len(tokenizer)}")
quoted = tokenizer("the <|endoftext|>")["input_ids"]
print(f"ids of a text that quotes the marker: {quoted}")
assert len(tokenizer) == len(tokens) + 1, "the tokenizer now has the file's own tokens"
assert max(quoted) == len(tokens), "the marker no longer gets an id beyond the table"
PY
echo "as described: one token more than the file lists, with an id beyond the last row"
