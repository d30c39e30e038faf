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


add_forms(
    keeps("choice"),
    {"small letter": str.lower, "full width letter": lambda letter: chr(ord(letter) + 0xFEE0)},
    lambda gold, change: change(gold.answer),
)


add_forms(
    keeps("choice"),
    {"letter and text": "{}) {}", "letter colon text": "{}: {}"},
    lambda gold, form: form.format(gold.answer, chosen_option(gold)) if gold.sample.options else None,
)


@keeps("choice")
def text_of_the_option(gold: Gold) -> str | None:
    """Write B as the text of its option, where no other option has that text."""
    options = gold.sample.options
    if options and options.count(chosen_option(gold)) == 1:
        return chosen_option(gold)
    return None


def _with_wrong_option(gold: Gold, form: str) -> str | None:
    """Put the letter and the text of a wrong option, which shares no word with the right one, into a form."""
    known = {*words_of(chosen_option(gold))}
    options = gold.sample.options
    option = next((option for option in options if words_of(option) and not known & {*words_of(option)}), None)
    return option and form.format(gold.answer, option)


add_forms(
    breaks("choice"),
    {"text of another option": "{1}", "letter with the text of another": "{0}) {1}"},
    _with_wrong_option,
)

add_forms(breaks("choice"), {"letter that no option has": "Z"})


@breaks("choice")
def two_letters(gold: Gold) -> str | None:
    """Write B as B and A."""
    others = other_letters(gold)
    if others:
        return f"{gold.answer} and {others[0]}"
    return None


add_forms(
    breaks("text"),
    {
        "letters in another order": (r"^.+$", lambda found: found[0][::-1]),
        "beginning of the word": ("^(..).*", r"\1"),
    },
    substitute,
)

add_forms(
    breaks("yes_no"),
    {
        "yes and no": "yes and no",
        "neither yes nor no": "It cannot be said",
    },
)
