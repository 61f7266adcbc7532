#!/usr/bin/env bash
# Phi-3 under transformers 5.17's generate forgets the whole text when it grows past the switch of its RoPE.
#
# Version    transformers 5.17.0 with torch 2.13.0; 5.23.0 beside it is right
# Behaviour  a longrope model has other frequencies past original_max_position_embeddings tokens, so that its cache is
#            dropped there, to be made anew. 5.17.0 gives the model the last token alone then, and goes on with a cache
#            of one token. Every token from there on is of a text that the model no longer sees.
# Why care   no error and no warning: answers that cross 4,096 tokens are wrong with Phi-3 and Phi-3.5 models, and a
#            comparison with generate as the truth calls the right tokens wrong.
# Output     transformers 5.17.0: past the switch the model gets 1 token, and 0 of 4 tokens are right
#            transformers 5.23.0: past the switch the model gets 33 tokens, and 4 of 4 tokens are right
#
# Exits with 0 while the behaviour is as above, with 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/switch.py" <<'PYTHON'
import sys

import torch
import transformers
from transformers import Phi3Config, Phi3ForCausalLM

SWITCH, NEW = 32, 6
torch.manual_seed(0)
config = Phi3Config(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    original_max_position_embeddings=SWITCH,
    initializer_range=0.3,
    pad_token_id=0,
    rope_parameters={
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 8,
        "long_factor": [8.0] * 8,
        "original_max_position_embeddings": SWITCH,
        "factor": 8.0,
    },
)
model = Phi3ForCausalLM(config).double().eval()
prompt = torch.randint(3, 128, (1, SWITCH - 1), generator=torch.Generator().manual_seed(1))

given = []
model.model.register_forward_pre_hook(lambda _, a, k: given.append(k["input_ids"].shape[1]), with_kwargs=True)
with torch.no_grad():
    generated = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, do_sample=False, eos_token_id=None
    )
    past_switch = given[2]  # the prompt, a step up to the switch, the step past it
    text = prompt
    for _ in range(NEW):
        text = torch.cat((text, model(input_ids=text, use_cache=False).logits[:, -1:].argmax(-1)), 1)
right = int((generated == text)[0, SWITCH + 1 :].sum())
print(
    f"transformers {transformers.__version__}: past the switch the model gets {past_switch} token"
    f"{'s' * (past_switch > 1)}, and {right} of {NEW - 2} tokens are right"
)
expected = {"5.17.0": past_switch == 1 and right < NEW - 2, "5.23.0": past_switch == SWITCH + 1 and right == NEW - 2}
sys.exit(not expected[transformers.__version__])
PYTHON
python3 -m venv "$folder/venv"
for version in 5.17.0 5.23.0; do
    "$folder/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 "transformers==$version" numpy==2.4.6
    HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/switch.py"
done
