"""LongBench (arXiv 2308.14508), all 21 data sets, and the 13 of LongBench-E with three buckets of length each.

Prompts, tokens to generate, metrics and what is done to an answer are those of THUDM/LongBench (LongBench/pred.py and
eval.py at commit 2e00731f8d0b). A task's accuracy is LongBench's score ÷ 100. Where this differs, on purpose:

- `length` is the budget of prompt, chat template and answer together, where the original has a length for each model that
  it names, and puts the template and the answer on top. Longer prompts lose their middle, as in the original, and the row
  counts them (`truncated`).
- Each row of a data set is scored with its own list of classes; the original takes the last row's for all. They are equal
  in the data as distributed.
- A text that kills the original's ROUGE by recursion has its score here, and 0 there (see rouge.py).
"""
