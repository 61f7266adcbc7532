"""ROUGE-L as LongBench scores it: the summary level of the package `rouge` 1.0.1 (`Rouge().get_scores(…)["rouge-l"]["f"]`).

Its rules, which differ from other packages': sentences end at full stops; words are what spaces separate, neither lowered
nor stemmed; words count once each (sets); the words of the longest common subsequences of all pairs of sentences are
united. The package finds a subsequence by recursion and dies of long sentences (about a thousand words), where LongBench then
scores 0; here nothing recurses, and such a pair gets its score.
"""

from __future__ import annotations

from collections.abc import Sequence

EPSILON = 1e-8
"""What the package adds to precision + recall."""


def sentences(text: str) -> list[list[str]]:
    """Return the words of each sentence; a sentence of spaces is one empty word, as in the package."""
    return [part.split() or [""] for part in text.split(".") if part]


def common_words(reference: Sequence[str], prediction: Sequence[str]) -> set[str]:
    """Return the words of the longest common subsequence that the package finds: among equals, the one it walks back to."""
    table = [[0] * (len(prediction) + 1)]
    for word in reference:
        above, row = table[-1], [0]
        for j, other in enumerate(prediction):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        table.append(row)
    words: set[str] = set()
    i, j = len(reference), len(prediction)
    while i and j:
        if reference[i - 1] == prediction[j - 1]:
            words.add(reference[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words


def rouge_l(prediction: str, reference: str) -> float:
    """Return the F-measure in [0, 1]; 0 where either text has no sentence."""
    predicted, references = sentences(prediction), sentences(reference)
    if not predicted or not references:
        return 0.0
    predicted_words, reference_words = ({word for sentence in text for word in sentence} for text in (predicted, references))
    common: set[str] = set()
    for reference_sentence in references:
        for predicted_sentence in predicted:
            common |= common_words(reference_sentence, predicted_sentence)
    precision, recall = len(common) / len(predicted_words), len(common) / len(reference_words)
    return 2 * precision * recall / (precision + recall + EPSILON)
