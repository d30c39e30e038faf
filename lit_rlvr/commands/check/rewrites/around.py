"""Rewrites around any answer: prose, thoughts, tags, boxes, several answers, none."""

from __future__ import annotations

from lit_rlvr.commands.check.gold import Gold, may_answer
from lit_rlvr.commands.check.rewrites.registry import (
    ALL_KINDS,
    ANSWER_KINDS,
    NUMBER_KINDS,
    NUMERIC_KINDS,
    breaks,
    keeps,
    other_answer,
    other_answers,
)


@keeps(*ALL_KINDS, whole=True)
def gold_itself(gold: Gold) -> str:
    """Return the gold completion unchanged."""
    return gold.text


@keeps(*ALL_KINDS, whole=True)
def prose_before(gold: Gold) -> str:
    """Put prose before the answer."""
    lead = "So this is the final answer:\n\n" if gold.is_marked else "The answer is "
    return f"First I look at what is given, then I work it out step by step.\n\n{lead}{gold.text}"


@keeps(*ALL_KINDS, whole=True)
def long_prose_before(gold: Gold) -> str:
    """Put 20,000 characters of prose before the answer."""
    return f"{'I go through it once more, slowly and with care. ' * 400}\n\n{prose_before(gold)}"


@keeps(*ALL_KINDS, whole=True)
def prose_after(gold: Gold) -> str | None:
    """Put a sentence after an answer that a mark sets off."""
    return f"{gold.text}\n\nThis is what the question asks for." if gold.is_marked else None


@keeps(*ALL_KINDS, whole=True)
def thought_before(gold: Gold) -> str:
    """Put a closed thought before the answer."""
    return f"<think>\nI try it in another way, too. It agrees.\n</think>\n\n{gold.text}"


@keeps(*ANSWER_KINDS, whole=True)
def wrong_answer_in_the_thought(gold: Gold) -> str | None:
    """Try another answer in a closed thought before the right one."""
    other = other_answer(gold)
    return other and f"<think>\nPerhaps {gold.write(other)}? No, that is wrong.\n</think>\n\n{gold.text}"


@keeps(*ANSWER_KINDS, whole=True)
def answer_tags(gold: Gold) -> str | None:
    """Put the answer into `<answer>` tags."""
    return None if "<answer>" in gold.text else f"<answer>{gold.text}</answer>"


@keeps(*ANSWER_KINDS, whole=True)
def tags_on_lines_of_their_own(gold: Gold) -> str | None:
    """Put the answer into `<answer>` tags, each on its line."""
    return None if "<answer>" in gold.text else f"<answer>\n{gold.text}\n</answer>\n"


@keeps(*ANSWER_KINDS, whole=True)
def bold_label(gold: Gold) -> str:
    """Put the label "Answer" in bold before the answer."""
    return f"**Answer:** {gold.text}"


@keeps(*ANSWER_KINDS, whole=True)
def bold_answer(gold: Gold) -> str | None:
    """Put the answer in bold."""
    return f"**{gold.text}**" if gold.is_boxed else None


@keeps(*ALL_KINDS, whole=True)
def heading(gold: Gold) -> str:
    """Put a Markdown heading before the answer."""
    return f"### Final answer\n\n{gold.text}"


@keeps(*ALL_KINDS, whole=True)
def space_around(gold: Gold) -> str:
    """Put spaces and line breaks around the answer."""
    return f"\n\n  {gold.text}  \n\n"


@keeps(*ANSWER_KINDS, whole=True)
def dollars_around_the_box(gold: Gold) -> str | None:
    """Put the box into `$`."""
    return f"${gold.text}$" if gold.is_boxed else None


@keeps(*ANSWER_KINDS, whole=True)
def display_around_the_box(gold: Gold) -> str | None:
    """Put the box into `\\[ \\]` with a full stop."""
    return f"Therefore\n\\[\n{gold.text}.\n\\]" if gold.is_boxed else None


@keeps(*ANSWER_KINDS, whole=True)
def full_stop_after_the_box(gold: Gold) -> str | None:
    """End the sentence after the box."""
    return f"The final answer is {gold.text}." if gold.is_boxed else None


@keeps(*ANSWER_KINDS, whole=True)
def the_same_box_twice(gold: Gold) -> str | None:
    """Repeat the box at the end."""
    return f"We get {gold.text}.\n\nThe final answer is {gold.text}." if gold.is_boxed else None


@keeps(*ANSWER_KINDS, whole=True)
def another_box_before(gold: Gold) -> str | None:
    """Box a wrong answer, then take it back."""
    other = other_answer(gold) if gold.is_boxed else None
    return other and f"At first {gold.write(other)} seems right, but it is wrong.\n\nThe final answer is {gold.text}"


@keeps(*ANSWER_KINDS)
def space_in_the_box(gold: Gold) -> str | None:
    """Put spaces between the box and the answer."""
    return f" {gold.answer} " if gold.is_boxed else None


@keeps(*NUMERIC_KINDS)
def dollars_in_the_box(gold: Gold) -> str | None:
    """Put the answer in the box into `$`."""
    return f"${gold.answer}$" if gold.is_boxed else None


@breaks(*ALL_KINDS, whole=True)
def empty(gold: Gold) -> str:
    """Write nothing."""
    return ""


@breaks(*ALL_KINDS, whole=True)
def only_space(gold: Gold) -> str:
    """Write spaces and line breaks."""
    return " \n\n\t \n"


@breaks(*ALL_KINDS, whole=True)
def no_answer(gold: Gold) -> str:
    """Write prose without an answer."""
    return "I look at what is given. Then I work it out step by step, but I cannot finish."


@breaks(*ANSWER_KINDS, whole=True)
def empty_box(gold: Gold) -> str | None:
    """Leave the box empty."""
    return "\\boxed{}" if gold.is_boxed else None


@breaks(*ANSWER_KINDS, whole=True)
def answer_taken_back(gold: Gold) -> str | None:
    """Box the right answer, then another one."""
    other = other_answer(gold) if gold.is_boxed else None
    return other and f"At first {gold.text} seems right, but it is wrong.\n\nThe final answer is {gold.write(other)}"


@breaks(*ANSWER_KINDS, whole=True)
def every_box_at_once(gold: Gold) -> str | None:
    """Box several answers, the right one among them."""
    others = other_answers(gold) if gold.is_boxed else ()
    return " or ".join([gold.write(others[0]), gold.text, *map(gold.write, others[1:])]) if len(others) > 1 else None


@breaks(*ANSWER_KINDS, whole=True)
def answer_only_in_the_thought(gold: Gold) -> str | None:
    """Answer in a closed thought only."""
    return f"<think>\n{gold.text}\n</think>\n\nI do not know." if gold.is_marked else None


@breaks(*ANSWER_KINDS)
def all_at_once(gold: Gold) -> str | None:
    """Name several answers with "or" between them, the right one among them."""
    others = other_answers(gold)
    return " or ".join([others[0], gold.answer, *others[1:]]) if len(others) > 1 else None


@breaks(*ANSWER_KINDS)
def all_at_once_in_a_list(gold: Gold) -> str | None:
    """Name several answers with commas between them, the right one among them."""
    others = other_answers(gold)
    return ", ".join([others[0], gold.answer, *others[1:]]) if len(others) > 1 else None


@breaks("text", "number", "choice", "yes_no")
def negated(gold: Gold) -> str:
    """Say that the answer is not the right one."""
    return f"not {gold.answer}"


@breaks("text", "choice", "yes_no", "set", "tuple", "expression")
def answer_of_another_row(gold: Gold) -> str | None:
    """Give the answer of another row, or of a choice the first wrong letter."""
    return other_answer(gold)


@breaks(*NUMBER_KINDS, whole=True)
def very_long(gold: Gold) -> str | None:
    """Write thousands of numbers, the right one perhaps among them."""
    return None if may_answer("2999", gold) else " ".join(map(str, range(-100, 3000)))
