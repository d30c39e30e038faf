"""Pages: what is put into them stays text, whatever it holds."""

import sys
import unicodedata

import pytest

from lit_rlvr.commands.report.render import render
from lit_rlvr.common.terminal import printable

GROUP = {
    "prompt": "p",
    "answer": "a",
    "columns": (),
    "observed": False,
    "criteria": [],
    "turn_rewards": [],
    "calls": [],
    "completions": [],
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("\"'><img src=x>", "&#34;&#39;&gt;&lt;img src=x&gt;"),
        ("{{ 7 * 7 }} {% raw %}", "{{ 7 * 7 }} {% raw %}"),
        ("\x1b[31m\x00\x85", "\ufffd[31m\ufffd\ufffd"),
        ("\ud800", "\ufffd"),
        ("π 答え 🙂\n\t", "π 答え 🙂\n\t"),
        ("7 \u202e5.31\u202c \u2066x\u2069", "7 \ufffd5.31\ufffd \ufffdx\ufffd"),
    ],
)
def test_values_are_escaped_and_visible(text: str, shown: str) -> None:
    page = render("explain.html", title="t", group=GROUP | {"prompt": text}, uris=())
    assert f'<div class="text">{shown}</div>' in page
    page.encode()


def test_no_mark_of_direction_is_left_and_the_letters_of_every_script_are() -> None:
    kinds = ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")
    marks = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.bidirectional(chr(code)) in kinds]
    marks += ["\N{LEFT-TO-RIGHT MARK}", "\N{RIGHT-TO-LEFT MARK}", "\N{ARABIC LETTER MARK}"]
    assert len(marks) == 12 and {printable(mark) for mark in marks} == {"\N{REPLACEMENT CHARACTER}"}
    for text in ("שלום", "السلام عليكم", "می\u200cخواهم", "क्\u200dष", "👩\u200d🔬", "e\u0301"):  # noqa: RUF001
        assert printable(text) == text
