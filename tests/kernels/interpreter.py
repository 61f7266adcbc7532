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
    for change in (
        _call_builtins_directly,
        _keep_the_language_patched,
        _compute_no_unread_overflow,
        _look_up_types,
        _share_shapes,
        _check_no_handles,
        _convert_operands_once,
    ):
        try:
            change(interpreter, core, semantic)
        except AttributeError:
            continue


def _call_builtins_directly(interpreter: Any, core: Any, semantic: Any) -> None:
    """Call a function of the language itself, not the wrapper that refuses a call from outside a kernel, and pass its arguments
    on as they are. Only for those that are patched after this."""

    def patch(obj: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        inner = getattr(member, "__wrapped__", member) if getattr(member, core.TRITON_BUILTIN, False) else member

        def call(*args: Any, **kwargs: Any) -> Any:
            kwargs["_semantic"] = interpreter.interpreter_semantic
            return inner(*args, **kwargs)

        scope.set_attr(obj, name, call)

    interpreter._patch_attr = patch


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
    of_elements: dict[tuple[str, int], tuple[Any, Any]] = {}
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

    def with_element_ty(self: Any, scalar_ty: Any) -> Any:
        key = (scalar_ty.name, id(self.shape))  # the shape is kept, so that its id stays its own
        if key not in of_elements:
            of_elements[key] = core.block_type(scalar_ty, self.shape), self.shape
        return of_elements[key][0]

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
    core.block_type.with_element_ty = with_element_ty
    semantic.TritonSemantic.broadcast_impl_value = broadcast_values


def _check_no_handles(interpreter: Any, core: Any, semantic: Any) -> None:
    """Make a handle without comparing the size of its values with that of its type, which is a check of the interpreter by
    itself; and add an axis without numpy's own checks of it."""
    handle = interpreter.TensorHandle

    def init(self: Any, data: np.ndarray, dtype: Any, attr: dict[Any, Any] | None = None) -> None:
        self.data, self.dtype, self.attr = data, dtype, {} if attr is None else attr

    def expand_dims(self: Any, arg: Any, axis: int) -> Any:
        shape = arg.data.shape
        return handle(arg.data.reshape((*shape[:axis], 1, *shape[axis:])), arg.dtype.scalar)

    handle.__init__ = init
    interpreter.InterpreterBuilder.create_expand_dims = expand_dims


def _convert_operands_once(interpreter: Any, core: Any, semantic: Any) -> None:
    """Operands of one type, pointers with offsets, and a number beside a tensor that can hold it need no rules of conversion.
    Nor need operands be spread to their common shape: numpy does that in the operation itself."""
    slow, spread = semantic.TritonSemantic.binary_op_type_checking_impl, semantic.TritonSemantic.broadcast_impl_value
    tensor, block_type, halves = core.tensor, core.block_type, ("fp16", "bf16")
    constants: dict[tuple[float, str], Any] = {}

    def constant(self: Any, value: float, dtype: Any) -> Any:
        if dtype.is_int_unsigned():  # whose values a shift may change to signed ones, in place
            return self.scalar_constant(value, dtype)
        if (value, dtype.name) not in constants:
            constants[value, dtype.name] = self.scalar_constant(value, dtype)
        return constants[value, dtype.name]

    def can_hold(dtype: Any, value: Any) -> bool:
        if type(value) is float:
            return dtype.is_floating()
        if type(value) is not int or dtype.is_ptr() or dtype.is_bool():
            return False
        return dtype.is_floating() or dtype.get_int_min_value() <= value <= dtype.get_int_max_value()

    def shaped(value: Any, shape: list[int]) -> Any:
        return value if value.type.shape.values == shape else tensor(value.handle, block_type(value.type.scalar, shape))

    def meet(self: Any, lhs: Any, rhs: Any) -> Any:
        one, two = lhs.type, rhs.type
        if not one.is_block():
            return (tensor(lhs.handle, two.with_element_ty(one)), rhs) if two.is_block() else (lhs, rhs)
        if not two.is_block():
            return lhs, tensor(rhs.handle, one.with_element_ty(two))
        left, right = one.shape.values, two.shape.values
        if left == right:
            return lhs, rhs
        if len(left) != len(right) or any(1 not in sizes and sizes[0] != sizes[1] for sizes in zip(left, right, strict=True)):
            return spread(self, lhs, rhs)
        shape = [b if a == 1 else a for a, b in zip(left, right, strict=True)]
        return shaped(lhs, shape), shaped(rhs, shape)

    def operands(
        self: Any,
        lhs: Any,
        rhs: Any,
        allow_lhs_ptr: bool = False,
        allow_rhs_ptr: bool = False,
        arithmetic_check: bool = True,
        div_or_mod: bool = False,
    ) -> Any:
        if isinstance(lhs, tensor):
            dtype = lhs.dtype
            if isinstance(rhs, tensor):
                other = rhs.dtype
                if dtype.is_ptr():
                    if allow_lhs_ptr and other.is_int():
                        return meet(self, lhs, rhs)
                elif dtype.name == other.name and not (div_or_mod and dtype.name in halves):
                    return meet(self, lhs, rhs)
            elif can_hold(dtype, rhs) and not (div_or_mod and dtype.name in halves):
                return meet(self, lhs, constant(self, rhs, dtype))
        elif isinstance(rhs, tensor) and can_hold(rhs.dtype, lhs) and not (div_or_mod and rhs.dtype.name in halves):
            return meet(self, constant(self, lhs, rhs.dtype), rhs)
        return slow(self, lhs, rhs, allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod)

    semantic.TritonSemantic.binary_op_type_checking_impl = operands
