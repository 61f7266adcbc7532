"""Every planted error trips its check, and no method of the registry trips one that is sound."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.dense import dense_attention
from torch import Tensor

import methods
from harness.arms.build import RunnableArm
from harness.measure.self_check import measure
from harness.models import bridge as bridge_module
from harness.models.batch_cache import BatchCache
from harness.models.bridge import Bridge
from harness.study.identity import ArmIdentity, Setting
from methods.minference import MInference
from methods.parts.base import LayerInputs, Method
from methods.parts.head_patterns import Pattern
from tests.harness.tiny import VOCAB, load, tokens
from tests.methods.support import layer, ready
from tests.methods.test_selection import calibrated

BLOCK = 16
PROMPT = tokens(1, 299, seed=5)[0].tolist()


def context(monkeypatch: pytest.MonkeyPatch, zero: Method | None = None, family: str = "llama", question: str = "seen") -> Any:
    loaded = load(family)
    object.__setattr__(loaded, "tokenizer", range(VOCAB))
    monkeypatch.setattr("harness.measure.self_check.build_at_zero_sparsity", lambda *_: zero)
    return SimpleNamespace(loaded=loaded, settings=SimpleNamespace(kernel="auto", dense_kernel="auto", question=question))


def arm(method: Method | None) -> RunnableArm:
    return RunnableArm(ArmIdentity(Setting("tiny", "abc", 512, 0, "float32", "cpu", "sdpa"), "any", 0.5), method)


def wrong(found: dict[str, tuple[float, float]]) -> set[str]:
    return {name for name, (value, most) in found.items() if not value <= most}


def built(name: str, sparsity: float) -> Method:
    """A method ready to run; a knob without a formula is set for random activations, which is near enough."""
    if sparsity == 0 or methods.get(name).in_kernel:
        return ready(name, block_size=BLOCK, sparsity=sparsity)
    return calibrated(name, layer(299), sparsity=sparsity)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_dense_passes(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    found, density = measure(context(monkeypatch, family=family), arm(None), PROMPT)
    assert set(found) == {"own", "causal"} and not wrong(found) and density is None


@pytest.mark.parametrize("name", [n for n in methods.names() if methods.get(n).family != "none"])
def test_no_method_trips_a_check(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    method = built(name, sparsity=0.7)
    found, density = measure(context(monkeypatch, built(name, sparsity=0.0)), arm(method), PROMPT)
    assert not wrong(found), found
    assert ("selection" in found) == (not method.reads_end) and {"zero", "causal"} <= set(found)
    assert density is not None and density < 1, "it left something out, or nothing was checked"


@pytest.mark.parametrize("question", ["after", "reread"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_a_question_after_its_context_is_checked(monkeypatch: pytest.MonkeyPatch, family: str, question: str) -> None:
    found, _ = measure(context(monkeypatch, family=family, question=question), arm(None), PROMPT)
    assert set(found) == {"own", "question", "causal"} and not wrong(found)
    zero = built("block_topk", sparsity=0.0)
    found, _ = measure(context(monkeypatch, zero, family, question), arm(built("block_topk", sparsity=0.7)), PROMPT)
    assert set(found) == {"zero", "question", "causal", "selection"} and not wrong(found)


def test_a_question_with_the_diagonal_of_a_whole_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    def top_left(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        return dense_attention(q, k[:, :, : q.shape[2]], v[:, :, : q.shape[2]], **options)

    monkeypatch.setattr(bridge_module, "dense_attention", top_left)
    found, _ = measure(context(monkeypatch, question="after"), arm(None), PROMPT)
    assert wrong(found) == {"question"}


def test_a_question_read_again_beside_its_first_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that keeps the keys of the first reading has no room for the second: the check can't run, so nothing does."""
    monkeypatch.setattr(BatchCache, "crop_prompt", lambda *_: None)
    assert not wrong(measure(context(monkeypatch, question="after"), arm(None), PROMPT)[0])
    with pytest.raises(RuntimeError):
        measure(context(monkeypatch, question="reread"), arm(None), PROMPT)


def test_those_that_read_the_end_are_known() -> None:
    assert [n for n in methods.names() if methods.get(n).reads_end] == ["flexprefill", "minference"]
    assert ready("sparge", block_size=BLOCK, sparsity=None).reads_end, "which blocks are alike depends on the mean key"
    assert not ready("sparge", block_size=BLOCK, sparsity=0.7).reads_end, "all blocks are alike there"


@pytest.mark.parametrize(
    ("name", "knobs"),
    [("flexprefill", {"sparsity": 0.7}), ("minference", {"sparsity": 0.7}), ("sparge", {"similar": 0.06, "cdf": 0.5})],
)
def test_methods_that_say_so_do_read_the_end(monkeypatch: pytest.MonkeyPatch, name: str, knobs: dict[str, float]) -> None:
    """The attribute is not there for convenience: without it they trip the check."""
    method = ready(name, block_size=BLOCK, **knobs)
    if isinstance(method, MInference):
        method.found = ((Pattern("vertical_slash", 60, 100),) * 4,) * 2
    monkeypatch.setattr(method, "reads_end", False)
    found, _ = measure(context(monkeypatch), arm(method), tokens(1, 500)[0].tolist())
    assert wrong(found) == {"selection"}


class Peeking(Method):
    """Ranks blocks by the last query of the prompt, and says nothing of it."""

    name, paper, knob, family = "peeking", "a test", "none", "top-k"

    def select(self, x: LayerInputs) -> BlockIndex:
        blocks = -(-x.k.shape[2] // BLOCK)
        keys = torch.nn.functional.pad(x.k, (0, 0, 0, blocks * BLOCK - x.k.shape[2])).unflatten(2, (blocks, BLOCK)).mean(3)
        best = (keys @ x.q[:, : keys.shape[1], -1:].mT).squeeze(-1).topk(blocks // 3).indices
        mask = torch.zeros(keys.shape[:3], dtype=torch.bool).scatter_(-1, best, True)[:, :, None].repeat(1, 1, blocks, 1)
        return BlockIndex.from_mask(mask, **self.grid(x))


def test_a_method_that_sees_the_future(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = measure(context(monkeypatch), arm(Peeking(block_size=BLOCK)), PROMPT)
    assert wrong(found) == {"selection"}


def test_sparsity_0_that_loses_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = built("streaming_llm", sparsity=0.5)
    found, _ = measure(context(monkeypatch, sparse), arm(sparse), PROMPT)
    assert wrong(found) == {"zero"}


def see_all(q: Tensor, k: Tensor, v: Tensor, *, scale: float, ahead: int, **_: Any) -> Tensor:
    """Attention in which each row sees `ahead` keys after its own."""
    q_len, k_len = q.shape[2], k.shape[2]
    position = torch.arange(q_len)[:, None] + k_len - q_len
    mask = torch.arange(k_len)[None] <= position + ahead
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)


@pytest.mark.parametrize("ahead", [1, 10_000])
def test_a_sparse_kernel_that_sees_the_future(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    """The whole future, where the mask was dropped, or one key, where it is off by one."""
    real = bridge_module.attend
    monkeypatch.setattr(
        bridge_module,
        "attend",
        lambda q, k, v, choice, *, scale, kernel: (
            see_all(q, k, v, scale=scale, ahead=ahead),
            real(q, k, v, choice, scale=scale, kernel=kernel)[1],
        ),
    )
    found, _ = measure(context(monkeypatch, built("block_topk", sparsity=0.0)), arm(built("block_topk", sparsity=0.5)), PROMPT)
    assert {"zero", "causal"} <= wrong(found)


@pytest.mark.parametrize("ahead", [1, 10_000])
def test_a_dense_kernel_or_bridge_that_sees_the_future(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    monkeypatch.setattr(bridge_module, "dense_attention", lambda *a, **kw: see_all(*a, **kw, ahead=ahead))
    found, _ = measure(context(monkeypatch), arm(None), PROMPT)
    assert wrong(found) == {"own", "causal"}


def test_a_bridge_that_scales_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        bridge_module, "dense_attention", lambda q, k, v, *, scale, **kw: dense_attention(q, k, v, scale=1.5 * scale, **kw)
    )
    found, _ = measure(context(monkeypatch), arm(None), PROMPT)
    assert wrong(found) == {"own"}


def test_values_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge_module, "dense_attention", lambda q, k, v, **kw: q * float("nan"))
    assert wrong(measure(context(monkeypatch), arm(None), PROMPT)[0]) == {"own", "causal"}


# -- the command ---------------------------------------------------------------------------------------------------------


def checks(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "results/toy/records/checks.jsonl").read_text().splitlines()]


def test_recorded_once_per_arm(command: Callable[..., int], toy: list[str], tmp_path: Path) -> None:
    assert command(*toy) == 0 and command(*toy, "samples=3") == 0
    found = checks(tmp_path)
    assert [(r["identity"]["method"], r["status"], sorted(r["found"])) for r in found] == [
        ("dense", "ok", ["causal", "own"]),
        ("block_topk", "ok", ["causal", "selection", "zero"]),
    ]
    assert found[1]["density"] < 1 and found[1]["tokens"] > 700 and found[1]["seconds"] > 0


def test_turned_off(command: Callable[..., int], toy: list[str], tmp_path: Path) -> None:
    assert command(*toy, "checks=false") == 0
    assert not (tmp_path / "results/toy/records/checks.jsonl").exists()


def test_a_failed_check_gates_the_arms_rows(
    command: Callable[..., int],
    toy: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = Bridge._select

    def peeking(self: Bridge, layer: int, q: Tensor, k: Tensor, scale: float) -> Any:
        return real(self, layer, q.flip(2), k, scale)

    monkeypatch.setattr(Bridge, "_select", peeking)
    assert command(*toy) == 0
    text = (tmp_path / "results/toy/leaderboard.csv").read_text()
    rows = {line.split(",")[2]: line for line in text.splitlines() if ",niah_single_1," in line}
    assert ",ok," in rows["dense"] and ",gated," in rows["block_topk"]
    assert "self-check: rows change by" in rows["block_topk"] and "the selection sees the future" in rows["block_topk"]
    assert "self-check of block_topk" in capsys.readouterr().out


def test_a_check_that_cannot_run_fails_its_cells_until_it_can(
    command: Callable[..., int], toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that another process holds, say: no verdict on the method, and nothing is generated unchecked."""
    study = tmp_path / "results/toy"

    def failing(*_: Any) -> Any:
        raise RuntimeError("no kernel")

    with monkeypatch.context() as patch:
        patch.setattr("harness.measure.self_check.measure", failing)
        assert command(*toy) == 1
    board = (study / "leaderboard.csv").read_text()
    assert "self-check: it could not run: RuntimeError: no kernel" in board and ",failed," in board
    assert not (study / "records/samples.jsonl").exists() and not (study / "records/checks.jsonl").exists()
    assert command(*toy) == 0
    assert ",failed," not in (study / "leaderboard.csv").read_text()


def test_a_gated_arm_is_checked_again_at_another_commit(
    command: Callable[..., int], toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "results/toy"
    with monkeypatch.context() as patch:
        patch.setattr("harness.measure.self_check.measure", lambda *_: ({"causal": (1.0, 1e-5)}, None))
        assert command(*toy) == 0
    samples = (study / "records/samples.jsonl").read_text()
    assert command(*toy) == 0
    assert ",gated," in (study / "leaderboard.csv").read_text(), "the same code: the verdict stands"
    monkeypatch.setattr("harness.measure.self_check.commit", lambda: "another")
    assert command(*toy) == 0
    assert ",gated," not in (study / "leaderboard.csv").read_text()
    assert (study / "records/samples.jsonl").read_text() == samples, "nothing is generated twice"
