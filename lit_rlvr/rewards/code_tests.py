"""Reads the tests of a programming problem: plain, or packed the way LiveCodeBench packs its private tests.

Loading a pickle can run code, so none is loaded: LiveCodeBench's pickles hold one text, which is extracted.
"""

from __future__ import annotations

import base64
import json
import pickletools
import zlib
from collections.abc import Sequence
from typing import NamedTuple

MAX_BYTES = 512 << 20
"""Size limit of one problem's unpacked tests."""

TEXT = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
AROUND_TEXT = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}
"""Operations of a pickle that holds only a text."""


class Case(NamedTuple):
    """One test: a program's standard input and output, or a call's arguments (one line of JSON each) and its value."""

    input: str
    output: str


def read_tests(cell: str) -> list[Case]:
    """The tests in a cell: JSON `[{"input": ..., "output": ...}, ...]`, or base64 of zlib of a pickle of that text.

    Raises:
        ValueError: it is neither; the message says why.
    """
    text = cell if cell.lstrip().startswith("[") else unpack(cell)
    try:
        tests = [Case(test["input"], test["output"]) for test in json.loads(text)]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"no list of tests with input and output ({type(error).__name__}: {error})") from error
    if not all(isinstance(text, str) for test in tests for text in test):
        raise ValueError("the input and output of a test must be text")
    return tests


def check_calls(tests: Sequence[Case]) -> None:
    """Check that the input lines and the output of every test are JSON.

    Raises:
        ValueError: they are not.
    """
    for number, test in enumerate(tests, 1):
        try:
            for text in (*filter(str.strip, test.input.split("\n")), test.output):
                json.loads(text, parse_int=str)  # integers may be of any length
        except (ValueError, RecursionError) as error:
            raise ValueError(f"test {number} of a function is not JSON ({error})") from error


def unpack(cell: str) -> str:
    """The text in a pickle, compressed with zlib and encoded in base64.

    Raises:
        ValueError: it is not in this form, it is larger than `MAX_BYTES`, or the pickle holds more than a text.
    """
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(base64.b64decode(cell, validate=True), MAX_BYTES)
    except (ValueError, zlib.error) as error:
        raise ValueError(f"neither JSON nor base64 of zlib ({error})") from error
    if not stream.eof:
        raise ValueError(f"cut off, or more than {MAX_BYTES >> 20} MiB when unpacked")
    texts = []
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in TEXT:
            texts.append(argument)
        elif operation.name not in AROUND_TEXT:
            raise ValueError(f"its pickle is refused, it holds more than a text ({operation.name})")
    if len(texts) != 1:
        raise ValueError(f"its pickle holds {len(texts)} texts, not one")
    return str(texts[0])
