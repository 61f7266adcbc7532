"""The bundled model's tokenizer: a byte-level BPE whose pieces never cross a word, digit or punctuation mark.

Each digit and each capital letter outside a capitalised word is a token of its own, so a seven-digit value or a
five-letter variable is spelled the same wherever it stands, and text can be assembled from pieces that were tokenised
one by one: the tokens of ``a + b`` are the tokens of ``a`` followed by those of ``b`` whenever ``b`` starts with a
space, a newline, or a character of another class.
"""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
PIECES = r"\n| ?[A-Z]?[a-z]+| ?[A-Z]| ?[0-9]| ?[^\sA-Za-z0-9]+|\s"


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train the BPE on `texts`; return it as transformers has it. `<bos>` is put in front of every encoded text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=131072,
    )
