#!/usr/bin/env bash
# OpenVINO GenAI reads adapter_model.safetensors alone: it never opens adapter_config.json, so that
# lora_alpha / r, by which PEFT scales an adapter, is not applied.
# Guess: one adapter acts alike in PEFT and in a runtime that takes PEFT's files.
# Seen (openvino-genai 2026.4.1.0, peft 0.21.2): right where lora_alpha = r; with lora_alpha = 4 r the
# adapter acts at a quarter, without a message; AdapterConfig(adapter, lora_alpha / r) repairs it.
# Hurts: whoever serves an adapter that others trained, mostly with lora_alpha = 2 r.
# Ends with 1 if that is no longer so.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.13.0 transformers==5.5.4 peft==0.21.2 numpy \
  openvino-genai==2026.4.1.0 optimum-intel==2.2.0
# It comes along and is not used; built for another torch it would stop every import.
"$folder/env/bin/pip" uninstall -q -y torchvision
cat > "$folder/run.py" <<'PY'
import json, sys, warnings, numpy as np, openvino, openvino_genai as genai, peft, torch
from optimum.exporters.openvino import main_export
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
warnings.simplefilter("ignore")
folder, R, ALPHAS = sys.argv[1], 2, (2, 8)
words = {word: i for i, word in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
core = Tokenizer(models.BPE(words, []))
core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
sizes = dict(vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
             num_attention_heads=2, num_key_value_heads=2, bos_token_id=0, eos_token_id=1)
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
with torch.no_grad():
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.copy_(torch.randn(weight.shape) * 0.2)
model.save_pretrained(f"{folder}/base")
PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>").save_pretrained(f"{folder}/base")
main_export(f"{folder}/base", f"{folder}/ov", task="text-generation-with-past", convert_tokenizer=True)
prompt = [0, *range(40, 60)]
def likely(model):
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1)
base, wanted = likely(model), {}
lora = peft.LoraConfig(r=R, lora_alpha=R, target_modules=["down_proj"], task_type="CAUSAL_LM")
tuned = peft.get_peft_model(model, lora).eval()
with torch.no_grad():
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            weight.copy_(torch.randn(weight.shape) * 0.2)
tuned.save_pretrained(f"{folder}/adapter")
path = f"{folder}/adapter/adapter_config.json"
config = json.load(open(path))
def found(strength=None):
    adapter = genai.Adapter(f"{folder}/adapter/adapter_model.safetensors")
    chosen = genai.AdapterConfig(adapter) if strength is None else genai.AdapterConfig(adapter, strength)
    hints = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    pipe = genai.LLMPipeline(f"{folder}/ov", "CPU", adapters=chosen, **hints)
    ids = np.array([prompt], dtype=np.int64)
    given = genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
    out = pipe.generate(given, max_new_tokens=1, num_beams=8, num_return_sequences=8, length_penalty=0.0, ignore_eos=True)
    return {tokens[0]: score for tokens, score in zip(out.tokens, out.scores)}
def off(scores, logp):
    return max(abs(score - float(logp[token])) for token, score in scores.items())
plain, mended = {}, {}
for alpha in ALPHAS:
    json.dump({**config, "lora_alpha": alpha}, open(path, "w"))
    fresh = LlamaForCausalLM.from_pretrained(f"{folder}/base").eval()
    wanted[alpha] = likely(peft.PeftModel.from_pretrained(fresh, f"{folder}/adapter").eval())
    plain[alpha], mended[alpha] = found(), found(alpha / R)
    print(f"r {R}, lora_alpha {alpha}: log-probabilities moved by {float((wanted[alpha] - base).abs().max()):.2f} in PEFT; "
          f"OpenVINO off by {off(plain[alpha], wanted[alpha]):.1e}, with the strength {alpha / R:g} given by {off(mended[alpha], wanted[alpha]):.1e}")
quarter = off(plain[8], wanted[2])
print(f"openvino-genai {genai.__version__}, peft {peft.__version__}: with lora_alpha 8 it is the model of lora_alpha 2, to {quarter:.1e}")
sys.exit(not (off(plain[2], wanted[2]) < 1e-3 and off(plain[8], wanted[8]) > 0.1 and quarter < 1e-3 and off(mended[8], wanted[8]) < 1e-3))
PY
"$folder/env/bin/python" "$folder/run.py" "$folder"
