"""vLLM's server as `lit-rlvr serve` starts it: a refused option gives a one-line error, without vLLM's usage text."""

from __future__ import annotations

import argparse
import sys
from difflib import get_close_matches
from textwrap import shorten
from typing import NoReturn


def refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """Print one line, with the nearest option, and exit; in place of `ArgumentParser.error`."""
    option = message.removeprefix("unrecognized arguments: ").partition(" ")[0].partition("=")[0]
    known = sorted(parser._option_string_actions)
    if message.startswith("unrecognized"):
        near = get_close_matches(option.replace("_", "-"), known, 1)
    else:
        near = []
    if message.startswith("unrecognized"):
        problem = f"unknown option {option}"
    else:
        problem = message
    end(problem + (f"; did you mean {near[0]}?" if near else ""))


def end(message: str) -> NoReturn:
    print(f"lit-rlvr: error: vLLM: {shorten(message, 500, placeholder='...')}", file=sys.stderr)
    sys.exit(2)


def serve() -> None:
    """Run `vllm serve`, with this process's arguments."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    # vLLM's own command line looks up the version of the package vllm, which the CPU build is not called.
    cli_env_setup()
    command = ServeSubcommand()
    parser = make_arg_parser(FlexibleArgumentParser())
    options = parser.parse_args()
    configure_logging_from_args(options)
    command.validate(options)
    command.cmd(options)


def main() -> None:
    """Become the server."""
    argparse.ArgumentParser.error = refuse  # type: ignore[assignment, method-assign]
    try:
        serve()
    except ValueError as error:  # its settings do not fit the model or each other
        end(str(error))


if __name__ == "__main__":
    main()
