"""From settings to arms that are ready to run: the method built, its weights loaded, the kernels resolved by name."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from attention_kernels import column_sparse
from attention_kernels.block_sparse import resolve_kernel
from attention_kernels.decode import resolve_decode
from attention_kernels.skip_softmax import resolve_skip

import methods
from harness.arms.head_files import load_head_file
from harness.arms.weights import FileIdentity, load_weights
from harness.core.errors import UserError
from harness.core.method_facts import method_facts
from harness.core.mistakes import as_user_error, origin
from harness.core.settings import Settings
from harness.models.kernel_choice import dense_kernel_of, kernel_site
from harness.models.loading import LoadedModel
from harness.models.rope_lengths import frequencies_dtype
from harness.study.identity import ArmIdentity, Decoding, Setting
from methods import decode
from methods.decode.parts.base import DecodeMethod
from methods.parts.base import Knob, Method
from methods.parts.release import Releasable

AS_RELEASED = "as_released"
"""The name among an arm's knobs that says that a method ran as released."""
SHARED = ("block_size", "sparsity")
"""Settings of conf/config.yaml that are knobs of a method of prefill."""


@dataclass(frozen=True)
class RunnableArm:
    """An arm and what runs it; method None is dense attention at prefill, decoding None dense attention at decode.

    former: the identity that older records have for it, where its weights are known by the bytes of their files. notices: a
    line for each thing that had to be assumed of its weights, or was drawn at random. neighbour: whether its knob is one of the
    two whole numbers beside the density that was asked for.
    """

    identity: ArmIdentity
    method: Method | None
    decoding: DecodeMethod | None = None
    former: ArmIdentity | None = None
    notices: tuple[str, ...] = ()
    neighbour: bool = False

    @property
    def baseline(self) -> bool:
        """Return whether it is the arm that all others are compared with."""
        return self.method is None and self.decoding is None


def _rope_dtype(loaded: LoadedModel) -> str | None:
    """Return the dtype of RoPE's frequencies where it is not the model's own. Earlier versions rounded them to that."""
    dtype = frequencies_dtype(loaded.model)
    return None if dtype in (None, loaded.dtype) else str(dtype).removeprefix("torch.")


def with_release(settings: Settings) -> Settings:
    """Return the settings with the knobs of each method's release where the user gave none, as they are without as_released.

    It acts on the method of prefill and on that of decoding, each where it has a release. A sparsity that was not given is
    null then: the release's own knobs decide. All knobs count as given afterwards. Raises UserError where neither method has a
    release, or for a name that is not known.
    """
    if not settings.as_released:
        return settings
    prefills, decodes = _classes(settings)
    if not has_release(settings):
        able = [f"{group}={name}" for group, of in (("method", methods), ("decode", decode)) for name in of.registry.released()]
        raise UserError(
            f"as_released=true: method {settings.method} has no release to follow, nor has decode={settings.decode}: leave it "
            f"out, or choose one of: {', '.join(able)}"
        )
    if prefills.release is not None:
        shared = {"block_size": settings.block_size, "sparsity": settings.sparsity}
        chosen = {name: value for name, value in shared.items() if name in settings.given}
        knobs = _released(prefills, chosen | _given("method", settings.method_knobs, settings), settings.method_knobs)
        settings = replace(
            settings,
            sparsity=knobs.pop("sparsity", None),
            block_size=knobs.pop("block_size", settings.block_size),
            method_knobs={name: knobs[name] for name in settings.method_knobs},
        )
    if decodes.release is not None:
        chosen = _given("decode", settings.decode_knobs, settings)
        settings = replace(settings, decode_knobs=_released(decodes, chosen, settings.decode_knobs))
    names = {f"{group}.{name}" for group in ("method", "decode") for name in getattr(settings, f"{group}_knobs")}
    return replace(settings, given=settings.given | names | set(SHARED))


def has_release(settings: Settings) -> bool:
    """Return whether the method of prefill, or that of decoding, follows a release. Raises UserError for an unknown name."""
    return any(cls.release is not None for cls in _classes(settings))


def _classes(settings: Settings) -> tuple[type[Method], type[DecodeMethod]]:
    """Return the classes of the methods of prefill and of decoding. Raises UserError for a name that is not known."""
    try:
        return methods.get(settings.method), decode.get(settings.decode)
    except ValueError as error:
        raise as_user_error(error) from error


def released_knobs(method: Releasable) -> dict[str, bool]:
    """Return what an arm's knobs say of a method that runs as released. Of any other they say nothing, as in older rows."""
    return {AS_RELEASED: True} if method.as_released else {}


def _given(group: str, knobs: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Return the knobs of a group that the user gave."""
    return {name: value for name, value in knobs.items() if f"{group}.{name}" in settings.given}


def _released(cls: type[Releasable], given: Mapping[str, Any], knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the knobs of a class: the given ones, else its release's, else those of its file."""
    return {**knobs, **cls.release_knobs(given)}


def _setting(settings: Settings, loaded: LoadedModel) -> Setting:
    """Return what all arms of one command have in common."""
    return Setting(
        model=loaded.name,
        model_hash=loaded.revision_hash,
        length=settings.length,
        seed=settings.seed,
        dtype=str(loaded.dtype).removeprefix("torch."),
        device_type=loaded.device.type,
        dense_kernel=dense_kernel_of(loaded, settings.dense_kernel),
        max_length=loaded.asked_length,
        rope_dtype=_rope_dtype(loaded),
        shape=None if loaded.shape is None else loaded.shape.values,
        prefill_chunk=settings.prefill_chunk,
    )


def build_arms(settings: Settings, loaded: LoadedModel) -> list[RunnableArm]:
    """Build the arms of one command, the dense baseline first. Raises UserError for what this model or device can't do.

    A knob that no formula gives for the sparsity (`Method.calibrates`) is left as it is: `with_knob` sets it.
    """
    try:
        settings, family = with_release(settings), methods.get(settings.method).family
        setting = _setting(settings, loaded)
        notices = () if loaded.shape is None else (loaded.shape.notice,)
        arms = [RunnableArm(ArmIdentity(setting, baseline_name(), 0.0), None, notices=notices)]
        decoding, decoder, decode_file = _build_decode_arm(settings, loaded)
        if family != "none":
            arm = _build_prefill_arm(settings, loaded, setting)
            arm = replace(arm, notices=(*notices, *arm.notices))
            arms.append(_with_decoding(arm, decoding, decoder, decode_file))
        elif decoder is not None:
            arms.append(_with_decoding(arms[0], decoding, decoder, decode_file))
    except UserError:
        raise
    except ValueError as error:  # methods/ and kernels/ raise plain ValueErrors, one line each, for what they can't do
        raise as_user_error(error) from error
    return arms


def _build_prefill_arm(settings: Settings, loaded: LoadedModel, setting: Setting) -> RunnableArm:
    """Build the arm of a sparse method at prefill, with its kernel and its weights."""
    method = build_method(settings)
    kernel = prefill_kernel(settings.kernel, loaded, method)
    weights, heads = load_weights(method, "method", settings, loaded), load_head_file(method, settings.model, loaded)
    files = [file for file in (weights, heads) if file is not None]
    weights_hash = "+".join(file.content for file in files) or None
    knobs = _knobs(settings, method)
    identity = ArmIdentity(setting, method.name, method.sparsity, knobs, method.block_size, kernel, weights_hash)
    former = replace(identity, weights_hash="+".join(file.former for file in files)) if files else None
    notices = tuple(notice for file in files for notice in file.notices)
    return RunnableArm(identity, method.to(loaded.device), former=former, notices=notices)


def refused_arm(settings: Settings, loaded: LoadedModel) -> RunnableArm:
    """Return the arm of the settings without its weights, which were refused: what it is recorded as. It can't run. Raises
    UserError as `build_arms` does."""
    settings = with_release(settings)
    try:
        method, decoder = build_method(settings), build_decode_method(settings)
        identity = ArmIdentity(_setting(settings, loaded), baseline_name(), 0.0)
        if method.family != "none":
            kernel, knobs = prefill_kernel(settings.kernel, loaded, method), _knobs(settings, method)
            identity = replace(
                identity,
                method=method.name,
                sparsity=method.sparsity,
                knobs=knobs,
                block_size=method.block_size,
                kernel=kernel,
            )
        if decoder.family != "none":
            identity = replace(identity, decode=Decoding(decoder.name, decoder.knobs(), settings.decode_kernel))
    except UserError:
        raise
    except ValueError as error:
        raise as_user_error(error) from error
    return RunnableArm(identity, method, decoder)


def _with_decoding(
    arm: RunnableArm, decoding: Decoding | None, decoder: DecodeMethod | None, file: FileIdentity | None
) -> RunnableArm:
    """Return an arm that decodes by a method (None: with full attention); file: of that method's weights."""
    identity, former, notices = replace(arm.identity, decode=decoding), arm.former, arm.notices
    if former is not None:
        former = replace(former, decode=decoding)
    if file is not None and decoding is not None:
        former, notices = (
            replace(former or identity, decode=replace(decoding, weights_hash=file.former)),
            (*notices, *file.notices),
        )
    return RunnableArm(identity, arm.method, decoder, former, notices)


def with_knob(settings: Settings, arm: RunnableArm, knob: Knob, value: float) -> RunnableArm:
    """Return the arm with a knob of its method set to a value that was found for its sparsity."""
    assert arm.method is not None
    arm.method.set_knob(knob, value)
    return replace(arm, identity=replace(arm.identity, knobs=_knobs(settings, arm.method)))


def with_given_knob(settings: Settings, arm: RunnableArm, knob: Knob) -> RunnableArm | None:
    """Return the arm with the value of its knob that was given with its sparsity (`Settings.knob_value`), which then needs no
    search; None where none was. Raises UserError for a value out of the knob's range."""
    value = settings.knob_value
    if value is None:
        return None
    if not knob.low <= value <= knob.high:
        raise UserError(f"knob_value={value}: {knob.name} of {arm.identity.method} lies between {knob.low:g} and {knob.high:g}")
    return with_knob(settings, arm, knob, value)


def _build_decode_arm(
    settings: Settings, loaded: LoadedModel
) -> tuple[Decoding | None, DecodeMethod | None, FileIdentity | None]:
    """Build the method that decodes, for the arm's identity and as it runs, and say what its weights are; None for what is not
    there, all of it under full attention."""
    method = build_decode_method(settings)
    if method.family == "none":
        return None, None, None
    group = loaded.heads // loaded.kv_heads
    kernel = resolve_decode(settings.decode_kernel, **kernel_site(loaded), k_block=method.block_size, rows=group)
    file = load_weights(method, "decode", settings, loaded)
    knobs = method.knobs() | released_knobs(method)
    decoding = Decoding(method.name, knobs, kernel, None if file is None else file.content)
    return decoding, method.to(loaded.device), file


def build_method(settings: Settings) -> Method:
    """Build the method of the settings with its knobs. Raises UserError for a knob of the wrong type, ValueError for a value
    that the method can't take."""
    settings = with_release(settings)
    shared = {"block_size": settings.block_size, "sparsity": settings.sparsity, "seed": settings.seed}
    as_released = settings.as_released and methods.get(settings.method).release is not None
    try:
        return methods.build(settings.method, as_released=as_released, **(shared | settings.method_knobs))
    except TypeError as error:  # a word where a number belongs, say
        what = f"method {settings.method} can't be made{_with('method', settings.method_knobs)}"
        raise UserError(f"{what}: {error} ({origin(error).place})") from error


def build_decode_method(settings: Settings) -> DecodeMethod:
    """Build the method of decoding of the settings with its knobs. Raises as `build_method` does."""
    settings = with_release(settings)
    as_released = settings.as_released and decode.get(settings.decode).release is not None
    try:
        return decode.build(settings.decode, as_released=as_released, **{"seed": settings.seed} | settings.decode_knobs)
    except TypeError as error:  # a word where a number belongs, say
        what = f"decode method {settings.decode} can't be made{_with('decode', settings.decode_knobs)}"
        raise UserError(f"{what}: {error} ({origin(error).place})") from error


def _with(group: str, knobs: Mapping[str, Any]) -> str:
    """Return " with GROUP.KNOB=VALUE, …", nothing where there are no knobs."""
    return f" with {', '.join(f'{group}.{name}={value}' for name, value in knobs.items())}" if knobs else ""


def build_at_zero_sparsity(settings: Settings, loaded: LoadedModel) -> Method | None:
    """Build the method as it is at sparsity 0, where it must keep everything, ready to run.

    Knobs that a sparsity doesn't go with are left out; None where none will do.
    """
    settings = with_release(settings)
    for knobs in (settings.method_knobs, {}):
        at_zero = replace(settings, sparsity=0.0, method_knobs=knobs)
        with suppress(ValueError):
            method = build_method(at_zero)
            load_weights(method, "method", at_zero, loaded)
            load_head_file(method, at_zero.model, loaded)
            return method.to(loaded.device)
    return None


def baseline_name() -> str:
    """Return the name of the method that drops nothing, with which all others are compared."""
    names = [name for name in methods.names() if methods.get(name).family == "none"]
    if len(names) != 1:
        raise UserError(f"methods of family none: {', '.join(names) or 'not one'}; there must be one, the baseline")
    return names[0]


def decodes_densely(name: str) -> bool:
    """Return whether under a method of decoding tokens after the first attend to everything. Raises UserError for a name that
    is not known."""
    try:
        return decode.get(name).family == "none"
    except ValueError as error:
        raise as_user_error(error) from error


def _knobs(settings: Settings, method: Method) -> dict[str, Any]:
    """Return the knobs of an arm: as asked for, then as the method has them, and whether it runs as released."""
    knobs = {**settings.method_knobs, **method.knobs()}
    older = method_facts(method.name).added_knobs.items()
    return {name: value for name, value in knobs.items() if (name, value) not in older} | released_knobs(method)


def prefill_kernel(kernel: str, loaded: LoadedModel, method: Method) -> str:
    """Return the kernel that the method's blocks call for where `kernel` (a name, or "auto") is asked for.

    A method may share an index between the heads of a GQA group without saying so: a kernel that runs only where they do is let
    through, and refused at its first call if they don't. What ran is recorded from the calls themselves.
    """
    blocks: dict[str, Any] = {"q_block": method.block_size, "k_block": method.block_size}
    site, group = kernel_site(loaded), loaded.heads // loaded.kv_heads
    if method.columns:
        return column_sparse.resolve_kernel(kernel, **site, **blocks)
    if method.in_kernel:
        return resolve_skip(kernel, **site, **blocks)
    try:
        return resolve_kernel(kernel, **site, **blocks, shared=group if getattr(method, "shared", False) else 1)
    except ValueError:
        with suppress(ValueError):
            return resolve_kernel(kernel, **site, **blocks, shared=group)
        raise
