"""Pictures of attention maps: what they show is the model's attention and what the method takes of it."""

from __future__ import annotations

from collections.abc import Callable
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

import methods
from harness.core.errors import UserError
from harness.measure import attention_maps
from harness.measure.attention_maps import LayerMaps, attended_keys, choose, maps_of_prompt, pool_map
from harness.report.figures.attention_maps import _panel
from methods.parts.base import LayerInputs
from tests.harness.measure.test_mass import attention
from tests.harness.tiny import Fixed, load, tokens

Command = Callable[..., int]
LENGTH = 89  # six blocks of 16, the last of 9


def seen(family: str, method: Any, layers: Any = None, heads: list[int] | None = None) -> list[LayerMaps]:
    return maps_of_prompt(load(family), method, tokens(LENGTH).tolist(), layers, heads or [0, 3])


def tiles(found: torch.Tensor, size: int) -> torch.Tensor:
    """The largest in each size × size tile of [N,N]."""
    count = -(-found.shape[0] // size)
    cut = [slice(i * size, (i + 1) * size) for i in range(count)]
    return torch.stack([torch.stack([found[rows, columns].max() for columns in cut]) for rows in cut])


def test_the_maps_are_the_models_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_maps, "PIXELS", 30)
    truth = attention("llama", tokens(LENGTH).tolist())
    found = seen("llama", Fixed(keep="ends"))
    assert [each.layer for each in found] == [0, 1]
    for each in found:
        assert (each.tokens, each.tile, each.block, [h.head for h in each.heads]) == (LENGTH, 4, 16, [0, 3])
        for head in each.heads:
            mine = truth[each.layer][head.head]
            torch.testing.assert_close(head.true.double(), tiles(mine, 4), atol=1e-5, rtol=1e-4)
            blocks = tiles(mine, 16)
            torch.testing.assert_close(head.truth.double(), blocks / blocks.sum(-1, keepdim=True), atol=1e-5, rtol=1e-4)
            assert head.expected is None
            block = torch.arange(LENGTH) // 16
            kept = (block[None] == 0) | (block[None] == block[:, None])
            rows = torch.stack([(mine * kept).sum(-1)[block == i].mean() for i in range(6)])  # each query block counts once
            assert head.mass == pytest.approx(float(rows.mean()), abs=1e-5)
            assert head.density == pytest.approx(11 / 21)
            wanted = torch.zeros(6, 23)
            wanted[:, :4] = 1
            for i in range(6):
                wanted[i, 4 * i : 4 * i + 4] = 1
            assert torch.equal(head.attended, wanted)


def test_the_expectation_is_that_of_the_head() -> None:
    method = methods.build("block_topk", sparsity=0.5, block_size=16, shared=True)
    inputs: list[LayerInputs] = []
    select = method.select
    method.select = lambda x: inputs.append(x) or select(x)  # type: ignore[method-assign, func-returns-value, assignment]
    (found,) = seen("llama", method, layers=[1], heads=[1, 2])
    scores = method.scores(inputs[1])
    assert scores is not None
    for head, group in zip(found.heads, (0, 1), strict=True):
        assert head.expected is not None
        assert torch.equal(head.expected, scores[0, group])


def test_without_a_choice_all_is_kept() -> None:
    (found,) = seen("llama", Fixed(keep="none"), layers=[0], heads=[2])
    assert (found.heads[0].mass, found.heads[0].density) == (1.0, 1.0)
    assert bool((found.heads[0].attended == 1).all())


def test_layers_of_a_sliding_window_are_left_out() -> None:
    assert [each.layer for each in seen("gemma3", Fixed())] == [1]
    with pytest.raises(UserError, match=r"job.layers=\[0\]: must be numbers among 1"):
        seen("gemma3", Fixed(), layers=[0])


def test_single_columns_are_shares_of_their_tile() -> None:
    blocks = BlockIndex.from_mask(torch.eye(4).bool()[None, None], q_block=16, k_block=16, q_len=64, k_len=64)
    index = with_columns(blocks, torch.tensor([[[5, 37]]], dtype=torch.int32), torch.tensor([[2]], dtype=torch.int32))
    found = attended_keys(index, [0], 8)[0]
    assert found[3].tolist() == [1 / 8, 0, 0, 0, 1 / 8, 0, 1, 1]
    assert found[0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


def test_rows_and_columns_stand_at_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the last block is partly filled, and where the maps were pooled."""
    (found,) = seen("llama", Fixed(keep="ends"), layers=[0], heads=[0])
    assert found.cells == {"true": (1, 1), "truth": (16, 16), "expected": (16, 16), "attended": (16, 1)}
    panels = Figure().subplots(3)
    for axes, part in zip(panels, ("true", "truth", "attended"), strict=True):
        values = getattr(found.heads[0], part)
        image = _panel(axes, values, found.cells[part], LENGTH, PowerNorm(0.5, 0, 1), "Greys")
        assert axes.get_xlim() == (0, LENGTH) and axes.get_ylim() == (LENGTH, 0)
        tall, wide = found.cells[part]
        assert image.get_extent() == [0, wide * values.shape[1], tall * values.shape[0], 0]
        past = ~np.ma.getmaskarray(image.get_array())
        wanted = [[column * wide < (row + 1) * tall for column in range(past.shape[1])] for row in range(past.shape[0])]
        assert past.tolist() == wanted
    monkeypatch.setattr(attention_maps, "PIXELS", 3)
    (found,) = seen("llama", Fixed(keep="ends"), layers=[0], heads=[0])
    assert found.cells == {"true": (32, 32), "truth": (32, 32), "expected": (32, 32), "attended": (32, 32)}
    assert found.heads[0].attended.shape == (3, 3)


def test_large_maps_are_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_maps, "PIXELS", 3)
    found = torch.arange(35.0).view(5, 7)
    assert pool_map(found).tolist() == [[9, 12, 13], [23, 26, 27], [30, 33, 34]]
    assert pool_map(torch.ones(7, 7), mean=True).tolist() == [[1.0] * 3] * 3


def test_what_is_chosen() -> None:
    assert choose("heads", None, range(32)) == [0, 10, 21, 31]
    assert choose("heads", None, range(2)) == [0, 1]
    assert choose("layers", [5], [2, 5]) == [5] and choose("layers", 2, [2, 5]) == [2]
    for given in ([3], ["a"], [True], []):
        with pytest.raises(UserError, match=r"job\.layers="):
            choose("layers", given, [2, 5])


@pytest.mark.parametrize("method", ["oracle", "minference", "blasst"])
def test_pictures_of_any_method(command: Command, toy: list[str], tmp_path: Path, method: str) -> None:
    job = ["job=maps", f"method={method}", "job.layers=[1]", "job.heads=[0,3]", "checks=false"]
    assert command(*toy, *job, "job.heads=[0,3]") == 0
    (path,) = (tmp_path / "results" / "toy" / "maps").iterdir()
    assert path.name.startswith(method) and path.name.endswith("_0.5_1024_layer01.png")
    picture = imread(path)
    assert picture.shape[0] > 500 and picture[..., :3].std() > 0.1


def test_variants_of_a_method_have_pictures_of_their_own(command: Command, toy: list[str], tmp_path: Path) -> None:
    for selection in ("topk", "nz_ratio"):
        assert (
            command(*toy, "job=maps", "method=oracle", f"method.selection={selection}", "job.layers=[1]", "job.heads=[0]") == 0
        )
    names = sorted(path.name for path in (tmp_path / "results" / "toy" / "maps").iterdir())
    assert names == ["oracle_max_64_0.5_1024_layer01.png", "oracle_max_nz_ratio_64_0.5_1024_layer01.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=dense"], "dense keeps everything: name another"),
        (["job.layers=[7]"], "job.layers=[7]: must be numbers among 0, 1"),
        (["job.heads=[4]"], "job.heads=[4]: must be numbers among 0, 1, 2, 3"),
        (["decode=quest"], "leave decode out"),
        (["length=4096"], "context of 2048 tokens"),
    ],
)
def test_bad_input(
    command: Command, toy: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert command(*toy, "job=maps", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
