"""The 25 functions of Tulu 3's data for RLVR (Lambert et al. 2024), which name their instruction by `func_name`.

They are IFEval's instructions, counted in another way: "around" is a relation, and a frequency is exact.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lit_rlvr.rewards.instructions.ifeval import Check, is_json, lacks_commas
from lit_rlvr.rewards.instructions.language import detect_language

SENTENCE_END = re.compile(r"(?<!\w\.\w.)(?<![A-Z][a-z]\.)(?<=\.|\?|!)\s")


def _quantify(count: int, quantifier: str, wanted: int, tolerance: int) -> bool:
    """Compare a count as a function says: `at least`, `at most` or, up to a tolerance, `around`.

    Raises:
        ValueError: it says something else.
    """
    if quantifier == "at least":
        return count >= wanted
    if quantifier == "at most":
        return count <= wanted
    if quantifier == "around":
        return abs(count - wanted) <= tolerance
    raise ValueError(f"the quantifier {quantifier!r} is none of 'at least', 'at most' and 'around'")


def _tenth(number: int) -> int:
    return max(round(number * 0.1), 1)


def _has_keywords(text: str, *, keyword_list: Sequence[str]) -> bool:
    for keyword in keyword_list:
        if keyword.lower() not in text.lower():
            return False
    return True


def _has_keyword_frequency(text: str, *, word: str, N: int) -> bool:
    return re.findall(r"\b\w+\b", text.lower()).count(word.lower()) == N


def _lacks_words(text: str, *, forbidden_words: Sequence[str]) -> bool:
    return not any(word.lower() in text.lower() for word in forbidden_words)


def _has_letter_frequency(text: str, *, letter: str, N: int) -> bool:
    return text.count(letter) == N


def _is_in_language(text: str, *, language: str) -> bool:
    return detect_language(text) == language


def _has_divided_paragraphs(text: str, *, N: int) -> bool:
    paragraphs = "\n".join(line.strip() for line in text.splitlines()).split("* * *")
    return all(map(str.strip, paragraphs)) and len(paragraphs) == N


def _has_word_count(text: str, *, N: int, quantifier: str) -> bool:
    return _quantify(len(text.split()), quantifier, N, _tenth(N))


def _has_sentences(text: str, *, N: int, quantifier: str) -> bool:
    return _quantify(len(SENTENCE_END.split(text)), quantifier, N, 1)


def _has_first_word_in_paragraph(text: str, *, N: int, first_word: str, i: int) -> bool:
    paragraphs = text.split("\n\n")
    return len(paragraphs) == N >= i and paragraphs[i - 1].strip().startswith(first_word)


def _has_postscript(text: str, *, postscript_marker: str) -> bool:
    _, marker, after = text.partition(postscript_marker)
    return bool(marker) and len((marker + after).strip()) > len(marker)


def _has_placeholders(text: str, *, N: int) -> bool:
    return len(re.findall(r"\[(.*?)\]", text)) >= N


def _has_bullets(text: str, *, N: int) -> bool:
    return sum(line.strip().startswith(("*", "-")) for line in text.split("\n")) == N


def _has_title(text: str) -> bool:
    return re.search(r"<<(.*?)>>", text) is not None


def _has_choice(text: str, *, options: Sequence[str]) -> bool:
    return any(option in text for option in options)


def _has_highlights(text: str, *, N: int) -> bool:
    return len(re.findall(r"\*(.*?)\*", text)) >= N


def _has_sections(text: str, *, N: int, section_splitter: str) -> bool:
    sections = text.split(section_splitter)
    return len(sections) - (sections[0] == "") == N


def _begins_with_prompt(text: str, *, original_prompt: str) -> bool:
    return text.startswith(original_prompt)


def _has_two_responses(text: str) -> bool:
    responses = []
    for response in text.split("******"):
        responses.append(response.strip())
    return len(responses) == 2 and responses[0] != responses[1]


def _is_uppercase(text: str) -> bool:
    return text == text.upper()


def _is_lowercase(text: str) -> bool:
    return text == text.lower()


def _has_capital_words(text: str, *, N: int, quantifier: str) -> bool:
    return _quantify(len(re.findall(r"\b[A-Z]+\b", text)), quantifier, N, _tenth(N))


def _ends_with(text: str, *, end_phrase: str) -> bool:
    return text.endswith(end_phrase)


def _is_quoted(text: str) -> bool:
    return text.startswith('"') and text.endswith('"')


TULU: dict[str, Check] = {
    "verify_keywords": _has_keywords,
    "verify_keyword_frequency": _has_keyword_frequency,
    "validate_forbidden_words": _lacks_words,
    "verify_letter_frequency": _has_letter_frequency,
    "validate_response_language": _is_in_language,
    "verify_paragraph_count": _has_divided_paragraphs,
    "validate_word_constraint": _has_word_count,
    "verify_sentence_constraint": _has_sentences,
    "validate_paragraphs": _has_first_word_in_paragraph,
    "verify_postscript": _has_postscript,
    "validate_placeholders": _has_placeholders,
    "verify_bullet_points": _has_bullets,
    "validate_title": _has_title,
    "validate_choice": _has_choice,
    "validate_highlighted_sections": _has_highlights,
    "validate_sections": _has_sections,
    "validate_json_format": is_json,
    "validate_repeat_prompt": _begins_with_prompt,
    "validate_two_responses": _has_two_responses,
    "validate_uppercase": _is_uppercase,
    "validate_lowercase": _is_lowercase,
    "validate_frequency_capital_words": _has_capital_words,
    "validate_end": _ends_with,
    "validate_quotation": _is_quoted,
    "validate_no_commas": lacks_commas,
}
"""`func_name` in Tulu 3's data -> its check."""
