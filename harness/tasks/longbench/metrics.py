"""LongBench's metrics (THUDM/LongBench, LongBench/metrics.py): each takes a prediction, one answer and the task's classes, and
gives a score in [0, 1]; LongBench prints a hundred times the mean.

What it gets from other packages is here without them, equal in result: `fuzzywuzzy.fuzz.ratio` is the rounded ratio of
`difflib` (LongBench doesn't require python-Levenshtein, whose ratio is another), `rouge` is in `rouge.py`. Chinese words
are jieba's, as in the original.
"""

from __future__ import annotations

import difflib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from harness.tasks.longbench.rouge import rouge_l

Metric = Callable[[str, str, Sequence[str]], float]

ARTICLES = re.compile(r"\b(a|an|the)\b")
CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃"
    "》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_NO_ASCII = str.maketrans("", "", string.punctuation)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation + CHINESE_PUNCTUATION)


@cache
def _segmenter() -> Any:
    """Return jieba's tokenizer with its own dictionary, read once a process: a second, and no cache file in a shared folder."""
    import jieba

    segmenter = jieba.Tokenizer()
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    segmenter.initialized = True
    return segmenter


def chinese_words(text: str) -> list[str]:
    """Return `jieba.cut(text, cut_all=False)`: words, and all that stands between them."""
    return list(_segmenter().cut(text))


def overlap_f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    """Return the F1 of two bags of words."""
    same = sum((Counter(prediction) & Counter(answer)).values())
    return 2 * same / (len(prediction) + len(answer)) if same else 0.0


def qa_f1(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Return SQuAD's F1: of words in lower case, without punctuation and articles."""
    predicted, right = (ARTICLES.sub(" ", text.lower().translate(_NO_ASCII)).split() for text in (prediction, answer))
    return overlap_f1(predicted, right)


def qa_f1_zh(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Return the F1 of Chinese words, without punctuation."""
    predicted, right = (
        [word for raw in chinese_words(text) if (word := "".join(raw.lower().translate(_NO_PUNCTUATION).split()))]
        for text in (prediction, answer)
    )
    return overlap_f1(predicted, right)


def rouge(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Return the ROUGE-L of the package `rouge`."""
    return rouge_l(prediction, answer)


def rouge_zh(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Return the ROUGE-L of Chinese words."""
    return rouge_l(" ".join(chinese_words(prediction)), " ".join(chinese_words(answer)))


def classification(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """Return 1 ÷ the number of classes that the prediction names if the right one is among them, else 0.

    A class whose name is part of the right one's doesn't count, but the original removes those from the list it walks through,
    and so skips the next one: repeated here, since scores depend on it.
    """
    named = [name for name in classes if name in prediction]
    place = 0
    while place < len(named):
        if named[place] in answer and named[place] != answer:
            named.remove(named[place])
        place += 1
    return 1 / len(named) if answer in named else 0.0


def _numbers(prediction: str, right: str) -> float:
    """Return the share of the numbers in the prediction that are the right one."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(right) / len(numbers) if numbers else 0.0


def count(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Return the share of the numbers in the prediction that are the answer, a number."""
    return _numbers(prediction, answer)


def _retrieval(prefix: str) -> Metric:
    """Return the metric for answers that name a paragraph: `prefix` and its number."""

    def score(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
        paragraph = re.search(prefix + r"(\d+)", answer)
        if paragraph is None:
            raise ValueError(f"answer {answer!r} names no paragraph: it must read like '{prefix}7'")
        return _numbers(prediction, paragraph[1])

    return score


retrieval = _retrieval("Paragraph ")
"""The answer is "Paragraph 7"."""
retrieval_zh = _retrieval("段落")
"""The answer is "段落7"."""


def code_similarity(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Return the edit similarity of the first line that is no comment and no fence (blank ones count), in hundredths."""
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    if line == answer:
        return 1.0
    if not line or not answer:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, line, answer).ratio()) / 100


def best(metric: Metric, prediction: str, answers: Sequence[str], classes: Sequence[str], *, first_line: bool) -> float:
    """Return the best score over the answers.

    first_line: of the prediction up to its first line end, after those it begins with.
    """
    text = prediction.lstrip("\n").split("\n")[0] if first_line else prediction
    return max((metric(text, answer, classes) for answer in answers), default=0.0)
