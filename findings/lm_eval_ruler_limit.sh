#!/usr/bin/env bash
# lm-eval's RULER under --limit measures the first length alone, and a length's samples depend on the other lengths.
#
# Version    lm_eval 0.4.13 with transformers 5.23.0, torch 2.13.0, wonderwords 3.0.1
# Behaviour  the samples of all lengths lie in one list, one length after the other, and the limit cuts that list: with
#            limit=2 and lengths 8192 and 4096, both samples are of 8192 tokens, and the score of 4096 is -1.
#            All draw from one random stream: the same seed gives other samples of 4096 where 8192 comes before it.
# Why care   a quick run with --limit gives numbers for one length, and -1 enters averages. Rows of two runs are of the
#            same samples only where all lengths and tasks of the call are the same, in the same order.
# Output     limit=2, lengths 8192 and 4096: score of 8192 is 0.0, of 4096 -1
#            the first sample of 4096 tokens is the same alone and after 8192: False
#
# Exits with 0 while the behaviour is as above, with 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check \
    lm_eval==0.4.13 transformers==5.23.0 torch==2.13.0 accelerate numpy==2.4.6 wonderwords==3.0.1 nltk scipy
cat > "$folder/ruler.py" <<'PYTHON'
import logging
import random
import sys
from importlib.metadata import version

from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks.ruler import niah_utils
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

logging.disable(logging.WARNING)
words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = sys.argv[1]
PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(tokenizer)


class Silent(LM):
    """A model that answers nothing."""

    def generate_until(self, requests, disable_tqdm=False):
        return ["" for _ in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


lengths = [8192, 4096]
results = simple_evaluate(
    Silent(),
    tasks=["niah_single_1"],
    limit=2,
    bootstrap_iters=0,
    task_manager=TaskManager(metadata={"pretrained": tokenizer, "max_seq_lengths": lengths}),
)["results"]["niah_single_1"]
scores = {length: results[f"{length},none"] for length in lengths}


def first_of_4096(lengths):
    random.seed(0)
    samples = niah_utils.niah_single_1(pretrained=tokenizer, max_seq_lengths=lengths)["test"]
    return next(sample["input"] for sample in samples if sample["max_length"] == 4096)


same = first_of_4096([4096]) == first_of_4096([8192, 4096])
print(f"lm_eval {version('lm_eval')}")
print(f"limit=2, lengths 8192 and 4096: score of 8192 is {scores[8192]}, of 4096 {scores[4096]}")
print(f"the first sample of 4096 tokens is the same alone and after 8192: {same}")
sys.exit(not (scores == {8192: 0.0, 4096: -1} and not same))
PYTHON
TQDM_DISABLE=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HOME="$folder/cache" "$folder/venv/bin/python" "$folder/ruler.py" "$folder/tokenizer"
