#!/usr/bin/env bash
# A checkpoint whose tokenizer has no unk_token (a byte-level one needs none) is converted by
# ctranslate2 without a word (here a Mistral; of a Llama it writes an empty text), and the result
# cannot be loaded.
# Guess: what converts loads; a tokenizer that knows every byte needs no unknown token.
# Seen (ctranslate2 4.8.5, transformers 5.23.0): the converter writes "unk_token": null and loading
# ends in a RuntimeError about the type of a JSON value. With a text there (also "") it loads.
# Ends with 1 if that is no longer so.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.13.0 transformers==5.23.0 ctranslate2==4.8.5 numpy
cat > "$folder/run.py" <<'PY'
import json, sys, ctranslate2, torch, transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast
folder = sys.argv[1]
words = {word: i for i, word in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
core = Tokenizer(models.BPE(words, []))
core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
sizes = dict(vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
             num_attention_heads=2, num_key_value_heads=2, sliding_window=None, bos_token_id=0, eos_token_id=1)
MistralForCausalLM(MistralConfig(**sizes)).save_pretrained(f"{folder}/model")
PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>").save_pretrained(f"{folder}/model")
ctranslate2.converters.TransformersConverter(f"{folder}/model").convert(f"{folder}/out")
config = json.load(open(f"{folder}/out/config.json"))
said = "it loads"
try:
    ctranslate2.Generator(f"{folder}/out")
except RuntimeError as error:
    said = str(error)
written, config["unk_token"] = config["unk_token"], ""
json.dump(config, open(f"{folder}/out/config.json", "w"))
ctranslate2.Generator(f"{folder}/out")
print(f"ctranslate2 {ctranslate2.__version__}, transformers {transformers.__version__}: unk_token "
      f"{written!r}: {said}; with an empty text it loads")
sys.exit(not (written is None and said != "it loads"))
PY
"$folder/env/bin/python" "$folder/run.py" "$folder"
