"""Sparse attention methods, one file each. A method is found by being in this folder: nothing else lists it.

@register("my_method")
class MyMethod(Method): ...

build("my_method", block_size=64, sparsity=0.9)

These choose blocks at prefill. Those that choose at decoding lie in `methods.decode`, which has the same functions.
"""

from __future__ import annotations

from methods.base import Method
from methods.registry import Registry

registry: Registry[Method] = Registry("method", __name__, __path__)

register = registry.register
names = registry.names
get = registry.get
build = registry.build
