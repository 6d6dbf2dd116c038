#!/usr/bin/env bash
# PEFT looks for an adapter's name inside the names of tensors. Users' ids as adapter names meet each
# other and the numbers of layers.
# Guess: names are keys; an adapter called "2" or "user1" is like any other.
# Seen (peft 0.21.2, transformers 5.23.0): loading "user1" beside "user10" reports tensors of user10
# as missing, and with an adapter called "2" save_pretrained leaves the tensors of layer 2 out of
# EVERY OTHER adapter, without a word. Names of one length with a prefix ("u-000002") do not.
# Ends with 1 if that is no longer so.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy
cat > "$folder/run.py" <<'PY'
import sys, warnings, peft, torch, transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM
warnings.simplefilter("ignore")
folder = sys.argv[1]
sizes = dict(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
             num_attention_heads=2, num_key_value_heads=2)
def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes))
lora = LoraConfig(r=2, target_modules=["down_proj"], task_type="CAUSAL_LM")
def missing(first, second):
    for name in (first, second):
        get_peft_model(base(), lora, adapter_name="default").save_pretrained(f"{folder}/{name}")
    model = PeftModel.from_pretrained(base(), f"{folder}/{first}", adapter_name=first)
    return len(model.load_adapter(f"{folder}/{second}", adapter_name=second).missing_keys)
def saved(other):
    model = get_peft_model(base(), lora, adapter_name="ann")
    model.add_adapter(other, lora)
    model.save_pretrained(f"{folder}/all-{other}")
    with safe_open(f"{folder}/all-{other}/ann/adapter_model.safetensors", "pt") as file:
        return len(list(file.keys()))
found = (missing("user10", "user1"), missing("u-000010", "u-000001"), saved("2"), saved("u-000002"))
print(f"peft {peft.__version__}, transformers {transformers.__version__}: tensors called missing "
      f"{found[0]} (own names {found[1]}), tensors saved of another adapter {found[2]} (own names {found[3]})")
sys.exit(not (found[0] > 0 == found[1] and found[2] < found[3] == 6))
PY
"$folder/env/bin/python" "$folder/run.py" "$folder"
