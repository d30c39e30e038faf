"""The console script: finds the command, and turns every expected error into one line."""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from lit_rlvr import __version__
from lit_rlvr.errors import UserError, user_error_in

COMMANDS = {
    "fit": ("lit_rlvr.cli", "train a model"),
    "validate": ("lit_rlvr.cli", "measure a model on the validation sets"),
    "preview": ("lit_rlvr.cli", "show prompts exactly as the model sees them"),
    "filter": ("lit_rlvr.cli", "keep the prompts that a model answers right sometimes"),
    "plan": ("lit_rlvr.cli", "say what a run needs of each GPU's memory, and which strategy fits"),
    "evaluate": ("lit_rlvr.evaluation.evaluate", "measure pass@k of a model, or of completions, on suites"),
    "compare": ("lit_rlvr.compare", "compare algorithms over seeds and tasks on an equal budget"),
    "serve": ("lit_rlvr.serve", "start a vLLM server that a run on other machines generates with"),
    "export": ("lit_rlvr.export", "write a run's model as a Hugging Face folder"),
    "parity": ("lit_rlvr.parity", "replay algorithms on one frozen batch of numbers, without a model"),
    "report": ("lit_rlvr.report", "write one HTML page about runs: settings, curves, tables, completions"),
    "explain": ("lit_rlvr.explain", "show what the loss did with each token of one group"),
    "doctor": ("lit_rlvr.doctor", "say what is installed, what will be used, and what is missing"),
}
"""Command -> (module with `run(command, arguments)`, one line of help)."""

EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # the loaders yield lists of tokens; there is nothing to parallelise
    ".*overridden `transfer_batch_to_device`.*",
    ".*args parameter is intended to run from within Python.*",
    ".*sync_dist=True.*",  # metrics are summed over ranks before they are logged
    ".*in eval mode at the start of training.*",  # the policy has no dropout on purpose
    ".*reduce_op.*",
    ".*LeafSpec.*",
    ".*Total length of .* across ranks is zero.*",  # no validation set, which is said once and plainly
    ".*assuming the intent is to load in a single process.*",  # a sharded checkpoint is read whole
    ".*dataloader is not resumable.*",  # its position is the data module's cursor
)
"""Lightning's and torch's advice about things that are done on purpose here."""


def main() -> None:
    """Run `lit-rlvr` with the process's arguments and exit with its status."""
    # Threads that spin while they wait would keep the cores from vLLM's and the reward workers' threads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        status = run(sys.argv[1:])
    except KeyboardInterrupt:  # while packages are imported
        status = _interrupted()
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit status: 0 done, 2 bad input, 128 + n stopped by signal n."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"lit-rlvr {__version__}")
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        return _fail(f"there is no command {command!r}; commands: {', '.join(COMMANDS)}")
    sys.path.append(str(Path.cwd()))  # a user's own modules; appended, so that they cannot shadow ours
    _set_up_output()
    from jsonargparse import ArgumentError
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from lit_rlvr.configs import explain_parse_error
    from lit_rlvr.run.stop import RunStopped

    try:
        import_module(COMMANDS[command][0]).run(command, list(arguments[1:]))
    except UserError as error:
        return _fail(str(error))
    except ArgumentError as error:
        return _fail(explain_parse_error(error))
    except RunStopped as error:
        print(f"lit-rlvr: {error}; go on with --ckpt_path last", file=sys.stderr)
        return 128 + error.signal_number
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as error:  # Lightning makes one of a Ctrl-C
        if isinstance(error.__context__, KeyboardInterrupt):
            return _interrupted()
        raise
    except MisconfigurationException as error:
        return _fail(f"trainer: {str(error).splitlines()[0]}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        return _fail(f"{error.filename or 'a file of the run'} cannot be written: {error.strerror}")
    except Exception as error:
        cause = user_error_in(error)  # the parser wraps what an option's class raises
        if cause is None:
            raise
        return _fail(str(cause))
    return 0


def _interrupted() -> int:
    print("lit-rlvr: interrupted", file=sys.stderr)
    return 130


def usage() -> str:
    """The top-level help."""
    lines = [f"  {name:10} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "lit-rlvr: reinforcement learning with verifiable rewards on Lightning",
            "",
            "usage: lit-rlvr COMMAND [options]      (lit-rlvr COMMAND --help lists them)",
            "",
            *lines,
            "",
            "first run: lit-rlvr fit --config quickstart",
        ]
    )


def _fail(message: str) -> int:
    print(f"lit-rlvr: error: {message}", file=sys.stderr)
    return 2


def _set_up_output() -> None:
    """Our own messages plainly on stderr; other packages' chatter off."""
    import lightning.pytorch  # noqa: F401  # sets its loggers' levels when first imported

    log = logging.getLogger("lit_rlvr")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses a package that it can do without
    # It says which process has died before it kills the others.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
