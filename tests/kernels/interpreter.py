"""Triton's interpreter at less cost: the same values, less bookkeeping in Python around each numpy operation.

Most of the time that a kernel takes in the interpreter goes into types: shapes wrapped and unwrapped, compared, hashed. What is
replaced here answers the common case at once and leaves every other to Triton.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np


def make_cheap() -> None:
    """Change the interpreter for good. A release that works otherwise is left as it is, and is slower."""
    try:
        from triton.language import core, semantic
        from triton.runtime import interpreter
    except ImportError:
        return
    for change in (_keep_the_language_patched, _compute_no_unread_overflow, _look_up_types, _share_shapes):
        try:
            change(interpreter, core, semantic)
        except AttributeError:
            continue


def _keep_the_language_patched(interpreter: Any, core: Any, semantic: Any) -> None:
    """Patch `triton.language` once: it is done anew at every launch and at every call of one @triton.jit function by another,
    by looking through all its members. Nothing needs the unpatched language here."""
    patch, scope = interpreter._patch_lang, interpreter._LangPatchScope
    patch(SimpleNamespace(__globals__={"tl": interpreter.tl, "core": interpreter.tl.core}))
    interpreter._patch_lang = lambda function: scope()  # has nothing to restore


def _compute_no_unread_overflow(interpreter: Any, core: Any, semantic: Any) -> None:
    """Integer results are also computed in 64 bits, for an assertion that only debug=True runs: leave that out."""
    builder = interpreter.interpreter_builder
    if not builder.options.debug and builder.options.sanitize_overflow:
        builder.options = replace(builder.options, sanitize_overflow=False)


def _look_up_types(interpreter: Any, core: Any, semantic: Any) -> None:
    """numpy's type of a Triton type, from a table that is not made anew for each; and a type that is itself is equal."""
    slow, table = interpreter._get_np_dtype, {}

    def numpy_type(tt_dtype: Any) -> np.dtype:
        name = (tt_dtype.element_ty if isinstance(tt_dtype, core.block_type) else tt_dtype).name
        if name not in table:
            table[name] = slow(tt_dtype)
        return table[name]

    equal, unwrap = core.dtype.__eq__, core._unwrap_if_constexpr
    plain = (int, str, core.tensor)
    interpreter._get_np_dtype = numpy_type
    core.dtype.__eq__ = lambda self, other: self is other or equal(self, other)
    core._unwrap_if_constexpr = lambda o: o if type(o) in plain else unwrap(o)


def _share_shapes(interpreter: Any, core: Any, semantic: Any) -> None:
    """Equal block types share what follows from their shape, and tensors of one type share their shape."""
    make_type, make_tensor, equal = core.block_type.__init__, core.tensor.__init__, core.tuple.__eq__
    broadcast = semantic.TritonSemantic.broadcast_impl_value
    types: dict[Any, dict[str, Any]] = {}
    shapes: dict[int, tuple[Any, Any, Any]] = {}

    def init_type(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple([x.value if isinstance(x, core.constexpr) else x for x in shape])
        known = types.get((element_ty.name, sizes))
        if known is None:
            make_type(self, element_ty, shape)
            types[element_ty.name, sizes] = dict(self.__dict__)
        else:
            self.__dict__.update(known, element_ty=element_ty)

    def init_tensor(self: Any, handle: Any, type: Any) -> None:
        shape = type.shape if type.is_block() else None
        known = shapes.get(id(shape))
        if known is None:
            make_tensor(self, handle, type)
            shapes[id(shape)] = shape, self.shape, self.numel  # keeps the shape, so that its id stays its own
        else:
            self.handle, self.type, self.dtype = handle, type, type.scalar
            _, self.shape, self.numel = known

    def equal_shapes(self: Any, other: Any) -> Any:
        values = other.values if isinstance(other, core.tuple) else other
        if isinstance(values, list) and all(type(x) is int for x in values):
            return core.constexpr(self.values == values)
        return equal(self, other)

    def broadcast_values(self: Any, lhs: Any, rhs: Any) -> Any:
        one, two = lhs.type, rhs.type
        if one.is_block() and two.is_block() and (one.shape is two.shape or one.shape.values == two.shape.values):
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    core.block_type.__init__, core.tensor.__init__, core.tuple.__eq__ = init_type, init_tensor, equal_shapes
    semantic.TritonSemantic.broadcast_impl_value = broadcast_values
