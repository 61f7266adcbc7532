"""Every planted error trips its check, and no method of the registry trips one that is sound."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
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
from harness.core.errors import UserError
from harness.measure import self_check
from harness.measure.context import Kernels
from harness.measure.self_check import measure, prompt_tokens
from harness.models import bridge as bridge_module
from harness.models.batch_cache import BatchCache
from harness.models.bridge import Bridge
from harness.models.edges import edges
from harness.models.loading import LoadedModel, wrap_model
from harness.study.identity import ArmIdentity, Setting
from methods.minference import MInference
from methods.parts.base import LayerInputs, Method
from methods.parts.head_patterns import Pattern
from tests.harness.tiny import VOCAB, build, load, tokens
from tests.methods.selecting import calibrated
from tests.methods.support import layer, ready

BLOCK = 16
PROMPT = tokens(1, 299, seed=5)[0].tolist()


@lru_cache
def toy_model(family: str) -> LoadedModel:
    """A tiny model of the family, its tokenizer a range of ids."""
    loaded = load(family)
    object.__setattr__(loaded, "tokenizer", range(VOCAB))
    return loaded


def check(
    method: Method | None,
    zero: Method | None = None,
    *,
    family: str = "llama",
    question: str = "seen",
    prompt: Sequence[int] = PROMPT,
    chunk: int | None = None,
) -> tuple[dict[str, tuple[float, float]], float | None]:
    """The self-check of an arm of `method`, None for dense, on a tiny model."""
    return measure(toy_model(family), arm(method), prompt, zero=zero, kernels=Kernels(), question=question, chunk=chunk)


def arm(method: Method | None) -> RunnableArm:
    return RunnableArm(ArmIdentity(Setting("tiny", "abc", 512, 0, "float32", "cpu", "sdpa"), "any", 0.5), method)


def wrong(distances: dict[str, tuple[float, float]]) -> set[str]:
    return {name for name, (value, most) in distances.items() if not value <= most}


def built(name: str, sparsity: float) -> Method:
    """A method ready to run; a knob without a formula is set for random activations, which is near enough."""
    if sparsity == 0 or methods.get(name).in_kernel:
        return ready(name, block_size=BLOCK, sparsity=sparsity)
    return calibrated(name, layer(299), sparsity=sparsity)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_dense_passes(family: str) -> None:
    distances, density = check(None, family=family)
    assert set(distances) == {"own", "causal"} and not wrong(distances) and density is None


@pytest.mark.parametrize("name", [n for n in methods.names() if methods.get(n).family != "none"])
def test_no_method_trips_a_check(name: str) -> None:
    method = built(name, sparsity=0.7)
    distances, density = check(method, built(name, sparsity=0.0))
    assert not wrong(distances), distances
    assert ("selection" in distances) == (not method.reads_end) and {"zero", "causal"} <= set(distances)
    assert density is not None and density < 1, "it left something out, or nothing was checked"


def test_a_method_that_no_layer_lets_act() -> None:
    with pytest.raises(UserError, match="every layer of mistral_window has a window shorter than the 299 tokens"):
        check(built("block_topk", sparsity=0.7), family="mistral_window")


@pytest.mark.parametrize("question", ["after", "reread"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_a_question_after_its_context_is_checked(family: str, question: str) -> None:
    distances, _ = check(None, family=family, question=question)
    assert set(distances) == {"own", "question", "causal"} and not wrong(distances)
    zero = built("block_topk", sparsity=0.0)
    distances, _ = check(built("block_topk", sparsity=0.7), zero, family=family, question=question)
    assert set(distances) == {"zero", "question", "causal", "selection"} and not wrong(distances)


def test_a_question_with_the_diagonal_of_a_whole_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    def top_left(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        return dense_attention(q, k[:, :, : q.shape[2]], v[:, :, : q.shape[2]], **options)

    monkeypatch.setattr(bridge_module, "dense_attention", top_left)
    distances, _ = check(None, question="after")
    assert wrong(distances) == {"question"}


def test_a_question_read_again_beside_its_first_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that keeps the keys of the first reading has no room for the second: the check can't run, so nothing does."""
    monkeypatch.setattr(BatchCache, "crop_prompt", lambda *_: None)
    assert not wrong(check(None, question="after")[0])
    with pytest.raises(RuntimeError):
        check(None, question="reread")


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
        method.head_patterns = ((Pattern("vertical_slash", 60, 100),) * 4,) * 2
    monkeypatch.setattr(method, "reads_end", False)
    distances, _ = check(method, prompt=tokens(1, 500)[0].tolist())
    assert wrong(distances) == {"selection"}


class Peeking(Method):
    """Ranks blocks by the last query of the prompt, and says nothing of it."""

    name, paper, knob, family = "peeking", "a test", "none", "top-k"

    def select(self, x: LayerInputs) -> BlockIndex:
        blocks = -(-x.k.shape[2] // BLOCK)
        keys = torch.nn.functional.pad(x.k, (0, 0, 0, blocks * BLOCK - x.k.shape[2])).unflatten(2, (blocks, BLOCK)).mean(3)
        best = (keys @ x.q[:, : keys.shape[1], -1:].mT).squeeze(-1).topk(blocks // 3).indices
        mask = torch.zeros(keys.shape[:3], dtype=torch.bool).scatter_(-1, best, True)[:, :, None].repeat(1, 1, blocks, 1)
        return BlockIndex.from_mask(mask, **self.grid(x))


def test_a_method_that_sees_the_future() -> None:
    distances, _ = check(Peeking(block_size=BLOCK))
    assert wrong(distances) == {"selection"}


def test_sparsity_0_that_loses_blocks() -> None:
    sparse = built("streaming_llm", sparsity=0.5)
    distances, _ = check(sparse, sparse)
    assert wrong(distances) == {"zero"}


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
    distances, _ = check(built("block_topk", sparsity=0.5), built("block_topk", sparsity=0.0))
    assert {"zero", "causal"} <= wrong(distances)


@pytest.mark.parametrize("ahead", [1, 10_000])
def test_a_dense_kernel_or_bridge_that_sees_the_future(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    monkeypatch.setattr(bridge_module, "dense_attention", lambda *a, **kw: see_all(*a, **kw, ahead=ahead))
    distances, _ = check(None)
    assert wrong(distances) == {"own", "causal"}


def test_a_bridge_that_scales_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        bridge_module, "dense_attention", lambda q, k, v, *, scale, **kw: dense_attention(q, k, v, scale=1.5 * scale, **kw)
    )
    distances, _ = check(None)
    assert wrong(distances) == {"own"}


def test_values_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge_module, "dense_attention", lambda q, k, v, **kw: q * float("nan"))
    assert wrong(check(None)[0]) == {"own", "causal"}


# -- the command ---------------------------------------------------------------------------------------------------------


def checks(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "results/toy/records/checks.jsonl").read_text().splitlines()]


def test_recorded_once_per_arm(command: Callable[..., int], toy: list[str], finished: Path, tmp_path: Path) -> None:
    assert command(*toy, "samples=3", "report=false") == 0
    records = checks(tmp_path)
    assert [(r["identity"]["method"], r["status"], sorted(r["found"])) for r in records] == [
        ("dense", "ok", ["causal", "own"]),
        ("block_topk", "ok", ["causal", "selection", "zero"]),
    ]
    assert records[1]["density"] < 1 and records[1]["tokens"] > 700 and records[1]["seconds"] > 0


def test_a_method_at_sparsity_0_is_compared_with_dense_attention_once(
    command: Callable[..., int], toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, hidden = list[int](), self_check.hidden
    monkeypatch.setattr(self_check, "hidden", lambda loaded, ids: runs.append(1) or hidden(loaded, ids))
    assert command("-m", *toy, "sparsity=0.5,0.75", "samples=1", "report=false") == 0
    assert len(runs) == 5 + 6 + 4, "dense attention, and an arm of two at all sparsities"
    _, first, second = checks(tmp_path)
    assert first["found"]["zero"] == second["found"]["zero"] and sorted(second["found"]) == ["causal", "selection", "zero"]


def test_turned_off(command: Callable[..., int], toy: list[str], tmp_path: Path) -> None:
    assert command(*toy, "samples=1", "checks=false", "report=false") == 0
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

    def failing(*_: Any, **__: Any) -> Any:
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
        patch.setattr("harness.measure.self_check.measure", lambda *_, **__: ({"causal": (1.0, 1e-5)}, None))
        assert command(*toy) == 0
    samples = (study / "records/samples.jsonl").read_text()
    assert command(*toy) == 0
    assert ",gated," in (study / "leaderboard.csv").read_text(), "the same code: the verdict stands"
    monkeypatch.setattr("harness.measure.self_check.commit", lambda: "another")
    assert command(*toy) == 0
    assert ",gated," not in (study / "leaderboard.csv").read_text()
    assert (study / "records/samples.jsonl").read_text() == samples, "nothing is generated twice"


@pytest.fixture(scope="module")
def window_256() -> LoadedModel:
    """A toy whose window is longer than twelve blocks of 16."""
    model = build("mistral_window")
    config = type(model.config)(**model.config.to_dict() | {"sliding_window": 256, "max_position_embeddings": 1024})
    loaded = wrap_model(type(model)(config), None, name="toy")
    object.__setattr__(loaded, "tokenizer", range(VOCAB))
    return loaded


class TestPastWindowsAndSwitches:
    def test_a_window_that_is_lost_past_the_first_blocks(
        self, window_256: LoadedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert edges(window_256) == (256,)
        prompt = tokens(1, prompt_tokens(BLOCK, edges(window_256)), seed=5)[0].tolist()

        def without_window(q: Tensor, k: Tensor, v: Tensor, *, window: int, scale: float) -> Tensor:
            return dense_attention(q, k, v, scale=scale)

        for is_lost in (False, True):
            if is_lost:
                monkeypatch.setattr(bridge_module, "sliding_window_attention", without_window)
            short, long = (
                measure(window_256, arm(None), ids, zero=None, kernels=Kernels(), question="seen")
                for ids in (prompt[:203], prompt)
            )
            assert wrong(short[0]) == set() and wrong(long[0]) == ({"own"} if is_lost else set())

    def test_the_record_says_what_is_not_passed(self, window_256: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        def prompt_of(length: int) -> tuple[int, list[int]]:
            context = SimpleNamespace(loaded=window_256, first_prompt=lambda _: range(length))
            start, unchecked = self_check._prompt(context, arm(built("block_topk", sparsity=0.5)), ["any"])  # type: ignore[arg-type]
            return len(start), unchecked

        assert prompt_of(900) == (256 + 2 * BLOCK + BLOCK // 2 + 3, [])
        assert prompt_of(230) == (12 * BLOCK + BLOCK // 2 + 3, [256])
        monkeypatch.setattr(self_check, "MOST", {"cpu": 200})
        assert prompt_of(900) == (12 * BLOCK + BLOCK // 2 + 3, [256])

    def test_switches_of_rope_count_too(self) -> None:
        model = build("llama")
        parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
        config = type(model.config)(**model.config.to_dict() | {"rope_parameters": parameters})
        assert edges(wrap_model(type(model)(config), None, name="toy", max_length=512)) == (512,)
