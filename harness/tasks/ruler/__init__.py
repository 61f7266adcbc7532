"""The thirteen tasks of RULER (arXiv 2404.06654), as NVIDIA/RULER's scripts/synthetic.yaml sets them up: eleven that are
generated, and two that ask the questions of SQuAD and HotpotQA (`qa`).

Where this differs from NVIDIA's code, on purpose: every sample has a random stream of its own, so shuffles and draws that
NVIDIA repeats with seed 42 differ between samples, and any sample can be built without the others; sentences are cut by a
regular expression instead of punkt; distractor needles never carry the key that is asked for; where a question's own documents
don't all fit, those that answer it stay, where NVIDIA's code never ends. Two more, to be mended when the samples change next:
the worked example of vt has five lines of noise, where NVIDIA's is filled to 500 tokens (about twelve lines); and after a chat
template the answer prefix loses its leading space, which NVIDIA's keeps.
"""
