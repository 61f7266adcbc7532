#!/usr/bin/env bash
# Triton's interpreter multiplies the bit patterns of bfloat16 operands in tl.dot, without a word.
#
# Version    triton 3.7.1 with torch 2.13.0, TRITON_INTERPRET=1
# Behaviour  bfloat16 is held as uint16, and tl.dot hands these integers to numpy: results near 1e10 where 1 is right.
#            float16 is exact, and loading, storing and adding bfloat16 are right, so a kernel's other tests pass.
# Why care   a test suite that runs Triton kernels on a CPU must not use bfloat16 wherever a kernel has a product.
# Output     float16: largest error 0
#            bfloat16: largest error above 1e6; a sum of the same numbers: largest error 0
#
# Exits with 0 while the behaviour is as above, with 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 triton==3.7.1 numpy==2.4.6
cat > "$folder/dot.py" <<'PYTHON'
import sys

import torch
import triton
import triton.language as tl


@triton.jit
def product(a, b, out, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))


@triton.jit
def total(a, b, out, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out + at, tl.load(a + at).to(tl.float32) + tl.load(b + at).to(tl.float32))


def largest_error(kernel, dtype, right):
    torch.manual_seed(0)
    a, b = (torch.randint(-2, 3, (16, 16)).to(dtype) for _ in range(2))
    out = torch.empty(16, 16)
    kernel[(1,)](a, b, out, 16)
    return (out - right(a.float(), b.float())).abs().max().item()


half = largest_error(product, torch.float16, torch.matmul)
brain = largest_error(product, torch.bfloat16, torch.matmul)
added = largest_error(total, torch.bfloat16, torch.add)
print(f"triton {triton.__version__}, torch {torch.__version__}")
print(f"tl.dot of float16: largest error {half:g}")
print(f"tl.dot of bfloat16: largest error {brain:g}; a sum of the same numbers: largest error {added:g}")
sys.exit(not (half == 0 and added == 0 and brain > 1e6))
PYTHON
TRITON_INTERPRET=1 "$folder/venv/bin/python" "$folder/dot.py"
