"""Rewrites of words, choices, yes and no."""

from __future__ import annotations

from lit_rlvr.commands.check.gold import Gold, chosen_option, words_of
from lit_rlvr.commands.check.rewrites.registry import add_forms, breaks, keeps, other_letters, substitute

add_forms(
    keeps("text", "yes_no"),
    {"capital letters": str.upper, "first letter as a capital": str.capitalize},
    lambda gold, change: change(gold.answer) if gold.answer.islower() else None,
)

add_forms(
    keeps("text", "yes_no", "choice"),
    {
        "text in latex": "\\text{{{answer}}}",
        "full stop": "{answer}.",
    },
)

add_forms(keeps("text", "yes_no"), {"quotation marks": '"{answer}"'})


add_forms(keeps("text"), {"no break space": (" ", "\N{NO-BREAK SPACE}")}, substitute)

add_forms(
    keeps("choice"),
    {
        "letter in parentheses": "({answer})",
        "letter with a parenthesis": "{answer})",
        "bold letter": "**{answer}**",
        "option and letter": "Option {answer}",
    },
)


@keeps("choice")
def small_letter(gold: Gold) -> str:
    """Write B as b."""
    return gold.answer.lower()


@keeps("choice")
def full_width_letter(gold: Gold) -> str:
    """Write B as a full-width letter."""
    return chr(ord(gold.answer) + 0xFEE0)


def _with_option(gold: Gold, form: str) -> str | None:
    return form.format(gold.answer, chosen_option(gold)) if gold.sample.options else None


add_forms(keeps("choice"), {"letter and text": "{}) {}", "letter colon text": "{}: {}"}, _with_option)


@keeps("choice")
def text_of_the_option(gold: Gold) -> str | None:
    """Write B as the text of its option, where no other option has that text."""
    options = gold.sample.options
    return chosen_option(gold) if options and options.count(chosen_option(gold)) == 1 else None


@keeps("choice", whole=True)
def sentence_about_the_option(gold: Gold) -> str:
    """Name the letter in a sentence."""
    return f"The correct option is {gold.text}." if gold.is_marked else f"The answer is option {gold.answer}"


@breaks("choice")
def text_of_another_option(gold: Gold) -> str | None:
    """Write B as the text of a wrong option."""
    return _wrong_option(gold)


@breaks("choice")
def letter_with_the_text_of_another(gold: Gold) -> str | None:
    """Write B as B) with the text of a wrong option."""
    option = _wrong_option(gold)
    return option and f"{gold.answer}) {option}"


add_forms(breaks("choice"), {"letter that no option has": "Z"})


@breaks("choice")
def word_that_begins_with_the_letter(gold: Gold) -> str | None:
    """Write B as a word that begins with B, which no option contains."""
    word = {"A": "Although", "B": "Because", "C": "Certainly", "D": "Definitely", "E": "Either"}.get(gold.answer)
    return None if word is None or word.lower() in " ".join(gold.sample.options).lower() else word


@breaks("choice")
def two_letters(gold: Gold) -> str | None:
    """Write B as B and A."""
    others = other_letters(gold)
    return f"{gold.answer} and {others[0]}" if others else None


def _wrong_option(gold: Gold) -> str | None:
    """Return the text of a wrong option that shares no word with the right one."""
    known = set(words_of(chosen_option(gold)))
    options = gold.sample.options
    return next((option for option in options if words_of(option) and not known & {*words_of(option)}), None)


@breaks("text")
def letters_in_another_order(gold: Gold) -> str | None:
    """Write CBA as ABC, and lung as gnul."""
    return None if gold.answer == gold.answer[::-1] else gold.answer[::-1]


add_forms(breaks("text"), {"beginning of the word": ("^(..).*", r"\1")}, substitute)

add_forms(
    breaks("yes_no"),
    {
        "yes and no": "yes and no",
        "neither yes nor no": "It cannot be said",
    },
)
