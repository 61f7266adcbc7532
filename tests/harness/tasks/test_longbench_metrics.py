"""LongBench's metrics: values worked out by hand, and what `rouge` 1.0.1 and `fuzzywuzzy` 0.18.0 (without Levenshtein) gave."""

from __future__ import annotations

import time

import pytest

from harness.tasks.longbench import metrics
from harness.tasks.longbench.rouge import common_words, rouge_l, sentences


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0),
        ("in Paris, the capital of France", "Paris", 2 / 6),  # in paris capital of france against paris
        ("paris paris", "paris", 2 / 3),
        ("a", "the", 0.0),
        ("", "paris", 0.0),
        ("co-operate", "cooperate", 1.0),  # punctuation goes without leaving a space
        ("theatre", "atre", 0.0),  # an article is a whole word
    ],
)
def test_qa_f1(prediction: str, answer: str, expected: float) -> None:
    assert metrics.qa_f1(prediction, answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("会议讨论了明年的预算和人员安排。", "会议的主要内容是讨论明年的预算。", 10 / 18),
        ("我们去北京大学。", "他在北京大学学习。", 2 / 7),  # one word, not four characters
        ("北京大学！", "北京大学", 1.0),
        ("。", "。", 0.0),
    ],
)
def test_qa_f1_of_chinese_words(prediction: str, answer: str, expected: float) -> None:
    assert metrics.qa_f1_zh(prediction, answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answer", "package"),
    [
        ("the cat sat on the mat. it purred", "on the mat the cat sat. then it purred loudly.", 0.6249999950781252),
        ("a b c d. e f g", "b d a. g e f. x y", 0.5333333283555556),
        ("b a", "a b", 0.4999999950000001),
        ("The Cat", "the cat", 0.0),
        ("w . . v", "v w.", 0.7999999952000001),
        ("same words same words", "same words", 0.999999995),
        ("", "a", 0.0),
        ("...", "a", 0.0),
    ],
)
def test_rouge_is_the_packages(prediction: str, answer: str, package: float) -> None:
    assert metrics.rouge(prediction, answer) == pytest.approx(package, abs=1e-12)


def test_rouge_of_chinese_is_the_packages_on_jiebas_words() -> None:
    score = metrics.rouge_zh("会议讨论了明年的预算和人员安排。", "会议的主要内容是讨论明年的预算。")
    assert score == pytest.approx(0.6315789423822715, abs=1e-12)


def test_rouge_by_hand() -> None:
    assert sentences("a  b. .c") == [["a", "b"], [""], ["c"]]
    assert common_words(["a", "b", "c", "d"], ["b", "x", "d", "a"]) == {"b", "d"}
    assert common_words(["a", "b"], ["b", "a"]) == {"b"}, "of equals, the one the package walks back to"
    # words of common subsequences: b d from the first pair of sentences; 2 of 3 and 2 of 4 words
    assert rouge_l("b d z", "a b c d") == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4 + 1e-8))


def test_rouge_takes_sentences_that_kill_the_package() -> None:
    words = [f"w{i}" for i in range(1500)]
    began = time.monotonic()
    assert rouge_l(" ".join(words), " ".join(words)) == pytest.approx(1, abs=1e-6)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("    return self.name", "        return self._name", 0.89),
        ("x = 1", "y = 2", 0.60),
        ("for i in range(10):", "for j in range(n):", 0.86),
        ("ab" * 150 + "c", "ab" * 120 + "dc", 0.89),
        ("\n\nx = 1\ny = 2", "x = 1", 1.0),  # the first line
        ("```python\n# as asked\n// too\nx = 1", "x = 1", 1.0),  # that is no fence and no comment
        ("x = 1\n\ny", "", 0.0),
        ("# only a comment", "x", 0.0),
        ("  \nx = 1", "x = 1", 0.57),  # a blank line counts: two spaces of either, four of seven characters
    ],
)
def test_code_similarity_is_fuzzywuzzys(prediction: str, answer: str, expected: float) -> None:
    assert metrics.code_similarity(prediction, answer) == expected


def test_classification() -> None:
    classes = ["Number of something", "Date", "Individual", "Group or organization of person", "person"]
    score = metrics.classification
    assert score("Date", "Date", classes) == 1
    assert score("Date or Individual", "Date", classes) == 1 / 2
    assert score("Date", "Individual", classes) == 0
    assert score("nothing", "Date", classes) == 0
    assert score("Group or organization of person", "Group or organization of person", classes) == 1, "person is part of it"


def test_classification_skips_after_a_removal_as_the_original_does() -> None:
    # of the named "A", "AB", "ABC" for the answer "ABC", walking and removing takes "A" away and skips "AB"
    assert metrics.classification("ABC", "ABC", ["A", "AB", "ABC"]) == 1 / 2


def test_retrieval_and_count() -> None:
    assert metrics.retrieval("Paragraph 7", "Paragraph 7") == 1
    assert metrics.retrieval("Paragraph 7 or 12, or 7", "Paragraph 7") == 2 / 3
    assert metrics.retrieval("Paragraph 17", "Paragraph 7") == metrics.retrieval("none", "Paragraph 7") == 0
    assert metrics.retrieval_zh("段落3，段落4", "段落3") == 1 / 2
    assert metrics.count("There are 12 of 30.", "12") == 1 / 2
    assert metrics.count("12.5", "12") == 1 / 2
    with pytest.raises(ValueError, match="must read like 'Paragraph 7'"):
        metrics.retrieval("7", "seven")


def test_the_best_answer_counts_and_few_shot_tasks_answer_in_one_line() -> None:
    def best(prediction: str, *answers: str, first_line: bool = False) -> float:
        return metrics.best(metrics.qa_f1, prediction, answers, (), first_line=first_line)

    assert best("London", "Paris", "London") == 1
    assert best("\n\nLondon\nParagraph: another", "London", first_line=True) == 1
    assert best("London\nParagraph: another", "London") == pytest.approx(2 / 4)
    assert best("London") == 0
