#!/usr/bin/env bash
# safetensors writes the metadata keys of one dictionary in another order at every save.
#
# Version    safetensors 0.8.0 with numpy 2.4.6
# Behaviour  the same tensors with the same four metadata keys give files of several contents, within one process too.
#            With one key every file is the same, and so is the tensors' part of every file.
# Why care   the hash of a checkpoint's file is no identity: a conversion done again looks like other weights.
#            Hash names, dtypes, shapes and bytes of the tensors, and the metadata sorted.
# Output     one key: 1 content in 40 saves
#            four keys: more than 1 content in 40 saves, 1 content of the tensors
#
# Exits with 0 while the behaviour is as above, with 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cat > "$folder/saves.py" <<'PYTHON'
import hashlib
import json
import sys

import numpy as np
import safetensors
from safetensors.numpy import save

TENSORS = {"gate": np.arange(12, dtype=np.float32).reshape(3, 4), "bias": np.zeros(4, dtype=np.float32)}


def digest(data):
    return hashlib.sha256(data).hexdigest()


def tensors_only(data):
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__")
    return json.dumps(header, sort_keys=True).encode() + data[8 + size :]


def saves(keys):
    return [save(TENSORS, {f"key{i}": str(i) for i in range(keys)}) for _ in range(40)]


one, four = saves(1), saves(4)
contents = {digest(data) for data in four}
parts = {digest(tensors_only(data)) for data in four}
print(f"safetensors {safetensors.__version__}")
print(f"one key: {len({digest(data) for data in one})} content in 40 saves")
print(f"four keys: {len(contents)} contents in 40 saves, {len(parts)} content of the tensors")
sys.exit(not (len({digest(data) for data in one}) == 1 and len(contents) > 1 and len(parts) == 1))
PYTHON
"$folder/venv/bin/python" "$folder/saves.py"
