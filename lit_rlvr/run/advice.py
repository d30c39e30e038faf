"""Advice for a run: one table of state -> sentence -> command. What has been tried is not advised again."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lit_rlvr.common.columns import lookup
from lit_rlvr.run.folder import CONFIG_HEADER

GUIDE = "docs/it_does_not_learn.md"
"""The page with sign, cause and advice of each finding, under its title."""
TUNED = "# Written by lit-rlvr tune"
"""Beginning of a line of the configs that `tune` writes."""
TRIED_BEFORE = "# Tried before: "
"""Beginning of the line of a run's config.yaml that lists what `tune` and earlier runs of its task have tried."""
EARLIER_RUNS = 8
"""The most earlier runs whose configs are read."""
SAME_TASK = ("model.init_args.model", "data.class_path", "data.init_args.train")
"""The settings that runs of one task share."""
SMALL_ROLLOUTS = "Rollouts are too small"
"""The title of the finding that a step's gradient is mostly noise."""
WHAT_HELPS = ". What helps: "
"""The text between a finding and its advice; a run whose summary has it has ended without success."""


class Advice(NamedTuple):
    """A row of the table.

    Args:
        state: the title of the finding that it helps with.
        case: which of its cases; "" = all.
        sentence: what to do, perhaps with numbers of the run in braces.
        command: the command that does it.
        tried: the setting that shows that it has been tried, as in `TRIED`; "" = it can always be tried (again).
    """

    state: str
    case: str
    sentence: str
    command: str
    tried: str = ""


TRIED: dict[str, str] = {
    "tune": "`lit-rlvr tune`",
    "warm_start.steps": "a warm start",
    "warm_start.solution": "worked answers",
    "model.init_args.lr: auto": "lr: auto",
    "checkpoint.best": "checkpoint.best",
    "model.init_args.loss.entropy_coef": "an entropy bonus",
    "model.init_args.importance.correction: token_truncate": "the correction token_truncate",
    "trainer.precision: 32-true": "float32",
}
"""Settings that a run may have tried -> their names in sentences. `KEY: VALUE` is a setting of that value, `KEY` one
that is set. `tune` wrote a part of the config; `warm_start.solution` is another column than that of the answers."""

OWN_REWARD = "my_task.score"
"""A reward in commands, in whose place a run names its own."""
_FIT = "lit-rlvr fit --config my.yaml"
_TUNE = "lit-rlvr tune --config my.yaml --out tuned.yaml"
_SHOWN = f"{_FIT} --warm_start.steps 100 --warm_start.solution answer"
_WORKED = f"{_FIT} --warm_start.steps 100 --warm_start.solution worked"
_FILTER = "lit-rlvr filter --config my.yaml --out kept.jsonl"
_SLOWER = f"{_FIT} --model.init_args.lr auto --collapse.action stop"
_EXPORT = "lit-rlvr export runs/my_run/checkpoints/best.ckpt --to best"
_RESIDUE = "easier prompts first, or a larger model"


def _first_answers(state: str, case: str = "") -> tuple[Advice, ...]:
    """Return the rows of a state in which right answers are never sampled."""
    return (
        Advice(state, case, "measure what this model needs, and whether supervised steps go first", _TUNE, "tune"),
        Advice(state, case, "show the model right answers first, by a warm start", _SHOWN, "warm_start.steps"),
        Advice(
            state,
            case,
            "give worked answers in a column: bare ones teach only the form",
            _WORKED,
            "warm_start.solution",
        ),
        Advice(
            state,
            case,
            "let the learning rate find itself",
            f"{_FIT} --model.init_args.lr auto",
            "model.init_args.lr: auto",
        ),
    )


ADVICE: tuple[Advice, ...] = (
    *_first_answers("The form is learnt, the answers are not"),
    *_first_answers("Answers are no better than a constant guess"),
    *_first_answers("Nothing is learnt so far"),
    Advice("The answers alone teach only the form", "", "give worked answers in a column", _WORKED),
    Advice(
        "One answer for all questions", "it is paid",
        "pay right answers only, or pay parts of an answer less: the reward itself teaches this answer",
        "lit-rlvr check my_task.score --data my.jsonl",
    ),
    Advice("One answer for all questions", "it is not paid", "measure what this model needs", _TUNE, "tune"),
    Advice(
        "One answer for all questions", "it is not paid",
        "a smaller step keeps the other answers: let the learning rate find itself",
        f"{_FIT} --model.init_args.lr auto", "model.init_args.lr: auto",
    ),
    Advice(
        "One answer for all questions", "it is not paid", "an entropy bonus keeps the other answers",
        f"{_FIT} --model.init_args.loss.entropy_coef 0.001", "model.init_args.loss.entropy_coef",
    ),
    Advice(
        "No better than at the start", "", "let the learning rate find itself", f"{_FIT} --model.init_args.lr auto",
        "model.init_args.lr: auto",
    ),
    Advice(
        "No better than at the start", "",
        "more or larger rollouts, or more validation questions: {visible:.2f} is the smallest gain that these show",
        f"{_FIT} --trainer.max_steps {{more_steps}} --data.init_args.prompts_per_rollout {{more_prompts}}",
    ),
    Advice(
        SMALL_ROLLOUTS, "the data have more prompts",
        "steps of {size:.0f} prompts; the gradient's signal needs about {needed:.0f} (train/noise_scale)",
        f"{_FIT} --data.init_args.prompts_per_rollout {{prompts:.0f}}",
    ),
    Advice(
        SMALL_ROLLOUTS, "the data have no more prompts",
        "steps of {size:.0f} prompts; the gradient's signal needs about {needed:.0f} (train/noise_scale), more than "
        "the training set has: add prompts, or make one step of a rollout",
        f"{_FIT} --model.init_args.updates_per_rollout 1",
    ),
    Advice(
        "The last validation is worse than the best", "the best checkpoint is kept",
        "take the best checkpoint", _EXPORT,
    ),
    Advice(
        "The last validation is worse than the best", "it is not kept",
        "keep the checkpoint of the best validation, and train again", f"{_FIT} --checkpoint.best val/accuracy",
    ),
    Advice(
        "Most prompts give no signal", "every completion has one reward",
        "if some deserve another reward, mend it; if not, take other prompts (`lit-rlvr filter`)",
        "lit-rlvr check my_task.score --text TEXT --reference ANSWER",
    ),
    *_first_answers("Most prompts give no signal", "next to nothing is right"),
    Advice("Most prompts give no signal", "next to nothing is right", _RESIDUE, _FILTER),
    Advice(
        "Most prompts give no signal", "too hard", "try easier prompts, or more completions (rollout.group_size)",
        _FILTER,
    ),
    Advice(
        "Most prompts give no signal", "too easy", "try harder prompts, or more completions (rollout.group_size)",
        _FILTER,
    ),
    Advice(
        "Nearly all prompts are solved", "",
        "the run has learnt what these prompts teach: end it, or go on with harder prompts", _FILTER,
    ),
    Advice(
        "Answers cannot be read", "",
        'look at completions.jsonl, "status": "parse_fail": ask for the form of answer that the reward reads (a '
        "system_prompt or template), teach it (a warm start), pay for it (Format), or raise "
        "rollout.sampling.max_tokens if answers are cut off",
        'lit-rlvr check MathAnswer --text "So it is four or five." --reference 4',
    ),
    Advice(
        "Completions are cut off", "",
        "raise rollout.sampling.max_tokens (in validation rollout.evaluation.sampling.max_tokens), take cut "
        "completions out of the loss (rollout.mask_truncated), or reward short answers (Overlong)",
        f"{_FIT} --rollout.sampling.max_tokens {{more_tokens}}",
    ),
    Advice(
        "Completions grow long", "",
        "look at the samples: if length brings reward without answers, reward short ones (Overlong, CosineScaled, "
        "LCPO), punish repetition (RepetitionPenalty), or take a loss without a length bias (DrGRPO, DAPO)",
        f"{_FIT} --model DrGRPO",
    ),
    Advice(
        "The entropy collapsed", "",
        "an entropy bonus (model.loss.entropy_coef), a smaller learning rate, or an advantage that keeps rare "
        "solutions (agrae, rloo)",
        f"{_FIT} --model.init_args.loss.entropy_coef 0.001", "model.init_args.loss.entropy_coef",
    ),
    Advice(
        "The entropy collapsed", "",
        "a wider upper clip (DAPO), losses against it (ClipCov, KLCov), a smaller learning rate, or an advantage that "
        "keeps rare solutions (agrae, rloo)",
        f"{_FIT} --model DAPO",
    ),
    Advice(
        "The entropy explodes", "",
        "let the learning rate find itself, and end such runs by themselves (collapse.action)", _SLOWER,
        "model.init_args.lr: auto",
    ),
    Advice(
        "The entropy explodes", "",
        "a bound for wrong completions, no entropy bonus, and an end of such runs by themselves (collapse.action)",
        f"{_FIT} --model.init_args.dual_clip 3 --collapse.action stop",
    ),
    Advice(
        "The reward rises while the accuracy falls", "",
        "read the best-rewarded samples: the reward may be gamed; pay for form only with a right answer",
        "lit-rlvr check MathAnswer --data my.jsonl",
    ),
    Advice(
        "The training accuracy rises while the held-out accuracy falls", "",
        "the prompts may be learnt by heart: take more of them, or keep the best checkpoint (checkpoint.best: "
        "val/accuracy)",
        f"{_FIT} --checkpoint.best val/accuracy", "checkpoint.best",
    ),
    Advice(
        "The training accuracy rises while the held-out accuracy falls", "",
        "the prompts may be learnt by heart: take more of them, and meanwhile the best checkpoint", _EXPORT,
    ),
    Advice(
        "The engine's log-probabilities drift from the trainer's", "",
        "keep the importance correction, and probe more often (rollout.safeguards.probe_every)",
        f"{_FIT} --model.init_args.importance.correction token_truncate",
        "model.init_args.importance.correction: token_truncate",
    ),
    Advice(
        "The engine's log-probabilities drift from the trainer's", "",
        "generate in the trainer's precision, and probe more often (rollout.safeguards.probe_every); if this run "
        "learns, the engine is the cause",
        f"{_FIT} --rollout.engine hf --trainer.precision 32-true",
    ),
    Advice(
        "Rewards fail", "", "read failed_rewards.jsonl in the run folder, and fix the reward",
        "lit-rlvr check my_task.score --data my.jsonl",
    ),
    Advice(
        "Limits stop checks", "",
        "mend a check that is slow by itself, or raise the reward's limits (cpu_seconds, wall_seconds, memory_mb)",
        "lit-rlvr check my_task.score --data my.jsonl",
    ),
    Advice(
        "Optimizer steps were skipped", "",
        "read skipped/ in the run folder; float32 or a smaller learning rate (model.lr) may help",
        f"{_FIT} --trainer.precision 32-true", "trainer.precision: 32-true",
    ),
    Advice(
        "Optimizer steps were skipped", "",
        "read skipped/ in the run folder; a smaller learning rate (model.lr) or gradient norm may help; a loss of "
        "your own can be tried on extreme ratios",
        "lit-rlvr check my_losses.Mine",
    ),
    Advice(
        "The accuracy fell", "steps too large", "let the learning rate find itself", _SLOWER,
        "model.init_args.lr: auto",
    ),
    Advice(
        "The accuracy fell", "steps too large",
        "a smaller model.optim.max_grad_norm, a KL term, and the best checkpoint",
        f"{_FIT} --model.init_args.optim.max_grad_norm 0.3 --model.init_args.kl.coef 0.01",
    ),
    Advice(
        "The accuracy fell", "learnt by heart", "more prompts, or the best checkpoint (checkpoint.best: val/accuracy)",
        f"{_FIT} --checkpoint.best val/accuracy", "checkpoint.best",
    ),
    Advice("The accuracy fell", "learnt by heart", "more prompts, and meanwhile the best checkpoint", _EXPORT),
    Advice(
        "The accuracy fell", "the reward is gamed", "read the best-rewarded samples, and pay for right answers only",
        "lit-rlvr check MathAnswer --data my.jsonl",
    ),
    Advice(
        "The accuracy fell", "old tokens", "lower rollout.staleness, or a smaller learning rate (model.lr)",
        f"{_FIT} --rollout.staleness 0",
    ),
    Advice(
        "The accuracy fell", "the engine drifts",
        "probe more often (rollout.safeguards.probe_every), and keep the importance correction",
        f"{_FIT} --model.init_args.importance.correction token_truncate --rollout.safeguards.probe_every 1",
    ),
    Advice(
        "The accuracy fell", "the entropy is gone",
        "an entropy bonus (model.loss.entropy_coef), a wider upper clip (DAPO), or a smaller learning rate (model.lr)",
        f"{_FIT} --model.init_args.loss.entropy_coef 0.001",
    ),
    Advice(
        "The accuracy fell", "cut off", "raise rollout.sampling.max_tokens, or reward short answers (Overlong)",
        f"{_FIT} --rollout.sampling.max_tokens {{more_tokens}}",
    ),
    Advice(
        "The accuracy fell", "no cause is seen",
        "look at the samples, at whether later prompts are harder, and at a smaller learning rate (model.lr)",
        "lit-rlvr watch runs",
    ),
)  # fmt: skip
"""All advice. Of a state's rows, the run shows the first that has not been tried."""

LARGER = {
    "more_tokens": ("rollout.sampling.max_tokens", 512),
    "more_steps": ("trainer.max_steps", 100),
    "more_prompts": ("data.init_args.prompts_per_rollout", 16),
}
"""Number in a command -> the setting of which it is twice the run's value, and the number for a run that has none."""


@dataclass(frozen=True)
class RunHistory:
    """The history of a run's task: what has been tried.

    Args:
        own: keys of `TRIED` that the run itself has.
        earlier: keys that came before it.
        has_bare_start: whether the run's warm start is on the answers themselves.
        prompts_per_rollout: of the run; 0 = unknown.
        larger: number of `LARGER` -> twice the run's value.
        reward: the name of the run's first reward, as `lit-rlvr check` takes it.
    """

    own: frozenset[str] = frozenset()
    earlier: frozenset[str] = frozenset()
    has_bare_start: bool = False
    prompts_per_rollout: int = 0
    larger: Mapping[str, int] = field(default_factory=dict)
    reward: str = OWN_REWARD

    @classmethod
    def of_config(cls, text: str) -> RunHistory:
        """Read the config.yaml of a run; one that is no mapping in YAML has tried nothing."""
        try:
            config = yaml.safe_load(text)
        except yaml.YAMLError:
            config = None
        if not isinstance(config, Mapping):
            return cls()
        own = frozenset(key for key in TRIED if _is_tried(key, config))
        lines = []
        for line in text.splitlines():
            if line.startswith(TRIED_BEFORE):
                lines.append(line.removeprefix(TRIED_BEFORE))
        names = set()
        for line in lines:
            names.update(line.split(", "))
        earlier = frozenset(key for key, name in TRIED.items() if name in names)
        has_bare_start = "warm_start.steps" in own and "warm_start.solution" not in own
        prompts = lookup(config, "data.init_args.prompts_per_rollout")
        if not isinstance(prompts, int):
            prompts = 0
        larger = {}
        for name, (option, _) in LARGER.items():
            value = lookup(config, option)
            if isinstance(value, int) and value > 0:  # -1 is no limit
                larger[name] = 2 * value
        return cls(own, earlier, has_bare_start, prompts, larger, _first_reward(config))

    @classmethod
    def of_folder(cls, folder: Path) -> RunHistory:
        """Read the history of the run in a folder; one without a readable config has tried nothing."""
        try:
            return cls.of_config((folder / "config.yaml").read_text())
        except (OSError, ValueError):
            return cls()

    def advise(self, state: str, case: str = "", **numbers: float) -> str:
        """Return what helps in a state, and its command; what has been tried is not advised again.

        Args:
            state: the title of a finding.
            case: which of its cases.
            numbers: the numbers of the run in the row's sentence.
        """
        without = {name: number for name, (_, number) in LARGER.items()}
        numbers = {**without, **self.larger, **numbers}
        rows = []
        for row in ADVICE:
            if row.state == state and row.case == case:
                rows.append(row)
        for row in rows:
            if row.tried not in self.own | self.earlier:
                command = row.command.format(**numbers).replace(OWN_REWARD, self.reward)
                return f"{row.sentence.format(**numbers)}: `{command}`"
        names = ", ".join(dict.fromkeys(TRIED[row.tried] for row in rows))
        return (
            f"nothing more is known to help: {names} have been tried, so the model cannot do these prompts yet, or the "
            f"reward does not see right answers; {_RESIDUE}"
        )


def _is_tried(key: str, config: Mapping[str, Any]) -> bool:
    """Return whether the settings of a run contain what a key of `TRIED` names."""
    if key == "warm_start.solution":
        return bool(lookup(config, "warm_start.steps")) and not uses_bare_answers(config)
    name, _, value = key.partition(": ")
    found = lookup(config, name)
    if value:
        return str(found) == value
    return bool(found)


def uses_bare_answers(config: Mapping[str, Any]) -> bool:
    """Return whether a warm start trains on the column of the answers themselves."""
    answers = (lookup(config, "data.init_args.columns") or {}).get("answer", "answer")
    given = lookup(config, "warm_start.solution")
    columns = given if isinstance(given, list) else [given]
    return all(column == answers for column in columns)


def describe_earlier(folder: Path, settings: str, configs: Iterable[str] = ()) -> str:
    """Return the line of config.yaml that lists what was tried before a run; "" = nothing.

    Earlier runs are those in its folder and next to it, of the same model and data, that ended without success.

    Args:
        folder: the run folder, before it is emptied.
        settings: the settings of the run.
        configs: the texts of the configs that it was given.
    """
    own = RunHistory.of_config(settings).own
    tried = set[str]()
    if any(line.startswith(TUNED) for text in configs for line in text.splitlines()):
        tried.add("tune")
    for history in _failed_runs(folder, yaml.safe_load(settings) or {}):
        tried |= history.own | history.earlier
    return _as_line(tried - own)


def keep_earlier(folder: Path) -> str:
    """Return the line of a resumed run's config.yaml that lists what was tried before it; "" = nothing."""
    return _as_line(RunHistory.of_folder(folder).earlier)


def _as_line(tried: Collection[str]) -> str:
    names = []
    for key, name in TRIED.items():
        if key in tried:
            names.append(name)
    if names:
        return f"{TRIED_BEFORE}{', '.join(names)}\n"
    return ""


def _failed_runs(folder: Path, settings: Mapping[str, Any]) -> list[RunHistory]:
    """Return the histories of the newest runs of the same model and data, in a folder and next to it, that ended
    without success."""
    summaries = sorted(folder.parent.glob("*/summary.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    found = []
    for summary in summaries[:EARLIER_RUNS]:
        try:
            learnt = json.loads(summary.read_text()).get("learnt") or ""
            text = summary.with_name("config.yaml").read_text()
            config = yaml.safe_load(text) or {}
        except (OSError, ValueError, AttributeError, yaml.YAMLError):  # not a run's
            continue
        is_same = all(lookup(config, name) == lookup(settings, name) for name in SAME_TASK)
        if text.startswith(CONFIG_HEADER) and is_same and WHAT_HELPS in learnt:
            found.append(RunHistory.of_config(text))
    return found


def _first_reward(config: Mapping[str, Any]) -> str:
    """Return the name of the first reward of a run's config.yaml: of a function its path, of ours the class."""
    rewards = lookup(config, "rollout.rewards")
    if not isinstance(rewards, list) or not rewards or not isinstance(rewards[0], Mapping):
        return OWN_REWARD
    named = str(rewards[0].get("class_path", OWN_REWARD))
    if named.endswith(".FunctionReward"):
        return str(lookup(rewards[0], "init_args.path") or OWN_REWARD)
    if named.startswith("lit_rlvr."):
        return named.rpartition(".")[2]
    return named
