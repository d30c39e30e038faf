"""The commands of `lit-rlvr`."""

COMMANDS = {
    "init": (
        "lit_rlvr.commands.init.command",
        "write a small project of your own: task, algorithm or environment",
    ),
    "fit": ("lit_rlvr.cli.lightning_cli", "train a model"),
    "validate": ("lit_rlvr.cli.lightning_cli", "measure a model on the validation sets"),
    "test": ("lit_rlvr.cli.lightning_cli", "measure a model on the test set, with the config's sampling and rewards"),
    "preview": ("lit_rlvr.cli.lightning_cli", "show prompts exactly as the model sees them"),
    "filter": ("lit_rlvr.cli.lightning_cli", "keep the prompts that a model sometimes answers correctly"),
    "tune": (
        "lit_rlvr.cli.lightning_cli",
        "sample for some minutes, and choose group size and max_tokens",
    ),
    "split": ("lit_rlvr.cli.lightning_cli", "write the training and held-out rows of a config's data to files"),
    "plan": ("lit_rlvr.cli.lightning_cli", "estimate the memory per GPU that a run needs, and which strategy fits"),
    "evaluate": ("lit_rlvr.commands.evaluate", "measure pass@k of a model, or of completions, on suites"),
    "compare": ("lit_rlvr.commands.compare.command", "compare algorithms over seeds and tasks on an equal budget"),
    "reproduce": (
        "lit_rlvr.commands.compare.reproduce",
        "run the study of a paper's table and compare it with the printed values",
    ),
    "serve": ("lit_rlvr.commands.serve", "start a vLLM server that generates for runs on other machines"),
    "export": ("lit_rlvr.commands.export", "write a run's model as a Hugging Face folder"),
    "check": (
        "lit_rlvr.commands.check",
        "check the numbers of an algorithm or an advantage, or the errors of a reward on rewritten answers",
    ),
    "parity": ("lit_rlvr.commands.check.parity", "replay algorithms on one frozen batch of numbers, without a model"),
    "watch": ("lit_rlvr.commands.watch.command", "follow runs in a browser while they train"),
    "report": (
        "lit_rlvr.commands.report.page",
        "write one HTML page about runs: results, curves, completions, settings",
    ),
    "explain": ("lit_rlvr.commands.report.explain", "show what the loss did with each token of one group"),
    "doctor": ("lit_rlvr.commands.doctor", "show what is installed, what will be used, and what is missing"),
}
"""Command -> (module with `run_command(command, arguments)`, one line of help)."""

WITHOUT_RESULT = ("serve",)
"""Commands that take no `--json`."""

NOT_PARSED = {
    "fit": {"--dry-run", "--rollouts-from", "--servers"},
    "plan": {"--ckpt_path", "--overwrite", "--weights_only"},
}
"""Command -> its options that are not part of the config. `plan` ignores its own: they belong to a line of `fit`."""
