#!/usr/bin/env bash
# OpenVINO GenAI takes a LoRA adapter as its safetensors file and never reads adapter_config.json: an
# adapter whose lora_alpha is not its rank is applied at another strength.
# Guess: a PEFT adapter acts as in PEFT, scaled by lora_alpha / r.
# Seen (openvino-genai 2026.4.1.0): B / 8 with lora_alpha 16 and r 2 (PEFT: the same update) gives the
# answers of an eighth of it; AdapterConfig(adapter, 8.0) repairs it. Ends with 1 if that changes.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.13.0 transformers==5.5.4 optimum-intel==2.2.0 \
  openvino-genai==2026.4.1.0 numpy
cat > "$folder/run.py" <<'PY'
import json, os, sys, torch, openvino as ov, openvino_genai as genai, numpy as np
from importlib.metadata import version
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from optimum.exporters.openvino import main_export
folder = sys.argv[1]
words = {word: i for i, word in enumerate(["<s>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
core = Tokenizer(models.BPE(words, [], unk_token="<unk>"))
core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
torch.manual_seed(0)
sizes = dict(vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=4, bos_token_id=0, eos_token_id=1)
model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
with torch.no_grad():
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.copy_(torch.randn(weight.shape) * 0.2)
model.save_pretrained(f"{folder}/model")
PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>").save_pretrained(f"{folder}/model")
main_export(f"{folder}/model", f"{folder}/ov", task="text-generation-with-past")
a, b = torch.randn(2, 128) * 0.4, torch.randn(64, 2) * 0.4
def adapter(name, scale, alpha):
    os.makedirs(f"{folder}/{name}")
    key = "base_model.model.model.layers.0.mlp.down_proj"
    save_file({f"{key}.lora_A.weight": a.clone(), f"{key}.lora_B.weight": b * scale}, f"{folder}/{name}/adapter_model.safetensors")
    config = dict(peft_type="LORA", task_type="CAUSAL_LM", r=2, lora_alpha=alpha, target_modules=["down_proj"])
    json.dump(config, open(f"{folder}/{name}/adapter_config.json", "w"))
    return genai.Adapter(f"{folder}/{name}/adapter_model.safetensors")
def says(adapter, scale):
    pipe = genai.LLMPipeline(f"{folder}/ov", "CPU", adapters=genai.AdapterConfig(adapter, scale), INFERENCE_PRECISION_HINT="f32")
    ids = np.array([[10, 40, 77, 120, 33]], dtype=np.int64)
    out = pipe.generate(genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids))), max_new_tokens=20, do_sample=False, ignore_eos=True)
    return list(out.tokens[0])
plain, rescaled = adapter("plain", 1, 2), adapter("rescaled", 1 / 8, 16)  # one update, in PEFT
right, found, weak, repaired = says(plain, 1.0), says(rescaled, 1.0), says(plain, 1 / 8), says(rescaled, 8.0)
print(f"openvino-genai {version('openvino-genai')}: as in PEFT {found == right}, as an eighth {found == weak}, repaired {repaired == right}")
sys.exit(not (found != right and found == weak and repaired == right))
PY
"$folder/env/bin/python" "$folder/run.py" "$folder"
