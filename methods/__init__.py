"""Sparse attention methods, one file each. A method is known by lying in this folder: nothing else lists it.

@register("my_method")
class MyMethod(Method): ...

build("my_method", block_size=64, sparsity=0.9)

These choose blocks at prefill. Those that choose at decoding lie in `methods.decode`, which has the same functions.
`python -m methods.NAME` draws what a method keeps of a small made-up attention map. Helpers lie in folders: `parts` (shared by
methods), `gates` (trained layers), `searches` (offline searches over a model's heads).
"""

from __future__ import annotations

import sys
from pathlib import Path

# As in harness/__init__.py: in a checkout that is not installed, the folder of `attention_kernels` is not on the path.
_KERNELS = Path(__file__).resolve().parents[1] / "kernels"
if (_KERNELS / "attention_kernels").is_dir() and str(_KERNELS) not in sys.path:
    sys.path.insert(0, str(_KERNELS))

from methods.parts.base import Method  # noqa: E402
from methods.parts.registry import Registry  # noqa: E402

registry: Registry[Method] = Registry("method", __name__, __path__)

register = registry.register
names = registry.names
get = registry.get
build = registry.build
