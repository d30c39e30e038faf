"""`lit-rlvr evaluate`: pass@k of a model on suites, as the papers report it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.markdown import Markdown

from lit_rlvr.algorithms.evaluation import EvaluatingModule
from lit_rlvr.diversity import DiversityMeasure, measure_diversity
from lit_rlvr.errors import UserError
from lit_rlvr.evaluation.given import Given, match, read_completions
from lit_rlvr.evaluation.progress import counted
from lit_rlvr.evaluation.records import Records
from lit_rlvr.evaluation.results import markdown, suite_results
from lit_rlvr.evaluation.sampler import Sampler
from lit_rlvr.evaluation.suites import Suite, find_suites
from lit_rlvr.export import model_of
from lit_rlvr.rewards import shared_pool
from lit_rlvr.rewards.combine import score_rollout
from lit_rlvr.rollout.engine import RolloutEngine, resolve_engine
from lit_rlvr.rollout.vllm import VLLMEngine
from lit_rlvr.run.files import write_atomically
from lit_rlvr.types import Prompt, Sampling

AT_ONCE = 32
"""Questions whose given completions are judged together."""

_log = logging.getLogger("lit_rlvr")


def make_parser(command: str) -> ArgumentParser:
    """The options of `evaluate`."""
    parser = ArgumentParser(prog=f"lit-rlvr {command}", description=__doc__, exit_on_error=False)
    parser.add_argument("--model", type=str | None, help="model folder, hub id, run folder, or a name (smollm2)")
    parser.add_argument("--suite", type=str, required=True,
                        help="suites by name (math500), NAME=FILE, or data files, comma-separated")  # fmt: skip
    parser.add_argument("--out", type=str, required=True, help="folder for completions, results and the table")
    parser.add_argument("-n", "--samples", type=int, default=8, help="sampled completions a question; 0 = greedy only")
    parser.add_argument("--greedy", type=bool, default=True, help="answer every question once without sampling too")
    parser.add_argument("--temperature", type=float, default=0.6, help="of sampling")
    parser.add_argument("--top_p", type=float, default=0.95, help="of sampling")
    parser.add_argument("--max_tokens", type=int, default=2048, help="longest completion")
    parser.add_argument("--max_prompt_tokens", type=int, default=4096, help="longer questions are left out and named")
    parser.add_argument("--limit", type=int | None, help="so many questions of each suite only, drawn by a fixed seed")
    parser.add_argument("--system_prompt", type=str | None, help="in place of the suites' own")
    parser.add_argument("--template", type=str | None, help="in place of the suites' own")
    parser.add_argument("--engine", type=RolloutEngine | str, default="auto", help="auto, hf, vllm, or a class_path")
    parser.add_argument("--dtype", type=str, default="auto",
                        help="what the engine computes in: float32, bfloat16, or auto (bfloat16 on a GPU)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument("--diversity", type=list[DiversityMeasure], default=[],
                        help="measures of sampled completions, such as [SelfBLEU4, CosineSimilarity]")  # fmt: skip
    parser.add_argument("--completions", type=str | None,
                        help="score these completions (JSONL: id, completion) instead of sampling")  # fmt: skip
    return parser


def run(command: str, arguments: list[str]) -> None:
    """The command line of `evaluate`."""
    parser = make_parser(command)
    config = parser.instantiate_classes(parser.parse_args(arguments))
    if (config.model is None) == (config.completions is None):
        raise UserError("--model: give a model to sample from, or --completions to score (one of the two)")
    if config.samples < 0 or not (config.samples or config.greedy):
        raise UserError("--samples: give a positive number, or 0 with --greedy true")
    given = {"system_prompt": config.system_prompt, "template": config.template}
    options = {name: value for name, value in given.items() if value is not None}
    options |= {"eval_limit": config.limit, "max_prompt_tokens": config.max_prompt_tokens}
    suites = list(find_suites(config.suite, options))
    out = Path(config.out)
    records, prompts = score_given(suites, config, out) if config.model is None else sample_suites(suites, config, out)
    results = {suite.name: count(records, suite.name, prompts[suite.name], config.diversity) for suite in suites}
    table = markdown(results, config.model or config.completions)
    write_atomically(out / "results.json", json.dumps(results, indent=2) + "\n")
    write_atomically(out / "results.md", table)
    Console(width=None if os.isatty(1) else 160).print(Markdown(table))


def sample_suites(suites: list[Suite], config: Namespace, out: Path) -> tuple[Records, dict[str, list[Prompt]]]:
    """Sample and judge; the records, and each suite's questions."""
    os.environ["PL_GLOBAL_SEED"] = str(config.seed)
    module = EvaluatingModule(model_of(config.model))
    prompts = {suite.name: load_prompts(suite, module) for suite in suites}
    parts = plan(config)
    records = Records(out, settings_of(config, module, prompts))
    work = [
        (suite, part, records.missing(f"{suite.name}/{part}", prompts[suite.name]))
        for suite in suites
        for part in parts
    ]
    everything = [prompt for suite in suites for prompt in prompts[suite.name]]
    missing = sum(len(left) for *_, left in work)
    if missing:
        sampler = start(module, config, everything)
        started, tokens = time.perf_counter(), 0
        with counted("questions", missing, done=len(parts) * len(everything) - missing) as one_more:
            for suite, part, left in work:
                sampling, samples = parts[part]

                def judged(prompt: Prompt, *group: Any, name: str = f"{suite.name}/{part}") -> None:
                    nonlocal tokens
                    records.add(name, prompt, *group)
                    tokens += sum(len(completion.token_ids) for completion in group[0])
                    one_more()

                sampler.run(left, sampling, samples, suite.rewards, part, suite.data.prepare, judged)
        seconds = time.perf_counter() - started
        sampler.close()
        _log.info("%d tokens in %.0f s: %.0f tokens/s", tokens, seconds, tokens / seconds)
    return records, prompts


def count(records: Records, name: str, prompts: list[Prompt], measures: Sequence[DiversityMeasure]) -> dict[str, Any]:
    """The results of a suite that is recorded as a whole."""
    samples = [prompt.sample for prompt in prompts]
    sampled, greedy = (records.groups(f"{name}/{part}", prompts) for part in ("sampled", "greedy"))
    results = suite_results(samples, sampled, greedy)
    if measures and sampled:
        texts = [[row["completion"] for row in group] for group in sampled]
        right = [[bool(row["correct"]) for row in group] for group in sampled]
        found = measure_diversity(texts, measures, right)
        results |= {f"diversity/{key}": None if isnan(value) else value for key, value in found.items()}
    return results


def score_given(suites: list[Suite], config: Namespace, out: Path) -> tuple[Records, dict[str, list[Prompt]]]:
    """Judge completions that are there already; the records, and the questions that they answer."""
    path = Path(config.completions)
    given = read_completions(path, [suite.name for suite in suites])
    records = Records(out, {"completions": hashlib.sha256(path.read_bytes()).hexdigest()[:16], "suite": config.suite})
    answered: dict[str, list[Prompt]] = {}
    for suite in suites:
        samples = suite.data.load("test")
        parts = [part for part in ("sampled", "greedy") if f"{suite.name}/{part}" in given]
        asked = {sample.id for part in parts for sample in match(given[f"{suite.name}/{part}"], samples, part)}
        prompts = [Prompt(sample, []) for sample in samples if sample.id in asked]
        if len(prompts) < len(samples):
            _log.warning("%s: %d of %d questions have completions", suite.name, len(prompts), len(samples))
        for part in parts:
            name = f"{suite.name}/{part}"
            judge(records, suite, name, records.missing(name, prompts), given[name])
        answered[suite.name] = prompts
    shared_pool().close()
    return records, answered


def judge(records: Records, suite: Suite, name: str, prompts: list[Prompt], given: Given) -> None:
    """Score and record the completions of some questions, several questions at once."""
    with counted(name, len(prompts)) as one_more:
        for first in range(0, len(prompts), AT_ONCE):
            some = prompts[first : first + AT_ONCE]
            groups = [given[prompt.sample.id] for prompt in some]
            scores = score_rollout(suite.rewards, groups, [prompt.sample for prompt in some])
            for p, (prompt, group) in enumerate(zip(some, groups, strict=True)):
                records.add(name, prompt, group, scores, p)
                one_more()


def plan(config: Namespace) -> dict[str, tuple[Sampling, int]]:
    """Part -> how it is sampled, and completions per question."""
    parts: dict[str, tuple[Sampling, int]] = {}
    if config.samples:
        parts["sampled"] = Sampling(config.temperature, config.top_p, max_tokens=config.max_tokens), config.samples
    if config.greedy:
        parts["greedy"] = Sampling(0.0, max_tokens=config.max_tokens), 1
    return parts


def load_prompts(suite: Suite, module: EvaluatingModule) -> list[Prompt]:
    """A suite's questions as the model sees them."""
    suite.data.use_model(module)
    suite.data.setup("test")
    if not suite.data.prompts["test"]:
        raise UserError(f"--suite: {suite.name} has no questions; give its `test`")
    return suite.data.prompts["test"]


def settings_of(config: Namespace, module: EvaluatingModule, prompts: dict[str, list[Prompt]]) -> dict[str, Any]:
    """What the completions depend on."""
    names = ("samples", "greedy", "temperature", "top_p", "max_tokens", "dtype", "seed")
    digests = {
        name: hashlib.sha256(repr([(p.sample.id, p.token_ids) for p in found]).encode()).hexdigest()[:16]
        for name, found in prompts.items()
    }
    engine = resolve_engine(config.engine).name
    return {"model": module.model, "engine": engine, "suites": digests} | {name: config[name] for name in names}


def start(module: EvaluatingModule, config: Namespace, prompts: list[Prompt]) -> Sampler:
    """The model in an engine with room for the longest prompt.

    Raises:
        UserError: the model's context is shorter than that.
    """
    from transformers import AutoConfig

    longest = max(prompts, key=lambda prompt: len(prompt.token_ids))
    reach = len(longest.token_ids) + config.max_tokens
    settings = AutoConfig.from_pretrained(module.model_folder, trust_remote_code=False)
    context = settings.get_text_config().max_position_embeddings
    if reach > context:
        raise UserError(
            f"--max_tokens: {config.max_tokens} after the longest question ({len(longest.token_ids)} tokens) exceeds "
            f"the model's context of {context} tokens; lower it, or --max_prompt_tokens"
        )
    automatic = "bfloat16" if torch.cuda.is_available() else "float32"
    dtype = getattr(torch, automatic if config.dtype == "auto" else config.dtype)
    images = max(len(prompt.sample.images) for prompt in prompts)
    engine = resolve_engine(config.engine)
    if isinstance(engine, VLLMEngine) and isinstance(config.engine, str):  # it has the device to itself
        engine = VLLMEngine(kv_cache_gb=4, gpu_memory_utilization=0.9, enforce_eager=not torch.cuda.is_available())
    return Sampler(module.model_folder, engine, module.tokenizer, dtype, reach, images, longest)
