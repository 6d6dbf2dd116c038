#!/usr/bin/env bash
# ctranslate2 converts a T5 with a head of its own (Flan-T5, T5 v1.1) under transformers 5 with its
# logits divided by sqrt(d_model): greedy texts agree, every probability is wrong.
# Guess: where the texts agree, the scores do.
# Seen (ctranslate2 4.8.5, transformers 5.23.0): scores are those of the divided logits; with
# model.config.tie_word_embeddings = False between loading and converting they are right.
# Ends with 1 if that is no longer so.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.13.0 transformers==5.23.0 ctranslate2==4.8.5 numpy
cat > "$folder/run.py" <<'PY'
import json, sys, ctranslate2, torch, transformers
from ctranslate2.converters import TransformersConverter
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
folder, names = sys.argv[1], ["<pad>", "</s>", "<unk>", *[f"w{i}" for i in range(47)]]
core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
torch.manual_seed(0)
sizes = dict(vocab_size=50, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=4, tie_word_embeddings=False,
             feed_forward_proj="gated-gelu", decoder_start_token_id=0)
model = T5ForConditionalGeneration(T5Config(**sizes)).eval()
with torch.no_grad():
    for weight in model.parameters():
        weight.copy_(torch.randn(weight.shape) * 0.2)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(50, 64))
    model.save_pretrained(f"{folder}/model")
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>").save_pretrained(f"{folder}/model")
    path = f"{folder}/model/config.json"  # as the public checkpoints say
    config = json.load(open(path)); config["tie_word_embeddings"] = False; json.dump(config, open(path, "w"))
    model = T5ForConditionalGeneration.from_pretrained(f"{folder}/model").eval()
    source, target = [5, 9, 30, 1], [17, 40, 8]
    logits = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[0, *target[:-1]]])).logits[0]
def right(scale):
    logp = (logits * scale).log_softmax(-1)
    return [float(logp[i, token]) for i, token in enumerate(target)]
class Mended(TransformersConverter):
    def load_model(self, *args, **named):
        loaded = super().load_model(*args, **named)
        loaded.config.tie_word_embeddings = False
        return loaded
def scores(converter, to):
    converter(f"{folder}/model").convert(f"{folder}/{to}")
    translator = ctranslate2.Translator(f"{folder}/{to}")
    words = [[names[token] for token in tokens] for tokens in (source, target)]
    return translator.score_batch([words[0]], [words[1]])[0].log_probs[: len(target)]
def off(found, wanted):
    return max(abs(a - b) for a, b in zip(found, wanted))
plain, mended = scores(TransformersConverter, "plain"), scores(Mended, "mended")
print(f"ctranslate2 {ctranslate2.__version__}, transformers {transformers.__version__}: log-probabilities off by "
      f"{off(plain, right(1)):.2f}; from logits / sqrt(64) by {off(plain, right(1 / 8)):.1e}; mended {off(mended, right(1)):.1e}")
sys.exit(not (off(plain, right(1)) > 0.1 and off(plain, right(1 / 8)) < 1e-3 and off(mended, right(1)) < 1e-3))
PY
"$folder/env/bin/python" "$folder/run.py" "$folder"
