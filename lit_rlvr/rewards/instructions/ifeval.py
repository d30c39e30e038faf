"""The 25 instructions of IFEval (Zhou et al. 2023), checked as its published code checks them.

The parameters are the keys of the data's `kwargs`. Without one of them the published code draws a value at random, and
so it does for a letter outside of the alphabet; here the first is refused, and the second is that letter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from lit_rlvr.rewards.instructions.language import detect_language, split_sentences, split_words

Check = Callable[..., bool]
"""A function of a text and the arguments of its instruction, which are keywords; it returns whether the text holds."""
CONSTRAINED_RESPONSES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def compare_count(count: int, relation: str, threshold: int) -> bool:
    """Compare a count as an instruction says: `less than`, or `at least`.

    Raises:
        ValueError: it says something else.
    """
    if relation == "at least":
        return count >= threshold
    if relation == "less than":
        return count < threshold
    raise ValueError(f"the relation {relation!r} is neither 'less than' nor 'at least'")


def count_matches(pattern: str, text: str) -> int:
    """Return how often a pattern occurs in a text, whatever its case."""
    return len(re.findall(pattern, text, re.IGNORECASE))


def count_parts(pattern: str, text: str) -> int:
    """Return the number of parts between separators; 0 if one of them, but the first and the last, is empty."""
    parts = []
    for part in re.split(pattern, text):
        parts.append(part.strip())
    if not all(parts[1:-1]):
        return 0
    return sum(map(bool, parts))


def _has_keywords(text: str, *, keywords: Sequence[str]) -> bool:
    for keyword in keywords:
        if not count_matches(keyword, text):
            return False
    return True


def has_keyword_frequency(text: str, *, keyword: str, frequency: int, relation: str) -> bool:
    return compare_count(count_matches(keyword.strip(), text), relation, frequency)


def _lacks_words(text: str, *, forbidden_words: Sequence[str]) -> bool:
    return not any(count_matches(rf"\b{word}\b", text) for word in forbidden_words)


def has_letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    return compare_count(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def _is_in_language(text: str, *, language: str) -> bool:
    return detect_language(text) in (language, None)


def _has_sentences(text: str, *, num_sentences: int, relation: str) -> bool:
    return compare_count(len(split_sentences(text)), relation, num_sentences)


def has_divided_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    return count_parts(r"\s?\*\*\*\s?", text) == num_paragraphs


def _has_word_count(text: str, *, num_words: int, relation: str) -> bool:
    return compare_count(len(re.findall(r"\w+", text)), relation, num_words)


def _has_first_word_in_paragraph(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    paragraphs = text.split("\n\n")
    count = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    if not 0 < nth_paragraph <= count or not paragraphs[nth_paragraph - 1].strip():
        return False
    word = paragraphs[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return count == num_paragraphs and re.split("[.,?!'\"]", word)[0].lower() == first_word.lower()


def _has_placeholders(text: str, *, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def _has_postscript(text: str, *, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(patterns.get(marker, marker.lower()), text.lower()) is not None


def _has_bullets(text: str, *, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def _is_constrained_response(text: str) -> bool:
    return any(response in text for response in CONSTRAINED_RESPONSES)


def _has_highlights(text: str, *, num_highlights: int) -> bool:
    single = []
    for found in re.findall(r"\*([^\n\*]*)\*", text):
        if found.strip():
            single.append(found)
    double = []
    for found in re.findall(r"\*\*([^\n\*]*)\*\*", text):
        if found.strip():
            double.append(found)
    return len(single) + len(double) >= num_highlights


def _has_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"\s?{section_spliter.strip()}\s?\d+\s?", text)) >= num_sections


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_fenced_json(text: str) -> bool:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    return is_json(text.removesuffix("```").strip())


def _has_title(text: str) -> bool:
    for title in re.findall(r"<<[^\n]+>>", text):
        if title.lstrip("<").rstrip(">").strip():
            return True
    return False


def _has_two_responses(text: str) -> bool:
    responses = []
    for part in text.split("******"):
        responses.append(part.strip())
    given = [response for response in responses if response]
    return all(responses[1:-1]) and len(given) == 2 and given[0] != given[1]


def _begins_with_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends_with(text: str, *, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _has_capital_words(text: str, *, capital_frequency: int, capital_relation: str) -> bool:
    return compare_count(sum(word.isupper() for word in split_words(text)), capital_relation, capital_frequency)


def _is_english_capital(text: str) -> bool:
    return text.isupper() and _is_in_language(text, language="en")


def _is_english_lowercase(text: str) -> bool:
    return text.islower() and _is_in_language(text, language="en")


def lacks_commas(text: str) -> bool:
    return "," not in text


def _is_quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


IFEVAL: dict[str, Check] = {
    "keywords:existence": _has_keywords,
    "keywords:frequency": has_keyword_frequency,
    "keywords:forbidden_words": _lacks_words,
    "keywords:letter_frequency": has_letter_frequency,
    "language:response_language": _is_in_language,
    "length_constraints:number_sentences": _has_sentences,
    "length_constraints:number_paragraphs": has_divided_paragraphs,
    "length_constraints:number_words": _has_word_count,
    "length_constraints:nth_paragraph_first_word": _has_first_word_in_paragraph,
    "detectable_content:number_placeholders": _has_placeholders,
    "detectable_content:postscript": _has_postscript,
    "detectable_format:number_bullet_lists": _has_bullets,
    "detectable_format:constrained_response": _is_constrained_response,
    "detectable_format:number_highlighted_sections": _has_highlights,
    "detectable_format:multiple_sections": _has_sections,
    "detectable_format:json_format": _is_fenced_json,
    "detectable_format:title": _has_title,
    "combination:two_responses": _has_two_responses,
    "combination:repeat_prompt": _begins_with_prompt,
    "startend:end_checker": _ends_with,
    "startend:quotation": _is_quoted,
    "change_case:capital_word_frequency": _has_capital_words,
    "change_case:english_capital": _is_english_capital,
    "change_case:english_lowercase": _is_english_lowercase,
    "punctuation:no_comma": lacks_commas,
}
"""Name of an instruction in IFEval's data -> its check."""
