#!/usr/bin/env bash
# PhiMoE and Qwen2-MoE give an attention function no sliding_window argument: their window is in the mask alone.
#
# Version    transformers 5.23.0 with torch 2.13.0
# Behaviour  a function registered with AttentionInterface gets sliding_window=8 from Mistral, and None from PhiMoE and
#            Qwen2-MoE of the same window, while the mask of all three lets the last token see 8 keys.
# Why care   a kernel that takes no mask and reads the argument attends to everything in these models. Nothing fails,
#            and prompts shorter than the window are right.
# Output     mistral: argument 8, keys in the mask 8
#            phimoe: argument None, keys in the mask 8
#            qwen2_moe: argument None, keys in the mask 8
#
# Exits with 0 while the behaviour is as above, with 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cat > "$folder/window.py" <<'PYTHON'
import sys

import torch
import transformers
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    MistralConfig,
    PhimoeConfig,
    Qwen2MoeConfig,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

calls = set()


def recording(module, query, key, value, attention_mask, **arguments):
    calls.add((arguments.get("sliding_window"), int(attention_mask[0, 0, -1].sum())))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)


AttentionInterface.register("recording", recording)
AttentionMaskInterface.register("recording", sdpa_mask)
SMALL = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    sliding_window=8,
)
EXPERTS = dict(num_experts=2, num_experts_per_tok=1, moe_intermediate_size=32, shared_expert_intermediate_size=32)
CONFIGS = {
    "mistral": MistralConfig(**SMALL),
    "phimoe": PhimoeConfig(**SMALL, num_local_experts=2),
    "qwen2_moe": Qwen2MoeConfig(**SMALL, **EXPERTS, use_sliding_window=True, layer_types=["sliding_attention"] * 2),
}
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
seen = {}
for name, config in CONFIGS.items():
    model = AutoModelForCausalLM.from_config(config, attn_implementation="recording").eval()
    calls.clear()
    with torch.no_grad():
        model(input_ids=torch.arange(32)[None])
    (seen[name],) = calls
    print(f"{name}: argument {seen[name][0]}, keys in the mask {seen[name][1]}")
sys.exit(seen != {"mistral": (8, 8), "phimoe": (None, 8), "qwen2_moe": (None, 8)})
PYTHON
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/window.py"
