"""The command line of a method's demo, and the text around its pictures."""

from __future__ import annotations

import argparse
import inspect
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from methods.parts.demo_layers import DemoLayers, demo_layers
from methods.parts.demo_picture import HeadChoice, draw
from methods.parts.registry import Registry

LEGEND = (
    "left: a row's share of attention, · below 1 %, ░ from 1, ▒ 3, ▓ 10, █ 30; "
    "right: share of a cell that is kept, · none, ░ ▒ ▓ some, █ all"
)
MOST_TOKENS = 4096
"""Maps are computed token by token."""
SHARED = {"block_size", "sparsity", "seed"}
"""Knobs that all methods have, with options of their own."""


@dataclass(frozen=True)
class DemoResult:
    """A method's choice in the made-up layers.

    density: share of causal blocks kept. choices: by query head. notes: sentences on what was made up beside queries and keys.
    """

    method: Any
    density: float
    choices: Mapping[int, HeadChoice]
    notes: tuple[str, ...]


def demo_command(
    registry: Registry[Any],
    name: str,
    run: Callable[[Any, DemoLayers], DemoResult],
    arguments: Sequence[str] | None,
    defaults: Mapping[str, Any],
) -> None:
    """Print what a method keeps of a small made-up map.

    run: selects with a method that was built from the arguments. arguments: None takes those of the process. A wrong one ends
    the process with a line that says what would be right. defaults: knobs that hold where the arguments set no other.
    """
    known = registry.knobs(name)
    native = [knob for knob in known if knob not in SHARED]
    parser = _parser(registry, name, native)
    options = parser.parse_args(arguments)
    given = {knob: getattr(options, knob) for knob in native if getattr(options, knob) is not None}
    if options.sparsity is not None or given:
        given["sparsity"] = options.sparsity
    try:
        if not 8 * options.block_size <= options.tokens <= MOST_TOKENS:
            raise ValueError(f"--tokens {options.tokens}: must be from 8 blocks ({8 * options.block_size}) to {MOST_TOKENS}")
        shared = {"block_size": options.block_size, "sparsity": 0.75, "seed": options.seed}
        knobs = {knob: value for knob, value in {**shared, **defaults, **given}.items() if knob in known}
        made_up = demo_layers(options.tokens, options.block_size, options.seed)
        result = run(registry.build(name, **knobs), made_up)
    except TypeError as error:
        parser.error(f"a knob has a value of the wrong type: {error}")
    except ValueError as error:
        parser.error(str(error))
    _print(result, made_up, options.tokens, options.block_size)


def _parser(registry: Registry[Any], name: str, knobs: Sequence[str]) -> argparse.ArgumentParser:
    cls = registry.get(name)
    parser = argparse.ArgumentParser(prog=f"python -m {cls.__module__}", description=inspect.getdoc(cls))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--sparsity", type=float, help="share of blocks to leave out; 0.75 where no knob is given")
    parser.add_argument("--tokens", type=int, default=1024, help="length of the made-up prompt")
    sizes = ["--block-size"] if "block" in knobs else ["--block", "--block-size"]  # one method has a knob of that name
    parser.add_argument(*sizes, dest="block_size", type=int, default=32, help="tokens of a block")
    parser.add_argument("--seed", type=int, default=0, help="of the made-up prompt, and of methods that draw")
    for knob in knobs:
        parser.add_argument(f"--{knob.replace('_', '-')}", dest=knob, type=_value, help="a knob of the method")
    return parser


def _value(text: str) -> Any:
    """Return a number, true, false or null where a text is one, else the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _print(result: DemoResult, made_up: DemoLayers, tokens: int, block: int) -> None:
    method, width = result.method, shutil.get_terminal_size().columns
    most_cells = (width - 3) // 2
    cell = block * max(1, -(-tokens // (block * most_cells)))
    knobs = {"sparsity": method.sparsity} | method.knobs()
    values = ", ".join(
        f"{knob}={value:.4g}" if isinstance(value, float) else f"{knob}={value}"
        for knob, value in knobs.items()
        if value is not None
    )
    print(f"{method.name} ({method.paper}): {values}")
    layers = f"{tokens} made-up tokens in blocks of {block}, the last of {len(made_up.layers)} layers."
    print(" ".join((layers, *result.notes)))
    for head, choice in result.choices.items():
        print()
        print(draw(choice, cell, width, (f"head {head}: attention", f"what {method.name} keeps of it")))
    print(f"\n{LEGEND}\n\ndensity {result.density:.3f}: {_seen(result, made_up)}")


def _seen(result: DemoResult, made_up: DemoLayers) -> str:
    """Return one sentence on how much of the landmarks is kept."""
    heads = []
    for head, choice in result.choices.items():
        parts = [f"{choice.kept_of(landmark):.0%} of {landmark.name}" for landmark in made_up.landmarks[head]]
        heads.append(f"head {head} keeps {', '.join(parts[:-1])} and {parts[-1]}, in all {choice.mass():.0%} of its attention")
    return "; ".join(heads) + "."
