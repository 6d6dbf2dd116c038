#!/usr/bin/env bash
# transformers 5 writes the base of the rotary embedding as rope_parameters alone, and transformers 4
# skips words it does not know: a Llama with another base than 10,000 becomes another model.
# Guess: a checkpoint that an older version loads without error, warning or missing key is the same.
# Seen (5.23.0 writes, 4.57.6 reads): no message, other logits; with "rope_theta" written beside it,
# both versions read the same model. Ends with 1 if that is no longer so.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.13.0 transformers==5.23.0 requests==2.34.2 numpy
"$folder/env/bin/pip" install -q --target "$folder/old" --no-deps \
  transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2
cat > "$folder/write.py" <<'PY'
import sys, torch, transformers
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
rope = {"rope_type": "default", "rope_theta": 100000.0}
sizes = dict(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
             num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64)
model = LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=rope)).eval()
with torch.no_grad():
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.copy_(torch.randn(weight.shape) * 0.3)
    model.save_pretrained(sys.argv[1])
    torch.save(model(torch.arange(1, 21)[None]).logits, sys.argv[1] + ".pt")
print("written by", transformers.__version__)
PY
cat > "$folder/read.py" <<'PY'
import json, sys, torch, transformers
from transformers import LlamaForCausalLM
def error():
    model, info = LlamaForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        logits = model.eval()(torch.arange(1, 21)[None]).logits
    return float((logits - torch.load(sys.argv[1] + ".pt")).abs().max())
as_written = error()
path = sys.argv[1] + "/config.json"
config = json.load(open(path)); config["rope_theta"] = 100000.0; json.dump(config, open(path, "w"))
mended = error()
print(f"read by {transformers.__version__}: logits off by {as_written:.3f}, with rope_theta by {mended:.1e}")
sys.exit(not (as_written > 0.1 and mended < 1e-4))
PY
"$folder/env/bin/python" "$folder/write.py" "$folder/model"
PYTHONPATH="$folder/old" "$folder/env/bin/python" "$folder/read.py" "$folder/model"
