"""The printed results of `check` of a reward: its check-up, and the stages of one judgement."""

from __future__ import annotations

from collections.abc import Sequence

from lit_rlvr.commands.check.checkup import Checkup, KindOfText, Rate
from lit_rlvr.common.terminal import Terminal, one_line, table_of

EXAMPLE_CHARACTERS = 160
MOST_SHORT_TEXTS = 5


def print_checkup(name: str, checkup: Checkup) -> None:
    """Print the rates, each kind with errors and an example, and short texts that pay."""
    console = Terminal()
    if checkup.rows == checkup.rows_wanted:
        left = ""
    else:
        left = f" of {checkup.rows_wanted}, then the time was up (--seconds)"
    console.print(
        f"{name}: {checkup.rows} rows{left}, {checkup.seconds:.0f} s; answers as {checkup.form}", soft_wrap=True
    )
    for label, rate in (
        ("gold completions not paid", checkup.gold),
        ("right texts not paid (false negatives)", checkup.right_texts),
        ("wrong texts paid (false positives)", checkup.wrong_texts),
    ):
        console.print(f"{label}: {rate_text(rate)}", soft_wrap=True)
    for detail, count in checkup.failures.items():
        console.print(f"the reward failed on {count} texts: {one_line(detail)}", soft_wrap=True)
    for keeps, title in ((True, "Right texts that are not paid"), (False, "Wrong texts that are paid")):
        print_kinds(console, title, {name: kind for name, kind in checkup.kinds.items() if kind.keeps is keeps})
    for text, rate in checkup.paid_short_texts()[:MOST_SHORT_TEXTS]:
        console.print(
            f"the short text {one_line(text)!r} pays where it is no answer: {rate_text(rate)}", soft_wrap=True
        )


def print_kinds(console: Terminal, title: str, kinds: dict[str, KindOfText]) -> None:
    """Print a table of the kinds with errors, the most frequent first, with an example below each."""
    names = sorted((name for name, kind in kinds.items() if kind.rate.errors), key=lambda name: -kinds[name].rate.value)
    if names:
        rows = []
        for name in names:
            rate = kinds[name].rate
            rows.append((name, str(rate.errors), str(rate.texts), f"{rate.value:.1%}", _errors_interval(rate)))
        console.print()
        console.print_table(table_of(("kind", "errors", "texts", "rate", "95 % interval"), rows, title=title))
        for name in names:
            example = kinds[name].examples[0]
            if example["detail"]:
                detail = f"; the reward says {shortened(example['detail'])}"
            else:
                detail = ""
            console.print(
                f"{name}: reference {shortened(example['reference'])}, text {shortened(example['text'])}{detail}",
                soft_wrap=True,
            )
    else:
        console.print(f"{title}: none, of {len(kinds)} kinds")


def print_stages(stages: Sequence[tuple[str, str]], verdict: str) -> None:
    """Print each stage of a judgement with its result, and the verdict."""
    console = Terminal()
    for stage, result in stages:
        console.print(f"{stage}: {result}", soft_wrap=True)
    console.print(verdict, soft_wrap=True)


def rate_text(rate: Rate) -> str:
    """Return a rate with its interval and counts."""
    if not rate.texts:
        return "none was tried"
    return f"{rate.value:.1%} ({_errors_interval(rate)}; {rate.errors} of {rate.texts})"


def _errors_interval(rate: Rate) -> str:
    low, high = rate.interval
    return f"{low:.1%} to {high:.1%}"


def shortened(text: str) -> str:
    """Return a text in quotes on one line, without its middle if it is long."""
    line = one_line(text)
    half = EXAMPLE_CHARACTERS // 2
    return repr(line if len(line) <= EXAMPLE_CHARACTERS else f"{line[:half]} [...] {line[-half:]}")
