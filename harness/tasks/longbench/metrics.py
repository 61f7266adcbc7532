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
    """jieba's tokenizer with its own dictionary, read once a process: a second, and no cache file in a shared folder."""
    import jieba

    made = jieba.Tokenizer()
    made.FREQ, made.total = made.gen_pfdict(made.get_dict_file())
    made.initialized = True
    return made


def chinese_words(text: str) -> list[str]:
    """`jieba.cut(text, cut_all=False)`: words, and all that stands between them."""
    return list(_segmenter().cut(text))


def overlap_f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    """F1 of two bags of words."""
    same = sum((Counter(prediction) & Counter(answer)).values())
    return 2 * same / (len(prediction) + len(answer)) if same else 0.0


def qa_f1(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """SQuAD's F1: lower case, without punctuation and articles."""
    mine, theirs = (ARTICLES.sub(" ", text.lower().translate(_NO_ASCII)).split() for text in (prediction, answer))
    return overlap_f1(mine, theirs)


def qa_f1_zh(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """F1 of Chinese words, without punctuation."""
    mine, theirs = (
        [word for raw in chinese_words(text) if (word := "".join(raw.lower().translate(_NO_PUNCTUATION).split()))]
        for text in (prediction, answer)
    )
    return overlap_f1(mine, theirs)


def rouge(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """ROUGE-L of the package `rouge`."""
    return rouge_l(prediction, answer)


def rouge_zh(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """ROUGE-L of Chinese words."""
    return rouge_l(" ".join(chinese_words(prediction)), " ".join(chinese_words(answer)))


def classification(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """1 ÷ the number of classes that the prediction names, if the right one is among them. A class whose name is part of
    the right one's doesn't count, but the original removes those from the list it walks through, and so skips the next
    one: kept, since scores depend on it."""
    named = [name for name in classes if name in prediction]
    at = 0
    while at < len(named):
        if named[at] in answer and named[at] != answer:
            named.remove(named[at])
        at += 1
    return 1 / len(named) if answer in named else 0.0


def _numbers(prediction: str, right: str) -> float:
    """Share of the numbers in the prediction that are the right one."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(right) / len(numbers) if numbers else 0.0


def count(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """The answer is a number."""
    return _numbers(prediction, answer)


def _retrieval(prefix: str) -> Metric:
    def score(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
        found = re.search(prefix + r"(\d+)", answer)
        if found is None:
            raise ValueError(f"answer {answer!r} names no paragraph: it must read like '{prefix}7'")
        return _numbers(prediction, found[1])

    return score


retrieval = _retrieval("Paragraph ")
"""The answer is "Paragraph 7"."""
retrieval_zh = _retrieval("段落")
"""The answer is "段落7"."""


def code_similarity(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Edit similarity of the first line that is no comment and no fence (blank ones count), in hundredths."""
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    if line == answer:
        return 1.0
    if not line or not answer:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, line, answer).ratio()) / 100


def best(metric: Metric, prediction: str, answers: Sequence[str], classes: Sequence[str], *, first_line: bool) -> float:
    """The best score over the answers; first_line: of the prediction up to its first line end, after those it begins with."""
    text = prediction.lstrip("\n").split("\n")[0] if first_line else prediction
    return max((metric(text, answer, classes) for answer in answers), default=0.0)
