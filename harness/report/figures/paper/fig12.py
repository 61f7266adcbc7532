"""Fig 12 and 13: the loss while a model is fine-tuned, by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

from harness.report.figures.looks import Look, series_looks
from harness.report.figures.paper import sheet
from harness.report.figures.paper.drawing import Drawing, Value, suffix_of
from harness.report.figures.paper.empty import empty_drawing
from harness.report.figures.paper.item import Item
from harness.report.figures.paper.recorded import Recorded, fullest, grouped
from harness.report.figures.paper.trainings import base_of, read_trainings
from harness.study.store import Record

PANEL = "by step"
"""The one panel."""


def draw(item: Item, recorded: Recorded) -> list[Drawing]:
    """Return a picture for each model that trainings of the study began with which is called as the experiment; one at
    least."""
    steps = [
        (store.folder.name, record)
        for store in recorded.stores
        if store.folder.name == item.experiment
        for record in store.finetune_steps.read()
        if record["loss"] is not None
    ]
    trainings = read_trainings(record for _, record in steps)
    abouts = {record["training"]: record["about"] for _, record in steps if record["about"]}
    bases = {training: base_of(str(about.get("model", "")), trainings) for training, about in abouts.items()}
    sets = grouped(steps, lambda pair: (bases.get(pair[1]["training"], ""),))
    shown = fullest(sets, len, bool)
    return [_draw(item, sets[key], key[0], abouts, place) for place, key in enumerate(shown)] or [empty_drawing(item)]


def _arm(about: Mapping[str, Any] | None, training: str) -> str:
    """Return what a training is called but for its seed, by what its first step says of it."""
    if about is None:
        return training
    return f"{about['method']} {about['sparsity']}" + (", gates alone" if about.get("gates_only") else "")


def _draw(
    item: Item, steps: Sequence[tuple[str, Record]], base: str, abouts: Mapping[str, Mapping[str, Any]], place: int
) -> Drawing:
    figure = sheet.new_sheet(sheet.COLUMN, 1.9, f"{item.number}: {item.shows}" + (f", {base}" if base else ""))
    trainings = grouped(steps, lambda pair: pair[1]["training"])
    arms = grouped(sorted(trainings), lambda training: _arm(abouts.get(training), training))
    values, keys, seeds = [], [], 1
    with matplotlib.rc_context(sheet.RC):
        axes = figure.add_subplot()
        for name, look in series_looks(sorted(arms)).items():
            seeds = max(seeds, len(arms[name]))
            for training in sorted(arms[name], key=lambda one: str(abouts.get(one, {}).get("seed", ""))):
                own = sorted((record["step"], record["loss"], study) for study, record in trainings[training])
                axes.plot([step for step, _, _ in own], [loss for _, loss, _ in own], color=look.colour, linewidth=0.8)
                seed = f", seed {abouts[training]['seed']}" if training in abouts else ""
                values += [Value(PANEL, f"{name}{seed}", step, loss, "nats a token", study) for step, loss, study in own]
            keys.append(sheet.line_key(Look(look.colour, ""), name))
        axes.set(xlabel="step", ylabel="loss (nats a token)")
        note = "The paper draws steps 0 to 400, without numbers that could be read off safely."
        many = " A line for each seed, those of an arm alike." if seeds > 1 else ""
        sheet.finish(figure, f"{note}{many}", keys, 2)
    return Drawing(figure, values, model=base, suffix=suffix_of(place, base), measured=[PANEL])
