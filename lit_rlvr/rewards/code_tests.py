"""The tests of a programming problem as data sets hold them: plain, or packed as LiveCodeBench packs its private ones.

A pickle can run code as it is loaded, so none is loaded: LiveCodeBench's hold one text, which is read off.
"""

from __future__ import annotations

import base64
import json
import pickletools
import zlib
from collections.abc import Sequence
from typing import NamedTuple

MAX_BYTES = 512 << 20
"""Tests of one problem, unpacked."""

TEXT = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
AROUND_TEXT = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}
"""Operations of a pickle that holds a text and nothing else."""


class Case(NamedTuple):
    """One test: standard input and output of a program, or a call's arguments (a line of JSON each) and its value."""

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
    """Whether the input lines and the output of every test are JSON.

    Raises:
        ValueError: they are not.
    """
    for number, test in enumerate(tests, 1):
        try:
            for text in (*filter(str.strip, test.input.split("\n")), test.output):
                json.loads(text, parse_int=str)  # integers may be of any length
        except (ValueError, RecursionError) as error:
            raise ValueError(f"test {number} of a function is no JSON ({error})") from error


def unpack(cell: str) -> str:
    """The text in base64 of zlib of a pickle.

    Raises:
        ValueError: it is no such thing, it is larger than `MAX_BYTES`, or the pickle holds more than a text.
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
