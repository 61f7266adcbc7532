"""All items of the paper: its figures and its tables, in its order."""

from __future__ import annotations

from harness.report.figures.paper.item import Item

FINE_TUNING = "half an hour of a GPU"
"""What the items of fine-tuning need."""
FINETUNED = "method=seer method.selection=topk method.last=0 sparsity=0.9 data.text_dir=BOOKS"
"""What that experiment is told of one of its arms."""

ALL_LENGTHS = "model=hf model.path=FOLDER length=4096,8192,16384,32768,65536,131072"
"""What an experiment is told of a model that reads the lengths of the paper."""

_ROWS = (
    Item(
        "fig2",
        "Fig 2",
        "perplexity by sparsity and the pooling of queries and keys",
        "fig2",
        experiment="ablation_pooling",
        arguments="data.text_dir=HELD_OUT model.gates=GATES",
        needs="gates of each pooling: job=distill, as the experiment's file has it",
    ),
    Item(
        "fig4",
        "Fig 4",
        "perplexity by length with and without block RoPE",
        "fig4",
        experiment="ablation_rope",
        arguments="data.text_dir=HELD_OUT model.gates=GATES",
        needs="gates with and without RoPE at their blocks: job=distill, as the experiment's file has it",
    ),
    Item("fig5", "Fig 5", "perplexity by sparsity, panels by length", "fig5", experiment="pg19"),
    Item(
        "fig6",
        "Fig 6",
        "time of attention and selection, stacked, by sparsity",
        "fig6",
        experiment="kernel_speed",
        arguments="",
    ),
    Item("fig7", "Fig 7", "speed-up of attention by measured sparsity, every method", "fig7", experiment="pareto"),
    Item("fig8", "Fig 8", "five kinds of gate maps, heads chosen by their patterns", "fig8", experiment="gate_patterns"),
    Item("fig9", "Fig 9", "speed-up of the time to first token by length", "fig9", experiment="ttft"),
    Item("fig11", "Fig 11", "memory and time of the map kernel", "fig11", experiment="kernel_speed", arguments=""),
    Item(
        "fig12",
        "Fig 12 and 13",
        "loss while fine-tuning",
        "fig12",
        experiment="finetune",
        arguments=FINETUNED,
        needs=FINE_TUNING,
    ),
    Item(
        "table1",
        "Table 1",
        "LongBench-E by length, with the measured sparsity",
        "table1",
        experiment="longbench_by_length",
        needs="LongBench's data",
    ),
    Item("table2", "Table 2", "RULER by length, with the mean speed-up", "table2", experiment="pareto", arguments=ALL_LENGTHS),
    Item(
        "table3",
        "Table 3",
        "short tasks through lm-eval",
        "table3",
        needs="the data sets of the tasks",
        command="python -m harness.lm_eval --model sparse --model_args pretrained=FOLDER,method=NAME,sparsity=0.5 "
        "--tasks {tasks} --output_path results/short_tasks/lm_eval",
    ),
    Item(
        "table4",
        "Table 4",
        "perplexity after fine-tuning",
        "table4",
        experiment="finetune",
        arguments=FINETUNED,
        needs=FINE_TUNING,
    ),
)
ITEMS = {item.name: item for item in _ROWS}
"""The items by the name that `item=` takes."""
