"""Answers that mean no good: code, bombs, brackets without end, letters of all kinds."""

import time
from collections.abc import Callable


def assert_linear(call: Callable[[int], object], size: int) -> None:
    """Assert that four times as much takes less than ten times as long: squares of the length would take sixteen."""

    def seconds(size: int) -> float:
        began = time.process_time()
        call(size)
        return time.process_time() - began

    call(1)  # fills caches
    assert seconds(size) < 10 * max(min(seconds(size // 4) for _ in range(2)), 0.01)


CODE = (
    "__import__('os').system('touch PWNED')",
    "(lambda: open('PWNED', 'w'))()",
    "exec(\"open('PWNED','w')\")",
    "().__class__.__base__.__subclasses__()",
    "$(touch PWNED)",
    "`touch PWNED`",
    "1; touch PWNED",
    "{{ cycler.__init__.__globals__.os.popen('touch PWNED') }}",
    "SELECT writefile('PWNED', 'x')",
    "ATTACH DATABASE 'PWNED' AS p; CREATE TABLE p.t (a)",
    "%PWNED% ${PWNED} $PWNED",
    "!!python/object/apply:os.system ['touch PWNED']",
)

BOMBS = (
    "10^{10^{10}}",
    "10**10**10",
    "9" * 5000,
    "9^{9^{9^{9}}}",
    "10^10^10^10",
    "1000000!",
    "((((10!)!)!)!)",
    "\\binom{10^9}{5\\cdot 10^8}",
    "\\sum_{n=1}^{10^{12}} \\frac{1}{n^2}",
    "\\int_0^1 \\sin(x^{x^{x^x}}) dx",
    "\\prod_{k=1}^{10^7} k",
    "\\frac{1}{" * 200 + "1" + "}" * 200,
    "\\sqrt{" * 300 + "2" + "}" * 300,
    "(" * 1000 + "1" + ")" * 1000,
    "{" * 50_000,
    "\\boxed{" * 20_000,
    "\\left(" * 5000,
    "x^" * 3000 + "2",
    "\\begin{pmatrix}" + "1 & " * 3000 + "1\\end{pmatrix}",
    "\\{" + ", ".join(map(str, range(5000))) + "\\}",
    "1," * 50_000,
    "1+" * 20_000 + "1",
    "a" * 100_000,
    " " * 100_000 + "7",
    "7" + "\n" * 100_000 + "7",
    "\\frac" * 20_000,
    "1/" * 30_000 + "1",
    "(1+x)^{100000}",
    "x_{" * 500 + "1" + "}" * 500,
    "$" * 99_999,
    "```" * 30_000,
    "\\text{" * 10_000 + "}" * 10_000,
    "answer is " * 10_000,
    "</think>" * 12_000,
    "0." + "1" * 90_000,
    "1e999999999",
    "e^{10^{20}}",
    "\\log_{1}{1}",
    "0^{-1}",
    "\\frac{0}{0}",
    "\\lim_{x\\to\\infty} \\frac{x^{x}}{x!}",
    "\\zeta(1)",
    "\\Gamma(10^6)",
)

LETTERS = (
    "",
    "\x00",
    "\x00\x1b[2J\x07",
    "\u2028\u2029\x85",
    "\ufeff7",
    "\u202e7\u202c",
    "７",  # noqa: RUF001 (a wide digit)
    "٣",
    "Ⅶ",
    "½",
    "−7",  # noqa: RUF001 (a minus sign)
    "é" * 1000,
    "\U0001f600" * 5000,
    "e\u0301" * 10_000,
    "a" + "\u0300" * 50_000,
    "\ud800",
    "\udfff\\boxed{7}",
    "ﷺ" * 10_000,
)

ANSWERS = (*CODE, *BOMBS, *LETTERS)
