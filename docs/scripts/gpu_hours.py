"""The claims that need GPUs: a table of their studies, with the GPU hours that `lit-rlvr plan` estimates.

docs/studies.md has this table, and a test compares it. A study's hours are those of its runs, each planned with the
config that `compare` gives it and vLLM on the GPUs that train. Nothing of it was run on a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from lit_rlvr.commands.compare.command import check_cells, check_suites
from lit_rlvr.commands.compare.printed import Paper, load_printed
from lit_rlvr.commands.compare.study import Study, load_study
from lit_rlvr.commands.plan.gpus import GPUs
from lit_rlvr.commands.plan.hours import Duration, duration
from lit_rlvr.commands.plan.strategies import describe_job
from lit_rlvr.configs import config_folder
from lit_rlvr.engines.vllm import VLLMEngine

MACHINE = "8xH100"
QUESTIONS = {
    "aime24": 30, "aime25": 30, "amc23": 40, "bird": 1534, "geometry3k": 601, "math": 5000, "math500": 500,
    "mathverse": 3940, "mathvision": 3040, "minerva": 272, "mmlu": 14042, "olympiadbench": 674, "spider": 1034,
}  # fmt: skip
"""Suite -> its questions, as in the comments of configs/suites; LiveCodeBench's number depends on its release."""


def claimed() -> Iterator[tuple[str, list[tuple[str, Paper]]]]:
    """Yield each study that decides claims, with the names and contents of the files that have them."""
    folder = config_folder() / "printed"
    names = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.glob("*/*.yaml"))
    papers = [(name, paper) for name in names if (paper := load_printed(name)).claims]
    for study in dict.fromkeys(paper.study for _, paper in papers):
        yield study, [(name, paper) for name, paper in papers if paper.study == study]


def planned(cell: Any, gpus: GPUs) -> Duration:
    """Return the plan's time for a cell, from what its config builds."""
    cell.rollout.generator = VLLMEngine()
    precision, steps = str(cell.trainer.precision), cell.trainer.max_steps
    job = describe_job(cell.model, cell.data, cell.rollout, precision, max_steps=steps)
    plan = job.proposal(gpus)
    found = None if plan is None else duration(job, plan, gpus)
    assert found is not None, f"{cell.model.model} does not fit"
    return found


def evaluated(study: Study) -> int:
    """Return the completions of one evaluation of a study's suites whose number of questions is known."""
    suites = check_suites(study)
    return sum(QUESTIONS.get(s.name, 0) * (s.protocol.samples + s.protocol.greedy) for s in suites)


def row(name: str, files: list[tuple[str, Paper]], gpus: GPUs) -> str:
    """Return a study's row of the table."""
    study = load_study(name)
    found = [planned(cell, gpus) for cell in check_cells(study).values()]
    training = len(study.seeds) * sum((part.hours or 0) * part.gpus for part in found)
    completions = evaluated(study) * (len(study.cells) + len(study.tasks))
    evaluation = completions / 1000 * max(part.completion_hours for part in found)
    commands = "<br>".join(f"`lit-rlvr reproduce {file} --out DIR`" for file, _ in files)
    claims = "<br>".join(f"{c.says} ({c.where})" for _, paper in files for c in paper.claims if c.primary)
    return (
        f"| {claims} | `{name}`: {len(study.cells)} runs | {training:,.0f} | {completions / 1000:,.0f}: "
        f"{evaluation:,.0f} | {commands} |"
    )


def table(machine: str = MACHINE) -> str:
    """Return the table."""
    gpus = GPUs.parse(machine)
    return "\n".join([
        "| primary claims | study | GPU hours of training | thousand completions of evaluation: GPU hours | command |",
        "|---|---|---:|---:|---|",
        *(row(name, files, gpus) for name, files in claimed()),
    ])  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--machine", default=MACHINE, help="GPUs, as in `lit-rlvr plan --gpus`")
    print(table(parser.parse_args().machine))
