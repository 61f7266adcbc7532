#!/usr/bin/env bash
# A config class of transformers writes into the rope_scaling it is given: a second config of the same dict gets the first's RoPE.
#
# Version    transformers 5.23.0
# Behaviour  LlamaConfig puts rope_theta and original_max_position_embeddings into the caller's dict. A second config made
#            from that dict keeps what is there: its own rope_theta and max_position_embeddings are ignored, and nothing
#            says so. A config made from a copy of the dict is right.
# Why care   shapes of several models that share one dict of scaling, or a sweep over rope_theta, run the first one's
#            frequencies. Losses and times look usual. Give every config a dict of its own.
# Output     given before: ['factor', 'rope_type']
#            given after: ['factor', 'original_max_position_embeddings', 'rope_theta', 'rope_type']
#            second, same dict: rope_theta 10000.0, original 2048
#            second, a dict of its own: rope_theta 500000.0, original 8192
#
# Exits with 0 while the behaviour is as above, with 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check transformers==5.23.0 numpy==2.4.6
cat > "$folder/shared.py" <<'PYTHON'
import logging
import sys

import transformers
from transformers import LlamaConfig

logging.getLogger("transformers").setLevel(logging.ERROR)  # it says that there is no PyTorch here
FIRST = {"rope_theta": 1e4, "max_position_embeddings": 2048}
SECOND = {"rope_theta": 5e5, "max_position_embeddings": 8192}


def scaling():
    return {"rope_type": "yarn", "factor": 4.0}


def read(config):
    return config.rope_parameters["rope_theta"], config.rope_parameters["original_max_position_embeddings"]


given = scaling()
before = sorted(given)
LlamaConfig(**FIRST, rope_scaling=given)
after = sorted(given)
shared, own = read(LlamaConfig(**SECOND, rope_scaling=given)), read(LlamaConfig(**SECOND, rope_scaling=scaling()))
print(f"transformers {transformers.__version__}")
print(f"given before: {before}")
print(f"given after: {after}")
print(f"second, same dict: rope_theta {shared[0]}, original {shared[1]}")
print(f"second, a dict of its own: rope_theta {own[0]}, original {own[1]}")
sys.exit(0 if before != after and shared == (1e4, 2048) and own == (5e5, 8192) else 1)
PYTHON
"$folder/venv/bin/python" "$folder/shared.py"
