"""The columns of leaderboard.csv, in order, and what each holds.

`COLUMNS` are those of a study of models, `KERNEL_COLUMNS` those of a study of kernels; `AVERAGE` and `PERPLEXITY` are the two
values of the column `task` that name no task.
"""

from __future__ import annotations

AVERAGE = "avg"
"""The value of `task` in the rows that average an arm over its tasks."""

PERPLEXITY = "perplexity"
"""The value of `task` in the rows of job=perplexity."""

COLUMNS: tuple[str, ...] = (
    "study",
    "model",
    "method",
    "knob",
    "sparsity",
    "density",
    "token_density",
    "task",
    "length",
    "samples",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "dense_accuracy",
    "p_value",
    "kept_mass",
    "selection_ms",
    "attention_ms",
    "total_ms",
    "dense_ms",
    "dense_kernel",
    "kernel",
    "speedup",
    "pct_ideal",
    "tflops",
    "ttft_ms",
    "peak_mib",
    "block_size",
    "dtype",
    "device",
    "torch",
    "triton",
    "commit",
    "seed",
    "status",
    "command",
    "date",
    # beyond the columns every reader may count on:
    "haystack",
    "transformers",
    "reason",
    "cell",
    "tasks",
    "decode",
    "dense_ttft_ms",
    "decode_density",
    "truncated",
    "nll",
    "perplexity",
    "perplexity_low",
    "perplexity_high",
    "dense_perplexity",
    "perplexity_ratio",
    "perplexity_ratio_low",
    "perplexity_ratio_high",
    "tokens_s",
    "difference",
    "difference_low",
    "difference_high",
    "p_holm",
    "margin",
    "noninferior",
    "question",
    "match",
    "full_rows",
    "settings",
    "ttft_speedup",
    "no_attention_ttft_ms",
    "ttft_limit",
    "attention_layers",
    "rest_ms",
    "decode_tokens_s",
    "dense_decode_tokens_s",
    "decode_speedup",
    "decode_peak_mib",
    "decode_failed",
    "decode_timing",
)
"""The columns of leaderboard.csv, in order. Times are milliseconds per attention layer call, `ttft_ms` per prompt,
`peak_mib` MiB, accuracy and density fractions in [0, 1], `pct_ideal` per cent. Times come from timings alone: a row that was
never timed has none. `density` counts tiles that are computed, `token_density` (query, key) pairs. `tasks` is how many
tasks an average row averages. `decode` says how tokens after the first were computed, "full" attention or a method of
decoding with its knobs, and by which kernels; `decode_density` is kept blocks ÷ the cache's blocks, the mean over steps,
layers and heads. `truncated` is how many samples had tokens cut from their prompt by their task's own rules. `nll` is the
mean loss in nats a token, `perplexity` its exponential, intervals by bootstrap over the documents that `samples` then counts,
`perplexity_ratio` the perplexity ÷ dense attention's on the same documents, in pairs; `tokens_s` tokens a second through the
whole model, the loss included, the median over documents. `difference` is the accuracy less that of dense on the same
samples, with its 95 % interval (`harness.stats.paired`); `noninferior` is "yes" where that interval lies above -`margin`: the
method is shown to lose less than the margin. "no" is not "worse": samples may be too few (job=power). `p_value` tests one row
by itself; `p_holm` is adjusted for all averages of its model and length or, in rows of single tasks, for all of those.
`question` is "seen" where prompts were prefilled whole, "after" where the context was prefilled before the question, which
then attended to everything (`density` is the context's), and "reread" where the prompt was prefilled whole and the question
again, attending to everything (`density` is the whole prompt's); times are of whole prompts in all three, which share no
average and no picture. `match` says whether the density is the one asked for: "matched" within 2 % of 1 - sparsity (relative,
the mean over the prompts of all tasks of the arm's average, each task weighing the same), "nearest" where the knob is a whole
number and the next one has a row on the other side of the request, "off_density" elsewhere: to be compared with nothing. Empty
for dense attention and where no sparsity was asked for. `full_rows` is how many query blocks at the end were kept in full,
"1–2" where prompts differ, of methods with a knob `last`: what it asks for, or with a sparsity as many as half of the budget
pays. `settings` measures the row again, whatever the defaults are by then: `python -m harness SETTINGS`
(`harness.study.command_settings`). `ttft_speedup` is `dense_ttft_ms` ÷ `ttft_ms`; `no_attention_ttft_ms` is the whole
prefill without the attention of the `attention_layers` layers in which a method chooses, timed in turns, and `ttft_limit` is
`dense_ttft_ms` ÷ that: what no method of attention can pass. `rest_ms` is `ttft_ms` less `attention_layers` × `total_ms`, the
same by subtraction. `decode_tokens_s` and the columns after it have a value for each batch, the number of sequences that decode
together: "1=80;16=900". They are tokens a second of the whole model, all sequences of the batch together, `decode_speedup` the
arm's ÷ those of dense attention after the same prefill, in turns; `decode_failed` says why a batch was not timed, and
`decode_timing` how they were timed. Where a row's samples came from several processes, `commit`, `command`, versions and
`device` hold each value, joined by "+" (commands by "; ")."""


KERNEL_COLUMNS: tuple[str, ...] = (
    *COLUMNS,
    "phase",
    "op",
    "batch",
    "index",
    "selection",
    "q_block",
    "k_block",
    "shared",
    "total_low",
    "total_high",
    "repeats",
    "attention_speedup",
    "attention_pct_ideal",
    "gb_s",
    "error",
    "timing",
)
"""The columns of leaderboard.csv in a study of kernels (job=kernel_speed), where `model` is the shape and `method` says where
the index comes from. `op` is what was timed: full (dense attention), sparse, selection or block_map; `index` the kind of
index (…_shared: one for the query heads of a KV head), `selection` the method whose selection is in `total_ms`. `total_low`
and `total_high` are the 10th and 90th percentile of `repeats` calls; `attention_speedup` and `attention_pct_ideal` leave
the selection out. `q_block` and `k_block` are of the index that ran: a kernel that merges blocks attends to more than it
was given, and its density says so. `gb_s`, at decode, is keys and values that must be read ÷ time; `error` the relative
error against float32 attention over the same index, in training the largest of the output's and the gradients'; `timing` says
whether calls were timed by events or replayed as a CUDA graph."""
