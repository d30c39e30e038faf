"""vLLM's server as `lit-rlvr serve` starts it: a refused option gives a one-line error, without vLLM's usage text."""

from __future__ import annotations

import argparse
import runpy
import sys
import warnings
from difflib import get_close_matches
from textwrap import shorten
from typing import NoReturn

SERVER = "vllm.entrypoints.openai.api_server"


def refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """Print one line, with the nearest option, and exit; in place of `ArgumentParser.error`."""
    first = message.removeprefix("unrecognized arguments: ").partition(" ")[0].partition("=")[0]
    known = sorted(parser._option_string_actions)
    near = get_close_matches(first.replace("_", "-"), known, 1) if message.startswith("unrecognized") else []
    said = f"unknown option {first}" if message.startswith("unrecognized") else message
    end(said + (f"; did you mean {near[0]}?" if near else ""))


def end(message: str) -> NoReturn:
    print(f"lit-rlvr: error: vLLM: {shorten(message, 500, placeholder='...')}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """Become the server, with this process's arguments."""
    argparse.ArgumentParser.error = refuse  # type: ignore[assignment, method-assign]
    warnings.simplefilter("ignore", DeprecationWarning)  # vLLM's own, about how it is started
    try:
        runpy.run_module(SERVER, run_name="__main__")
    except ValueError as error:  # its settings do not fit the model or each other
        end(str(error))


if __name__ == "__main__":
    main()
