"""The thirteen tasks of RULER (arXiv 2404.06654), as NVIDIA/RULER's scripts/synthetic.yaml sets them up (read at c3f5e3b):
eleven that are generated, and two that ask the questions of SQuAD and HotpotQA (`qa`).

Where this differs from NVIDIA's code, on purpose:

- Every sample has a random stream of its own, so shuffles and draws that NVIDIA repeats with seed 42 (the order of needles and
  of words, the places in vt's worked example) differ between samples, and any sample can be built without the others.
- Prompts are as long as fits, BOS counted, where NVIDIA's may lose a whole step of their haystack: `task.sizing=release` sizes
  them as NVIDIA's (`release_sizing`).
- Chat templates are the models' own, where NVIDIA has a table of its own (scripts/data/template.py).
- Sentences are cut by a regular expression instead of punkt, and a needle before the first or after the last of them has no
  second space beside it.
- The keys of a prompt differ, and distractor needles never carry the one that is asked for.
- Where a question's own documents don't all fit, those that answer it stay, and where not one step fits, samples become
  smaller: NVIDIA's code never ends there.
"""
