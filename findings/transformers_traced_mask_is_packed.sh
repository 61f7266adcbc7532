#!/usr/bin/env bash
# While a model is traced or captured as a CUDA graph, transformers asks for the mask of packed texts, packed or not.
#
# Version    transformers 5.23.0 with torch 2.13.0
# Behaviour  a function registered with AttentionMaskInterface gets the plain causal rule for positions 0 to 5, and a
#            rule joined with one for packed texts when the same call is traced (fake tensors here; a captured stream
#            and torch.compile count alike). With a mask of ones the rule is plain both times.
# Why care   whether positions restart can't be read then, so it is assumed. A function that knows its masks by their
#            rule refuses, or reads the joined rule wrongly, inside a CUDA graph alone. Giving a mask of ones avoids it.
# Output     eager, no mask: causal_mask_function
#            eager, mask of ones: causal_mask_function
#            traced, no mask: and_masks.<locals>.and_mask
#            traced, mask of ones: causal_mask_function
#
# Exits with 0 while the behaviour is as above, with 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cat > "$folder/traced.py" <<'PYTHON'
import sys

import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionMaskInterface, LlamaConfig
from transformers.masking_utils import create_causal_mask

rules = []


def recording(*arguments, mask_function=None, **named):
    rules.append(mask_function.__qualname__)


AttentionMaskInterface.register("recording", recording)
config = LlamaConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1, vocab_size=8, intermediate_size=8)
config._attn_implementation = "recording"


def ask(with_mask):
    create_causal_mask(
        config=config,
        inputs_embeds=torch.zeros(1, 6, 8),
        attention_mask=torch.ones(1, 6, dtype=torch.long) if with_mask else None,
        past_key_values=None,
        position_ids=torch.arange(6)[None],
    )
    return rules[-1]


print(f"transformers {transformers.__version__}, torch {torch.__version__}")
eager = [ask(with_mask=False), ask(with_mask=True)]
with FakeTensorMode():
    traced = [ask(with_mask=False), ask(with_mask=True)]
for how, pair in (("eager", eager), ("traced", traced)):
    print(f"{how}, no mask: {pair[0]}")
    print(f"{how}, mask of ones: {pair[1]}")
plain = "causal_mask_function"
sys.exit(0 if eager == [plain, plain] and traced[0] != plain and traced[1] == plain else 1)
PYTHON
"$folder/venv/bin/python" "$folder/traced.py"
