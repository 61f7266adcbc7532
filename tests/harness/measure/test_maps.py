"""Pictures of attention maps: what they show is the model's attention and what the method takes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.open_columns import with_columns
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console

import methods
from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.measure import attention_maps
from harness.measure.attention_maps import LayerMaps, PromptMaps, attended_keys, choose, maps_of_prompt, measure_maps, pool_map
from harness.report.figures.attention_maps import _draw_map
from harness.study.store import Store
from methods.parts.base import LayerInputs
from tests.harness.measure.test_mass import attention
from tests.harness.settings import composed, with_options
from tests.harness.tiny import Fixed, shared, tokens

Command = Callable[..., int]
LENGTH = 89  # six blocks of 16, the last of 9


def maps_of(family: str, method: Any, layers: Any = None, heads: list[int] | None = None) -> list[LayerMaps]:
    return maps_of_prompt(shared(family), method, tokens(LENGTH).tolist(), layers, heads or [0, 3])


def tiles(pairs: torch.Tensor, size: int) -> torch.Tensor:
    """The largest in each size × size tile of [N,N]."""
    count = -(-pairs.shape[0] // size)
    cut = [slice(i * size, (i + 1) * size) for i in range(count)]
    return torch.stack([torch.stack([pairs[rows, columns].max() for columns in cut]) for rows in cut])


def test_the_maps_are_the_models_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_maps, "PIXELS", 30)
    truth = attention("llama", tokens(LENGTH).tolist())
    layers = maps_of("llama", Fixed(keep="ends"))
    assert [layer.layer for layer in layers] == [0, 1]
    for layer in layers:
        assert (layer.tokens, layer.tile, layer.block, [h.head for h in layer.heads]) == (LENGTH, 4, 16, [0, 3])
        for head in layer.heads:
            probabilities = truth[layer.layer][head.head]
            torch.testing.assert_close(head.true.double(), tiles(probabilities, 4), atol=1e-5, rtol=1e-4)
            blocks = tiles(probabilities, 16)
            torch.testing.assert_close(head.truth.double(), blocks / blocks.sum(-1, keepdim=True), atol=1e-5, rtol=1e-4)
            assert head.expected is None
            block = torch.arange(LENGTH) // 16
            kept_keys = (block[None] == 0) | (block[None] == block[:, None])
            rows = torch.stack(
                [(probabilities * kept_keys).sum(-1)[block == i].mean() for i in range(6)]
            )  # each query block counts once
            assert head.mass == pytest.approx(float(rows.mean()), abs=1e-5)
            assert head.density == pytest.approx(11 / 21)
            attended = torch.zeros(6, 23)
            attended[:, :4] = 1
            for i in range(6):
                attended[i, 4 * i : 4 * i + 4] = 1
            assert torch.equal(head.attended, attended)


def test_the_expectation_is_that_of_the_head() -> None:
    method = methods.build("block_topk", sparsity=0.5, block_size=16, shared=True)
    inputs: list[LayerInputs] = []
    select = method.select
    method.select = lambda x: inputs.append(x) or select(x)  # type: ignore[method-assign, func-returns-value, assignment]
    (layer,) = maps_of("llama", method, layers=[1], heads=[1, 2])
    scores = method.scores(inputs[1])
    assert scores is not None
    for head, group in zip(layer.heads, (0, 1), strict=True):
        assert head.expected is not None
        assert torch.equal(head.expected, scores[0, group])


def test_without_a_choice_all_is_kept() -> None:
    (layer,) = maps_of("llama", Fixed(keep="none"), layers=[0], heads=[2])
    assert (layer.heads[0].mass, layer.heads[0].density) == (1.0, 1.0)
    assert bool((layer.heads[0].attended == 1).all())


def test_layers_of_a_sliding_window_are_left_out() -> None:
    assert [layer.layer for layer in maps_of("gemma3", Fixed())] == [1]
    with pytest.raises(UserError, match=r"job.layers=\[0\]: must be numbers among 1"):
        maps_of("gemma3", Fixed(), layers=[0])


def test_single_columns_are_shares_of_their_tile() -> None:
    blocks = BlockIndex.from_mask(torch.eye(4).bool()[None, None], q_block=16, k_block=16, q_len=64, k_len=64)
    index = with_columns(blocks, torch.tensor([[[5, 37]]], dtype=torch.int32), torch.tensor([[2]], dtype=torch.int32))
    share = attended_keys(index, [0], 8)[0]
    assert share[3].tolist() == [1 / 8, 0, 0, 0, 1 / 8, 0, 1, 1]
    assert share[0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


def test_rows_and_columns_stand_at_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the last block is partly filled, and where the maps were pooled."""
    (layer,) = maps_of("llama", Fixed(keep="ends"), layers=[0], heads=[0])
    assert layer.cells == {"true": (1, 1), "truth": (16, 16), "expected": (16, 16), "attended": (16, 1)}
    panels = Figure().subplots(3)
    for axes, part in zip(panels, ("true", "truth", "attended"), strict=True):
        values = getattr(layer.heads[0], part)
        image = _draw_map(axes, values, layer.cells[part], LENGTH, PowerNorm(0.5, 0, 1), "Greys")
        assert axes.get_xlim() == (0, LENGTH) and axes.get_ylim() == (LENGTH, 0)
        tall, wide = layer.cells[part]
        assert image.get_extent() == [0, wide * values.shape[1], tall * values.shape[0], 0]
        past = ~np.ma.getmaskarray(image.get_array())
        causal = [[column * wide < (row + 1) * tall for column in range(past.shape[1])] for row in range(past.shape[0])]
        assert past.tolist() == causal
    monkeypatch.setattr(attention_maps, "PIXELS", 3)
    (layer,) = maps_of("llama", Fixed(keep="ends"), layers=[0], heads=[0])
    assert layer.cells == {"true": (32, 32), "truth": (32, 32), "expected": (32, 32), "attended": (32, 32)}
    assert layer.heads[0].attended.shape == (3, 3)


def test_large_maps_are_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_maps, "PIXELS", 3)
    full_map = torch.arange(35.0).view(5, 7)
    assert pool_map(full_map).tolist() == [[9, 12, 13], [23, 26, 27], [30, 33, 34]]
    assert pool_map(torch.ones(7, 7), mean=True).tolist() == [[1.0] * 3] * 3


def test_what_is_chosen() -> None:
    assert choose("heads", None, range(32)) == [0, 10, 21, 31]
    assert choose("heads", None, range(2)) == [0, 1]
    assert choose("layers", [5], [2, 5]) == [5] and choose("layers", 2, [2, 5]) == [2]
    for setting in ([3], ["a"], [True], []):
        with pytest.raises(UserError, match=r"job\.layers="):
            choose("layers", setting, [2, 5])


@pytest.mark.parametrize("method", ["oracle", "blasst"])  # one says what it expects, the other does not
def test_pictures_of_any_method(command: Command, toy: list[str], tmp_path: Path, method: str) -> None:
    assert command(*toy, "job=maps", f"method={method}", "job.layers=[1]", "job.heads=[0,3]", "length=512") == 0
    (path,) = (tmp_path / "results" / "toy" / "maps").iterdir()
    assert path.name.startswith(method) and path.name.endswith("_0.5_512_layer01.png")
    picture = imread(path)
    assert picture.shape[0] > 500 and picture[..., :3].std() > 0.1


@pytest.fixture
def settings(toy_folder: Path) -> Settings:
    """Those of the job on the toy model, method oracle."""
    model = {"name": "toy", "path": str(toy_folder), "chat_template": False}
    job = composed("job=maps", "device=cpu", "method=oracle", "sparsity=0.5", "length=512")
    return replace(with_options(job, layers=[1], heads=[0]), model=model, tasks=("niah_single_1",))


def measured(settings: Settings, folder: Path) -> PromptMaps:
    return measure_maps(settings, Store(folder), Console(quiet=True))


def test_maps_of_a_method_with_single_columns(settings: Settings, tmp_path: Path) -> None:
    prompt = measured(replace(settings, method="minference", method_knobs={}), tmp_path)
    assert prompt.stem.startswith("minference") and prompt.stem.endswith("_0.5_512")
    (layer,) = prompt.layers
    assert layer.layer == 1 and layer.heads[0].expected is None and 0 < layer.heads[0].density < 1
    assert 0 < layer.heads[0].mass <= 1 + 1e-6


def test_variants_of_a_method_have_pictures_of_their_own(settings: Settings, tmp_path: Path) -> None:
    variants = [
        replace(settings, method_knobs=settings.method_knobs | {"selection": selection}) for selection in ("topk", "nz_ratio")
    ]
    stems = [measured(variant, tmp_path).stem for variant in variants]
    assert stems == ["oracle_max_64_0.5_512", "oracle_max_nz_ratio_64_0.5_512"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "dense", "method_knobs": {}}, "dense keeps everything: name another"),
        ({"options": {"layers": [7], "heads": [0]}}, "job.layers=[7]: must be numbers among 0, 1"),
        ({"options": {"layers": [1], "heads": [4]}}, "job.heads=[4]: must be numbers among 0, 1, 2, 3"),
        ({"decode": "quest"}, "leave decode out"),
        ({"length": 4096}, "context of 2048 tokens"),
    ],
)
def test_bad_input(settings: Settings, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        measured(replace(settings, **change), tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_bad_input_is_one_line_of_the_command(command: Command, toy: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*toy, "job=maps", "method=dense") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "dense keeps everything: name another" in line
