"""The 29 instructions of IFTrain (Pyatkin et al. 2025), which open-instruct adds to IFEval's for training.

They are checked as open-instruct checks them. The parameters are the keys of the data's `kwargs`.
"""

from __future__ import annotations

import re
from itertools import pairwise

from lit_rlvr.rewards.instructions.ifeval import (
    Check,
    compare_count,
    count_matches,
    count_parts,
    has_divided_paragraphs,
    has_keyword_frequency,
    has_letter_frequency,
)
from lit_rlvr.rewards.instructions.language import split_words

DOT, STOP = "\ue000", "\ue001"
"""Stand for a dot that ends no sentence, and for the end of a sentence."""
STARTERS = (
    r"(Mr|Mrs|Ms|Dr|Prof|Capt|Cpt|Lt|He\s|She\s|It\s|They\s|Their\s|Our\s|We\s|But\s|However\s|That\s|This\s|Wherever)"
)
INNER_DOTS = (
    (r"(Mr|St|Mrs|Ms|Dr)[.]", rf"\1{DOT}"),
    (r"[.](com|net|org|io|gov|edu|me)", rf"{DOT}\1"),
    (r"([0-9])[.]([0-9])", rf"\1{DOT}\2"),
)
ABBREVIATIONS = (
    (r"\s([A-Za-z])[.] ", rf" \1{DOT} "),
    (rf"([A-Z][.][A-Z][.](?:[A-Z][.])?) {STARTERS}", rf"\1{STOP} \2"),
    (r"([A-Za-z])[.]([A-Za-z])[.]([A-Za-z])[.]", rf"\1{DOT}\2{DOT}\3{DOT}"),
    (r"([A-Za-z])[.]([A-Za-z])[.]", rf"\1{DOT}\2{DOT}"),
    (rf" (Inc|Ltd|Jr|Sr|Co)[.] {STARTERS}", rf" \1{STOP} \2"),
    (r" (Inc|Ltd|Jr|Sr|Co)[.]", rf" \1{DOT}"),
    (r" ([A-Za-z])[.]", rf" \1{DOT}"),
)
"""Patterns and their replacements, in this order."""


def _simple_sentences(text: str) -> list[str]:
    """Return the sentences of a text by open-instruct's rules on dots, which know a few abbreviations."""
    text = f" {text}  ".replace("\n", " ")
    for pattern, replacement in INNER_DOTS:
        text = re.sub(pattern, replacement, text)
    text = re.sub(r"\.{2,}", lambda dots: DOT * len(dots[0]) + STOP, text)
    text = text.replace("Ph.D.", f"Ph{DOT}D{DOT}")
    for pattern, replacement in ABBREVIATIONS:
        text = re.sub(pattern, replacement, text)
    for before, after in ((".”", "”."), ('."', '".'), ('!"', '"!'), ('?"', '"?')):
        text = text.replace(before, after)
    sentences = []
    for sentence in re.sub(r"([.?!])", rf"\1{STOP}", text).replace(DOT, ".").split(STOP):
        sentences.append(sentence.strip())
    if not sentences[-1]:
        sentences.pop()
    return sentences


def _same_text(text: str, other: str) -> bool:
    return text.strip().lower() == other.strip().lower()


def _last_word_of(text: str) -> str:
    """Return the last word of a text, without punctuation and in lower case; "" if there is none."""
    return re.sub(r"[^\w\s]", "", next(reversed(text.split()), "")).lower()


def _first_word_of(text: str) -> str:
    return next(iter(text.split()), "").lower()


def _as_word(word: str | list[str]) -> str:
    """Return the word of an argument that may be a list of one."""
    if isinstance(word, list):
        word = word[0]
    return word.strip()


def _has_phrases(text: str, *, phrase: str, small_n: int) -> bool:
    words = phrase.split()
    found = []
    for part in re.findall(rf"{words[0]} .*? {words[-1]}", text):
        found.append(part.split())
    if len(found) != small_n or any(len(part) != len(words) for part in found):
        return False
    return all(sum(a != b for a, b in zip(part, words, strict=True)) == 1 for part in found)


def _is_copy(text: str, *, prompt_to_repeat: str) -> bool:
    return _same_text(text, prompt_to_repeat)


def _is_copied_span(text: str, *, prompt_to_repeat: str, n_end: int, n_start: int = 0) -> bool:
    return _same_text(text, prompt_to_repeat[n_start:n_end])


def _has_hyphens_between_sentences(text: str) -> bool:
    sentences = _simple_sentences(text.replace("-", " "))
    for part, sentence in zip(text.split("-"), sentences, strict=False):
        if not (part == part.strip() == sentence):
            return False
    return True


def _has_no_adjacent_letters(text: str) -> bool:
    letters = []
    for word in text.split():
        letters.append(word[0].lower())
    for a, b in pairwise(letters):
        if not (len(a) == len(b) == 1 and ord(b) - ord(a) != 1):
            return False
    return True


def _is_in_square_brackets(text: str) -> bool:
    for word in text.split():
        if not (word.startswith("[") and word.endswith("]")):
            return False
    return True


def _has_word_once(text: str, *, keyword: str) -> bool:
    return count_matches(keyword.strip(), text) == 1


def _lacks_word(text: str, *, keyword: str) -> bool:
    return f" {keyword.strip()} " not in text


def _has_two_divided_paragraphs(text: str) -> bool:
    return has_divided_paragraphs(text, num_paragraphs=2)


def _has_two_paragraphs(text: str) -> bool:
    return count_parts("\n\n", text) == 2


def _has_first_word_in_sentences(text: str, *, first_word: str | list[str]) -> bool:
    for sentence in _simple_sentences(text):
        if _first_word_of(sentence) != _as_word(first_word).lower():
            return False
    return True


def _begins_with_word(text: str, *, first_word: str) -> bool:
    return _first_word_of(text) == first_word.strip().lower()


def _has_last_word_in_sentences(text: str, *, last_word: str | list[str]) -> bool:
    for sentence in _simple_sentences(text):
        if _last_word_of(sentence) != _as_word(last_word).lower():
            return False
    return True


def _ends_with_word(text: str, *, last_word: str) -> bool:
    return _last_word_of(text) == last_word.strip().lower()


def _is_wrapped_in_bigrams(text: str) -> bool:
    words = text.split()
    for first, second in zip(words[::2], words[1::2], strict=False):
        if not (first.startswith("<<") and second.endswith(">>")):
            return False
    return True


def _is_copied_n_times(text: str, *, prompt_to_repeat: str, N: int) -> bool:
    copies = text.split("******")
    return len(copies) == N and all(_same_text(copy, prompt_to_repeat) for copy in copies)


def _lacks_dots(text: str) -> bool:
    return "." not in text


def _lacks_exclamation_marks(text: str) -> bool:
    return "!" not in text


def _has_few_lowercase_words(text: str, *, N: int) -> bool:
    return len(re.findall(r"\b[a-z]+\b", text)) <= N


def _has_letters(text: str, *, N: int, relation: str) -> bool:
    return compare_count(len(re.findall(r"[a-zA-Z]", text)), relation, N)


def _is_composed(text: str, *, n_sent: int, n_words: int) -> bool:
    paragraphs = re.split(r"\s?\*\*\*\s?", text)
    sentences = [_simple_sentences(paragraph) for paragraph in paragraphs]
    if any(len(part) != n_sent for part in sentences) or count_parts(r"\s?\*\*\*\s?", text) != 3:
        return False
    for part in sentences:
        for sentence in part:
            if len(split_words(sentence)) != n_words:
                return False
    return True


def _has_unique_words(text: str) -> bool:
    words = split_words(text)
    return len(words) == len({*words})


def _has_words_once_and_twice(text: str, *, keyword1: str, keyword2: str) -> bool:
    return count_matches(keyword1.strip(), text) == 1 and count_matches(keyword2.strip(), text) == 2


def _has_palindrome(text: str) -> bool:
    for word in text.split():
        if word == word[::-1]:
            return True
    return False


def _has_keyword_in_place(text: str, *, keyword: str | list[str], n: int, m: int) -> bool:
    sentences = _simple_sentences(text)
    if len(sentences) < n:
        return False
    return split_words(sentences[n - 1])[m - 1 : m] == [_as_word(keyword)]


def _begins_as_it_ends(text: str) -> bool:
    words = split_words(text)
    return len(words) > 1 and words[0].lower() == words[-1].lower()


IFTRAIN: dict[str, Check] = {
    "copy:repeat_phrase": _has_phrases,
    "copy:copy": _is_copy,
    "new:copy_span_idx": _is_copied_span,
    "detectable_format:sentence_hyphens": _has_hyphens_between_sentences,
    "keywords:no_adjacent_consecutive": _has_no_adjacent_letters,
    "detectable_format:square_brackets": _is_in_square_brackets,
    "keywords:word_once": _has_word_once,
    "keywords:word_count_different_numbers": has_keyword_frequency,
    "keywords:exclude_word_harder": _lacks_word,
    "paragraphs:paragraphs": _has_two_divided_paragraphs,
    "paragraphs:paragraphs2": _has_two_paragraphs,
    "first_word:first_word_sent": _has_first_word_in_sentences,
    "first_word:first_word_answer": _begins_with_word,
    "last_word:last_word_sent": _has_last_word_in_sentences,
    "last_word:last_word_answer": _ends_with_word,
    "detectable_format:bigram_wrapping": _is_wrapped_in_bigrams,
    "copy:copying_simple": _is_copy,
    "copy:copying_multiple": _is_copied_n_times,
    "punctuation:punctuation_dot": _lacks_dots,
    "punctuation:punctuation_exclamation": _lacks_exclamation_marks,
    "count:lowercase_counting": _has_few_lowercase_words,
    "letters:letter_counting": _has_letters,
    "letters:letter_counting2": has_letter_frequency,
    "count:counting_composition": _is_composed,
    "count:count_unique": _has_unique_words,
    "count:count_increment_word": _has_words_once_and_twice,
    "keywords:palindrome": _has_palindrome,
    "keywords:keyword_specific_position": _has_keyword_in_place,
    "keywords:start_end": _begins_as_it_ends,
}
"""Name of an instruction in open-instruct's data -> its check."""
