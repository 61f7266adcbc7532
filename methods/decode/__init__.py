"""Methods of sparse decoding, one file each: at every step they choose the key blocks that the newest token attends to.

@register("my_method")
class MyMethod(DecodeMethod): ...

build("my_method", budget=1024)

A method is known by lying in this folder. One that acts at prefill too has a class in `methods` as well; any method of one
phase runs beside any of the other. `python -m methods.decode.NAME` draws what its steps keep of a small made-up map.
"""

from __future__ import annotations

from methods.decode.parts.base import DecodeMethod
from methods.parts.registry import Registry

registry: Registry[DecodeMethod] = Registry("decode method", __name__, __path__)

register = registry.register
names = registry.names
get = registry.get
build = registry.build
