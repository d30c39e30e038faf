"""`lit-rlvr evaluate`: pass@k of a model on suites, as the papers report it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jsonargparse import DefaultHelpFormatter, Namespace
from rich.markdown import Markdown

from lit_rlvr.common.files import write_atomically
from lit_rlvr.common.log import log
from lit_rlvr.common.run_files import is_run
from lit_rlvr.common.terminal import Terminal, progress_bar, show_result
from lit_rlvr.configs import Parser
from lit_rlvr.engines import resolve_engine
from lit_rlvr.engines.base import RolloutEngine
from lit_rlvr.engines.synced import SyncedEngine
from lit_rlvr.engines.vllm import VLLMEngine
from lit_rlvr.environments import Environment, as_environment
from lit_rlvr.environments.base import environment_fingerprint
from lit_rlvr.errors import UserError
from lit_rlvr.evaluation.diversity import DiversityMeasure, measure_diversity
from lit_rlvr.evaluation.processes import Share, check_devices, run_shares
from lit_rlvr.evaluation.protocols import SAMPLING, TURNS, find_dtype, find_environment, find_limits, find_max_tokens
from lit_rlvr.evaluation.records import CompletionsById, Records, match, read_completions
from lit_rlvr.evaluation.results import markdown, suite_results
from lit_rlvr.evaluation.sampler import Sampler, load_prompts, start_sampler
from lit_rlvr.evaluation.suites import Suite, example, find_suites
from lit_rlvr.policy.sources import ModelSource
from lit_rlvr.rewards import shared_pool
from lit_rlvr.rewards.combine import score_rollout
from lit_rlvr.rollout.episodes import added_images, begins, check_turns
from lit_rlvr.rollout.preflight.lengths import LengthRequirement
from lit_rlvr.run.folder import lock_folder
from lit_rlvr.run.saved_model import resolve_run_model
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Prompt

QUESTIONS_PER_BATCH = 32
"""Number of questions whose completions one call judges."""


OWN_SUITE_HELP = f"""Your own suite: a file with the columns of a known set (such as question and answer), alone or as
NAME=FILE; for any other file, a YAML file with its DataModule and rewards, such as mine.yaml for --suite mine.yaml:

  {example("mine.jsonl", ["question", "answer"])}
"""


class _Help(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """A help formatter that prints the example unchanged, ready to copy."""


def make_parser(command: str) -> Parser:
    """Build the parser of `evaluate`."""
    parser = Parser(prog=f"lit-rlvr {command}", description=__doc__, epilog=OWN_SUITE_HELP, formatter_class=_Help)
    parser.add_argument("--model", type=str | None, help="model folder, hub id, run folder, or a name (smollm2)")
    parser.add_argument(
        "--like",
        type=str | None,
        help="run folder whose length, precision, environment and turns are the defaults; default: the model's own run",
    )
    parser.add_argument(
        "--suite",
        type=list[str | dict[str, Any]] | str,
        required=True,
        help="suites by name (math500), NAME=FILE, or data files, comma-separated; or a list of them, "
        "each alone or with settings of its own: [math500, {suite: aime25, samples: 16}]",
    )
    parser.add_argument("--out", type=str, required=True, help="folder for completions, results and the table")
    parser.add_argument(
        "--protocol",
        type=str | None,
        help="a paper's prompts and sampling (aapo, agrae, apmpo), or a YAML file; the options below override it",
    )
    parser.add_argument(
        "-n", "--samples", type=int | None, help="sampled answers per question (default 8); 0 = greedy only"
    )
    parser.add_argument(
        "--greedy", type=bool | None, help="also answer every question once without sampling (default true)"
    )
    parser.add_argument("--temperature", type=float | None, help="sampling temperature (default 0.6)")
    parser.add_argument("--top_p", type=float | None, help="nucleus sampling (default 0.95)")
    parser.add_argument(
        "--max_tokens", type=int | None, help="longest completion; default: as in the run's validation, else 2048"
    )
    parser.add_argument("--max_prompt_tokens", type=int, default=4096, help="drop and report longer questions")
    parser.add_argument("--limit", type=int | None, help="most questions of each suite, drawn by a fixed seed")
    parser.add_argument(
        "--system_prompt",
        type=str | None,
        help="replaces that of the suites, and their templates unless --template is given",
    )
    parser.add_argument("--template", type=str | None, help="replaces that of the suites")
    parser.add_argument(
        "--environment",
        type=Environment | str | dict[str, str] | None,
        help="answers the model if the suite names none; default: the run's; null: none",
    )
    parser.add_argument("--max_turns", type=int | None, help="most turns of an episode; default: the run's")
    parser.add_argument("--max_observation_tokens", type=int | None, help="longest observation; default: the run's")
    parser.add_argument("--max_episode_tokens", type=int | None, help="longest episode; default: the run's")
    parser.add_argument("--engine", type=RolloutEngine | str, default="auto", help="auto, hf, vllm, or a class_path")
    parser.add_argument(
        "--dtype",
        type=Literal["auto", "float32", "bfloat16"],
        default="auto",
        help="data type to compute in; auto = the run's, or that of the model's config",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling")
    parser.add_argument(
        "--devices", type=int, default=1, help="GPUs to use, each by one process that answers every N-th question"
    )
    parser.add_argument(
        "--diversity",
        type=list[DiversityMeasure],
        default=[],
        help="measures of sampled completions, such as [SelfBLEU4, CosineSimilarity]",
    )
    parser.add_argument(
        "--completions", type=str | None, help="score these completions (JSONL: id, completion) instead of sampling"
    )
    return parser


def run_command(command: str, arguments: list[str]) -> None:
    """Run the command line of `evaluate`."""
    parser = make_parser(command)
    parsed = parser.parse_line(arguments)
    has_environment = any(argument.startswith("--environment") for argument in arguments)
    if parsed.like is not None and not is_run(parsed.like):
        raise UserError(f"--like: {parsed.like} has no config.yaml; give a folder that `lit-rlvr fit` wrote")
    like = parsed.like or parsed.model
    if not has_environment and like is not None and (run_environment := find_environment(like)):
        if not isinstance(run_environment, str):
            run_environment = json.dumps(run_environment)
        parsed = parser.parse_line([*arguments, "--environment", run_environment])
    config = parser.instantiate_classes(parsed)
    if (config.model is None) == (config.completions is None):
        raise UserError("--model: give either a model to sample from or --completions to score")
    given = {}
    for name in ("protocol", *SAMPLING, "system_prompt", "template"):
        given[name] = config[name]
    options = {"evaluation": {"limit": config.limit}, "reading": {"max_prompt_tokens": config.max_prompt_tokens}}
    suites = list(find_suites(config.suite, options, given, as_environment(config.environment)))
    if not suites:
        raise UserError("--suite: it names no suite; give at least one, such as math500")
    check_devices(config.devices, resolve_engine(config.engine), config.model is not None)
    out = Path(config.out)
    with nullcontext() if Share.of_this_process() else lock_folder(out, "--out"):
        if config.model is None:
            records, prompts = score_given(suites, config, out)
        else:
            records, prompts = sample_suites(suites, config, out, arguments)
        if Share.of_this_process():
            return
        results = {}
        for suite in suites:
            results[suite.name] = suite_summary(records, suite, prompts[suite.name], config.diversity)
        table = markdown(results, config.model or config.completions)
        write_atomically(out / "results.json", json.dumps(results, indent=2) + "\n")
        write_atomically(out / "results.md", table)
    console = Terminal(width=None if os.isatty(1) else 160)
    show_result(results, lambda: console.print(Markdown(table, hyperlinks=False)))


class MissingPart(NamedTuple):
    """A part of a suite's protocol, with the questions that have no completions of it yet.

    Args:
        suite: the suite.
        part: the name of the part, such as "greedy".
        sampling: how its completions are sampled.
        samples: completions per question.
        prompts: the questions without them.
    """

    suite: Suite
    part: str
    sampling: Sampling
    samples: int
    prompts: list[Prompt]


def sample_suites(
    suites: list[Suite], config: Namespace, out: Path, arguments: Sequence[str]
) -> tuple[Records, dict[str, list[Prompt]]]:
    """Sample and judge; return the records and each suite's questions.

    Args:
        suites: the suites.
        config: the parsed options.
        out: folder of the evaluation.
        arguments: the arguments of the command line, for further processes.
    """
    share = Share.of_this_process()
    os.environ["PL_GLOBAL_SEED"] = str(config.seed)
    module = ModelSource(resolve_run_model(config.model))
    limits = find_limits(resolve_dtype_and_length(config, module), config.like or config.model)
    settings = {
        "model": module.model,
        "engine": resolve_engine(config.engine).name,
        "dtype": config.dtype,
        "seed": config.seed,
    }
    prompts: dict[str, list[Prompt]] = {}
    plans = {}
    fingerprints = {}
    for suite in suites:
        name = suite.name
        prompts[name] = load_prompts(module, suite.data, suite.rewards, suite.environment, "test", f"--suite: {name}")
        plans[name] = suite.protocol.parts(limits)
        for sampling, _ in plans[name].values():
            check_turns(f"--suite: {name}: --max_turns", sampling, suite.environment)
        fingerprints[name] = suite_fingerprint(plans[name], prompts[name], suite.environment)
    records = Records(out, settings, fingerprints, share.file if share else None)
    missing_parts: list[MissingPart] = []
    total = 0
    for suite in suites:
        questions = prompts[suite.name]
        if share:
            questions = questions[share.number :: share.count]
        for part, (sampling, samples) in plans[suite.name].items():
            unsampled = records.missing(f"{suite.name}/{part}", questions)
            missing_parts.append(MissingPart(suite, part, sampling, samples, unsampled))
            total += len(questions)
    missing = sum(len(part.prompts) for part in missing_parts)
    if missing and config.devices > 1 and not share:
        with progress_bar("questions", missing, done=total - missing) as advance:
            run_shares(arguments, config.devices, out, advance)
        records = Records(out, settings, fingerprints)
    elif missing:
        lengths = []
        for suite in suites:
            lengths.append(_length_requirement(suite, prompts[suite.name], plans[suite.name]))
        owner = SyncedEngine(_engine_of_its_own(config))
        sampler = start_sampler(module.model_folder, owner, module.tokenizer, getattr(torch, config.dtype), lengths)
        with progress_bar("questions", missing, done=total - missing) as advance:
            _sample_missing_parts(missing_parts, sampler, records, advance)
    return records, prompts


def _engine_of_its_own(config: Namespace) -> RolloutEngine:
    """Return the engine of `--engine`; vLLM takes most of the device's memory, because no trainer shares it."""
    engine = resolve_engine(config.engine)
    if isinstance(engine, VLLMEngine) and isinstance(config.engine, str):
        return VLLMEngine(kv_cache_gb=4, gpu_memory_utilization=0.9, enforce_eager=not torch.cuda.is_available())
    return engine


def _sample_missing_parts(
    parts: Sequence[MissingPart], sampler: Sampler, records: Records, advance: Callable[[], None]
) -> None:
    """Sample and judge the missing completions; record each question's, and log the speed.

    Args:
        parts: what is missing.
        sampler: has the model; it is closed at the end.
        records: get the completions.
        advance: called after each question.
    """
    started = time.perf_counter()
    tokens = 0
    for suite, part, sampling, samples, prompts in parts:

        def judged(prompt: Prompt, *group: Any, name: str = f"{suite.name}/{part}") -> None:
            nonlocal tokens
            records.add(name, prompt, *group)
            tokens += sum(completion.length for completion in group[0])
            advance()

        sampler.run(prompts, sampling, samples, suite.rewards, part, suite.data, judged, suite.environment)
    seconds = time.perf_counter() - started
    sampler.close()
    log.info("%d tokens in %.0f s: %.0f tokens/s", tokens, seconds, tokens / seconds)


def _length_requirement(
    suite: Suite, prompts: list[Prompt], plans: Mapping[str, tuple[Sampling, int]]
) -> LengthRequirement:
    longest = max(sampling.max_completion_tokens for sampling, _ in plans.values())
    opening = 0
    if begins(suite.environment):
        opening = suite.data.reading.max_prompt_tokens
    turns = max(sampling.max_turns for sampling, _ in plans.values())
    images = added_images(suite.environment, turns)
    return LengthRequirement(suite.name, prompts, longest, "--max_tokens", "--max_prompt_tokens", opening, images)


def resolve_dtype_and_length(config: Namespace, module: ModelSource) -> int:
    """Fill in the data type from the run or the model; return the default completion length.

    The data type is logged. The length holds where no protocol sets one.
    """
    like = config.like or config.model
    dtype, why = find_dtype(config.dtype, like, module.model_folder)
    max_tokens, limit = find_max_tokens(config.max_tokens, like)
    config.dtype = str(dtype).removeprefix("torch.")
    log.info("Computing in %s (%s), completions of up to %d tokens (%s)", config.dtype, why, max_tokens, limit)
    return max_tokens


def suite_summary(
    records: Records, suite: Suite, prompts: list[Prompt], measures: Sequence[DiversityMeasure]
) -> dict[str, Any]:
    """Return the results of a completely recorded suite.

    Args:
        records: the records of the evaluation.
        suite: the suite.
        prompts: its questions.
        measures: measures of the completions' diversity.
    """
    samples = [prompt.sample for prompt in prompts]
    sampled = records.groups(f"{suite.name}/sampled", prompts)
    greedy = records.groups(f"{suite.name}/greedy", prompts)
    results = suite_results(samples, sampled, greedy)
    judged = []
    for group in sampled or greedy:
        for row in group:
            judged.append(row.get("criteria", {}))
    for reward in suite.rewards:
        summary = reward.summarise([criteria.get(reward.name, {}) for criteria in judged])
        results |= {f"{reward.name}/{key}": value for key, value in summary.items()}
    if measures and sampled:
        texts = []
        for group in sampled:
            texts.append([row["completion"] for row in group])
        diversity = measure_diversity(texts, measures)
        shown: dict[str, float | None] = {}
        for key, value in diversity.items():
            shown[f"diversity/{key}"] = None if isnan(value) else value
        results |= shown
    return results


def score_given(suites: list[Suite], config: Namespace, out: Path) -> tuple[Records, dict[str, list[Prompt]]]:
    """Judge existing completions; return the records and the questions that they answer."""
    path = Path(config.completions)
    completions = read_completions(path, [suite.name for suite in suites])
    settings = {"completions": hashlib.sha256(path.read_bytes()).hexdigest()[:16], "suite": config.suite}
    records = Records(out, settings)
    answered: dict[str, list[Prompt]] = {}
    for suite in suites:
        suite.data.use_environment(suite.environment, suite.rewards)
        samples = suite.data.load("test")
        parts = []
        for part in ("sampled", "greedy"):
            if f"{suite.name}/{part}" in completions:
                parts.append(part)
        questions = set()
        for part in parts:
            for sample in match(completions[f"{suite.name}/{part}"], samples, part):
                questions.add(sample.id)
        chat = suite.data.chat
        prompts = []
        for sample in samples:
            if sample.id in questions:
                prompts.append(Prompt(sample, [], prefill=chat.prefill, score_prefill=chat.score_prefill))
        if len(prompts) < len(samples):
            log.warning("%s: %d of %d questions have completions", suite.name, len(prompts), len(samples))
        for part in parts:
            name = f"{suite.name}/{part}"
            judge_completions(records, suite, name, records.missing(name, prompts), completions[name])
        answered[suite.name] = prompts
    shared_pool().close()
    return records, answered


def judge_completions(
    records: Records, suite: Suite, name: str, prompts: list[Prompt], completions: CompletionsById
) -> None:
    """Score and record the completions of the given questions, several questions at once.

    Args:
        records: receives the judged completions.
        suite: the suite of the questions.
        name: the suite's name in the records.
        prompts: its questions.
        completions: question id -> its completions.
    """
    with progress_bar(name, len(prompts)) as advance:
        for start in range(0, len(prompts), QUESTIONS_PER_BATCH):
            batch = []
            groups = []
            judged = []
            for question in prompts[start : start + QUESTIONS_PER_BATCH]:
                group = completions[question.sample.id]
                prompt = replace(question, prefill=group[0].prefill or question.prefill)
                batch.append(prompt)
                groups.append(group)
                judged.append(prompt.for_rewards(group))
            scores = score_rollout(suite.rewards, judged, [prompt.sample for prompt in batch])
            for p, (prompt, group) in enumerate(zip(batch, groups, strict=True)):
                records.add(name, prompt, group, scores, p)
                advance()


def suite_fingerprint(
    parts: Mapping[str, tuple[Sampling, int]], prompts: Sequence[Prompt], environment: Environment | None
) -> dict[str, Any]:
    """Return the settings that the completions of one suite depend on, with a hash of its questions."""
    questions = repr([(p.sample.id, p.token_ids) for p in prompts]).encode()
    settings: dict[str, Any] = {"questions": hashlib.sha256(questions).hexdigest()[:16]}
    for part, (sampling, samples) in parts.items():
        always = ["temperature", "top_p", "max_tokens"]
        if environment is not None:
            always += TURNS
        where_set = []
        for name in ("stop", "max_thought_tokens"):
            if getattr(sampling, name):
                where_set.append(name)
        if sampling.at_budget != "close":
            where_set.append("at_budget")
        settings[part] = {"samples": samples} | {name: getattr(sampling, name) for name in [*always, *where_set]}
    if environment is not None:
        settings["environment"] = environment_fingerprint(environment)
    return settings
