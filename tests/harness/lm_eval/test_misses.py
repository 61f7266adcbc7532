"""What lm-eval's results must not keep to themselves: an arm that was not as sparse as was asked for."""

from __future__ import annotations

from dataclasses import replace

from harness.lm_eval.misses import misses
from harness.lm_eval.run_totals import Lengths, RunTotals
from harness.study.identity import ArmIdentity, Decoding, Setting

SETTING = Setting("toy", "hash", 4096, 0, "float32", "cpu", "sdpa")
ARM = ArmIdentity(SETTING, "block_topk", 0.5, {}, 64, "sdpa")


def totals(density: float | None, *tokens: int, decode: float | None = None) -> RunTotals:
    """Totals of prompts of so many tokens each."""
    ran = RunTotals()
    for count in tokens:
        ran.lengths.add(count)
    for mean, value in ((ran.density, density), (ran.decode_density, decode)):
        if value is not None:
            mean.add(value)
    return ran


def test_five_tokens_have_nothing_to_leave_out() -> None:
    (line,) = misses(totals(1.0, 5), ARM, dense=False)
    assert line == (
        "density 1.000, where sparsity=0.5 asks for 0.500: prompts of 5 tokens are 1 block of 64, of which 1.000 must be kept"
    )
    assert misses(totals(0.52, 4000, 5000), ARM, dense=False) == []
    assert misses(totals(1.0, 5), ARM, dense=True) == []


def test_a_density_that_is_off_is_said_either_way() -> None:
    (line,) = misses(totals(0.3, 4000, 5000), ARM, dense=False)
    assert line == "density 0.300, where sparsity=0.5 asks for 0.500: prompts of 4000 to 5000 tokens in blocks of 64"
    native = replace(ARM, sparsity=None)
    assert misses(totals(0.3, 4000), native, dense=False) == []
    assert misses(totals(1.0, 4000), native, dense=False)[0].startswith("method=block_topk left nothing out: density 1.000")
    assert misses(totals(None, 4000), ARM, dense=False)[0].startswith("method=block_topk acted in no layer")


def test_decoding_that_changed_nothing_is_said() -> None:
    arm = replace(ARM, decode=Decoding("quest", {}, "reference"))
    assert misses(totals(1.0, 40, decode=1.0), arm, dense=True) == [
        "decode=quest left nothing out: density 1.000 at decode, as prompts of 40 tokens fit its budget"
    ]
    assert misses(totals(1.0, 40), arm, dense=True) == [
        "decode=quest changed nothing: no token after the first was decoded here"
    ]
    assert misses(totals(1.0, 40, decode=0.4), arm, dense=True) == []


def test_lengths_are_those_that_ran() -> None:
    lengths = Lengths()
    lengths.add(2679, 3)
    lengths.add(2300)
    assert lengths.as_dict() == {"prompts": 4, "shortest": 2300, "mean": 2584.2, "longest": 2679}
