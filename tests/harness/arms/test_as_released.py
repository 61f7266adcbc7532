"""as_released: the settings of a method's release under those that are given, in the arm's knobs and in its label."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import methods
from harness.arms.build import build_arms, build_at_zero_sparsity, build_method, with_release
from harness.core.compose import compose_settings
from harness.core.errors import UserError
from harness.core.settings import Settings, read_settings
from harness.jobs import command
from harness.lm_eval.arguments import parse
from harness.report.lines import rows_by_line
from methods import decode
from methods.parts.release import Release
from tests.harness import tiny
from tests.harness.report.support import row
from tests.harness.settings import composed

RELEASE = Release(
    "someone/something", "run.sh", {"block_size": 32, "stride": 16}, {"threshold": 0.7}, {"keeps one block more": "a.py"}
)


@pytest.fixture(autouse=True)
def release(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release of one method, and of one method of decoding, made up for these tests."""
    monkeypatch.setattr(methods.get("xattention"), "release", RELEASE)
    monkeypatch.setattr(decode.get("quest"), "release", Release("a/b", "c.py", {"dense_layers": 1}, {"budget": 128}))


def settings(*arguments: str) -> Settings:
    return composed("method=xattention", "as_released=true", *arguments)


def test_the_settings_of_the_release_stand_where_the_user_gave_none() -> None:
    plain = with_release(settings())
    assert (plain.sparsity, plain.block_size) == (None, 32), "a sparsity that is not given is null: its own knobs decide"
    assert (plain.method_knobs["threshold"], plain.method_knobs["stride"], plain.method_knobs["last"]) == (0.7, 16, 0)
    assert with_release(plain) == plain
    asked = with_release(settings("sparsity=0.8", "method.stride=4", "block_size=16"))
    assert (asked.sparsity, asked.block_size, asked.method_knobs["stride"]) == (0.8, 16, 4)
    assert asked.method_knobs["threshold"] is None, "a sparsity is what its knob is calibrated for"
    off = replace(settings(), as_released=False)
    assert with_release(off) is off


def test_a_setting_that_is_given_at_its_default_counts_as_given() -> None:
    assert composed("method=xattention").given == frozenset()
    assert "method.stride" in settings("method.stride=4").given
    values = {"as_released": True, "method.stride": 8, "sparsity": 0.9}
    given = with_release(compose_settings({"method": "xattention"}, values))
    assert (given.method_knobs["stride"], given.sparsity) == (8, 0.9)


def test_a_command_gives_what_its_arguments_and_its_experiment_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Settings] = []
    monkeypatch.setattr(command, "run_job", lambda cfg, state: seen.append(read_settings(cfg)))
    swept = ["-m", "experiment=methods_native", "method=xattention", "length=4096", "method.stride=8", f"results={tmp_path}"]
    assert command.run_command([*swept, "as_released=true"]) == 0
    (asked,) = seen
    assert {"method.stride", "length", "sparsity", "block_size"} <= asked.given
    assert "method.threshold" not in asked.given


def test_it_acts_on_each_method_that_has_a_release() -> None:
    both = with_release(settings("decode=quest"))
    assert (both.decode_knobs["budget"], both.decode_knobs["dense_layers"], both.sparsity) == (128, 1, None)
    decoding = with_release(composed("method=random", "decode=quest", "as_released=true"))
    assert (decoding.decode_knobs["budget"], decoding.sparsity) == (128, 0.9)
    assert not build_method(decoding).as_released
    with pytest.raises(UserError, match=r"method random has no release.*nor has decode=dense.*method=xattention.*decode=quest"):
        with_release(composed("method=random", "as_released=true"))
    with pytest.raises(ValueError, match=r"method random has no release to follow.*xattention"):
        methods.build("random", as_released=True, sparsity=0.5)


@pytest.mark.parametrize("value", ["1", "maybe", "null"])
def test_it_is_true_or_false(value: str) -> None:
    with pytest.raises(UserError, match=r"as_released=.*: must be true or false"):
        composed(f"as_released={value}")


def test_the_arm_says_it_and_no_other_arm_does() -> None:
    loaded = tiny.load("llama")
    arm = build_arms(replace(settings("decode=quest"), length=256), loaded)[-1]
    assert arm.identity.knobs["as_released"] is True
    assert arm.identity.decode is not None and arm.identity.decode.knobs["as_released"] is True
    assert (arm.identity.block_size, arm.identity.sparsity, arm.identity.knobs["threshold"]) == (32, None, 0.7)
    plain = build_arms(replace(composed("method=xattention", "decode=quest"), length=256), loaded)[-1]
    assert plain.identity.decode is not None
    assert "as_released" not in {**plain.identity.knobs, **plain.identity.decode.knobs}
    zero = build_at_zero_sparsity(settings(), loaded)
    assert zero is not None and (zero.sparsity, zero.as_released) == (0.0, True), "the self-check's own, by the same code"


def test_a_line_names_it_even_where_all_rows_are_released() -> None:
    knobs: dict[str, Any] = {"threshold": 0.9, "as_released": True}
    assert set(rows_by_line([row("a", 0.5, 4096, 0.8, knobs=knobs)])) == {"a (as released)"}
    both = [row("a", 0.5, 4096, 0.8, knobs={"threshold": 0.8}), row("a", 0.5, 4096, 0.8, knobs=knobs)]
    assert set(rows_by_line(both)) == {"a", "a (as released)"}


def test_lm_eval_takes_it_among_the_arguments_of_a_model() -> None:
    asked, _ = parse({"pretrained": "bundled", "method": "xattention", "as_released": True, "method.stride": 8})
    assert with_release(asked).method_knobs["stride"] == 8, "given, if at its default"
    assert with_release(asked).sparsity is None


@pytest.mark.parametrize("package", [methods, decode])
def test_a_release_sets_knobs_that_its_method_has(package: Any) -> None:
    for name in package.registry.released():
        knobs = set(package.registry.knobs(name))
        for settings_of in (package.get(name).release.settings, package.get(name).release.density):
            assert set(settings_of) <= knobs
