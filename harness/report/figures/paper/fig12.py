"""Fig 12 and 13: the loss while a model is fine-tuned, by step."""

from __future__ import annotations

import matplotlib

from harness.report.figures.looks import Look, series_looks
from harness.report.figures.paper import sheet
from harness.report.figures.paper.drawing import Drawing, Value
from harness.report.figures.paper.empty import empty_drawing
from harness.report.figures.paper.item import Item
from harness.report.figures.paper.recorded import Recorded, grouped
from harness.study.store import Record

PANEL = "by step"
"""The one panel."""


def draw(item: Item, recorded: Recorded) -> list[Drawing]:
    """Return one picture, of the trainings of the study that is called as the experiment."""
    steps = [
        (store.folder.name, record)
        for store in recorded.stores
        if store.folder.name == item.experiment
        for record in store.finetune_steps.read()
        if record["loss"] is not None
    ]
    return [_draw(item, steps)] if steps else [empty_drawing(item)]


def _names(steps: list[tuple[str, Record]]) -> dict[str, str]:
    """Return what each training is called: its method, sparsity and seed, as its first step says them."""
    abouts = {record["training"]: record["about"] for _, record in steps if record["about"]}
    return {
        training: f"{about['method']} {about['sparsity']}, seed {about['seed']}" for training, about in sorted(abouts.items())
    }


def _draw(item: Item, steps: list[tuple[str, Record]]) -> Drawing:
    figure = sheet.new_sheet(sheet.COLUMN, 1.9, f"{item.number}: {item.shows}")
    names = _names(steps)
    trainings = grouped(steps, lambda pair: names.get(pair[1]["training"], str(pair[1]["training"])))
    values, keys = [], []
    with matplotlib.rc_context(sheet.RC):
        axes = figure.add_subplot()
        for name, look in series_looks(sorted(trainings)).items():
            own = sorted((record["step"], record["loss"], study) for study, record in trainings[name])
            axes.plot([step for step, _, _ in own], [loss for _, loss, _ in own], color=look.colour, linewidth=0.9)
            keys.append(sheet.line_key(Look(look.colour, ""), name))
            values += [Value(PANEL, name, step, loss, "nats a token", study) for step, loss, study in own]
        axes.set(xlabel="step", ylabel="loss (nats a token)")
        sheet.finish(figure, "The paper draws steps 0 to 400, without numbers that could be read off safely.", keys, 2)
    return Drawing(figure, values, measured=[PANEL])
