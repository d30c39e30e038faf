"""Pages: what is put into them stays text, whatever it holds."""

from __future__ import annotations

import pytest

from lit_rlvr.pages import render
from lit_rlvr.text import printable

GROUP = {"prompt": "p", "answer": "a", "columns": (), "completions": []}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("\"'><img src=x>", "&#34;&#39;&gt;&lt;img src=x&gt;"),
        ("{{ 7 * 7 }} {% raw %}", "{{ 7 * 7 }} {% raw %}"),
        ("\x1b[31m\x00\x85", "\ufffd[31m\ufffd\ufffd"),
        ("\ud800", "\ufffd"),
        ("π \u202e 答え 🙂\n\t", "π \u202e 答え 🙂\n\t"),
    ],
)
def test_values_are_escaped_and_visible(text: str, shown: str) -> None:
    page = render("explain.html", title="t", group=GROUP | {"prompt": text})
    assert f'<div class="text">{shown}</div>' in page
    page.encode()


def test_the_pages_policy_forbids_scripts_and_requests() -> None:
    page = render("explain.html", title="t", group=GROUP)
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page
    assert "http://" not in page and "https://" not in page and "<script" not in page and "<link" not in page


def test_printable_keeps_what_can_be_shown() -> None:
    assert printable("a\n\tb é \U0001f642") == "a\n\tb é \U0001f642"
    assert printable("\x1b[2J\x7f\udfff\r") == "\ufffd[2J\ufffd\ufffd\ufffd"
