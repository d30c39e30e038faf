"""Prints a plan as a table in the terminal, with a proposal."""

from __future__ import annotations

import os
from typing import Any

from rich.table import Table

from lit_rlvr.common.terminal import Terminal, show_result, table_of
from lit_rlvr.sizing.gpus import GIB, GPUs
from lit_rlvr.sizing.strategies import FREE, LEAST_SEQUENCES, JobSizes, MemoryEstimate


def show_plan(job: JobSizes, gpus: GPUs, sequences: int | None = None) -> None:
    """Print the memory that each strategy needs on each GPU, and the proposed one.

    Args:
        job: the sizes of the run.
        gpus: the GPUs that train.
        sequences: what each server generates at once; None = there are no servers.
    """

    def print_readable() -> None:
        print_plan(job, gpus)
        if sequences is not None:
            print(f"Servers: lit-rlvr serve --max-num-seqs {sequences}")

    show_result(described(job, gpus) | {"max_num_seqs": sequences}, print_readable)


def described(job: JobSizes, gpus: GPUs) -> dict[str, Any]:
    """Return the plan for JSON; memory is in GiB."""
    proposal = job.proposal(gpus)
    if proposal is None:
        proposed = None
    else:
        proposed = {"name": proposal.name, "arguments": job.arguments(proposal)}
    return {
        "parameters": job.whole.parameters,
        "active_parameters": job.whole.active,
        "gpus": gpus.count,
        "gib": gpus.gib,
        "strategies": [_described_plan(plan) for plan in job.plans(gpus)],
        "proposal": proposed,
        "advice": advice(job, gpus),
    }


def _described_plan(plan: MemoryEstimate) -> dict[str, Any]:
    return {
        "name": plan.name,
        "terms": {name: value / GIB for name, value in plan.terms.items()},
        "needs": plan.needs / GIB,
        "sequences": plan.sequences,
        "fits": plan.fits,
    }


def print_plan(job: JobSizes, gpus: GPUs) -> None:
    """Print the plan as readable text."""
    load = job.load(gpus, job.budget)
    console = Terminal(soft_wrap=True, width=None if os.isatty(1) else 120)
    if job.whole.unused:
        active = f", {job.whole.active / 1e9:.3g} of them for a token"
    else:
        active = ""
    console.print(
        f"{job.whole.parameters / 1e9:.3g} billion parameters{active}; micro-batches of {load.tokens:.0f} tokens, "
        f"{load.scored:.0f} of them scored; prompts and completions of up to {job.prompt} and {job.completion} tokens"
    )
    console.print_table(strategy_table(job, gpus))
    for line in advice(job, gpus):
        console.print(line)


def strategy_table(job: JobSizes, gpus: GPUs) -> Table:
    """Return a table with a row per strategy and a column per term."""
    plans = job.plans(gpus)
    terms = []
    for term in plans[0].terms:
        if any(plan.terms[term] for plan in plans):
            terms.append(term)
    generates = ("sequences",) if plans[0].sequences is not None else ()
    rows = []
    for plan in plans:
        row = [plan.name]
        for value in (*(plan.terms[term] for term in terms), plan.needs):
            row.append(f"{value / GIB:.1f}")
        if generates:
            row.append(str(plan.sequences))
        if plan.fits:
            row.append("yes")
        else:
            row.append("no")
        rows.append(row)
    title = f"GiB on each of {gpus.count} GPU(s) of {gpus.gib:g} GiB"
    return table_of(("", *terms, "needs", *generates, "fits"), rows, title=title, box=None)


def advice(job: JobSizes, gpus: GPUs) -> list[str]:
    """Return the proposal in words and as arguments."""
    copies = 2 if job.reference and not job.lora else 1
    loaded = job.whole.parameters * copies + sum(teacher.parameters for teacher in job.teachers)
    lines = [
        f"{FREE:.0%} of each GPU is left free. The first process needs "
        f"{loaded * 4 / GIB:.1f} GiB of host memory to load (with DDP each process does)."
    ]
    if job.engine.share:
        lines.append(
            "sequences = completions of full length that vLLM generates at once on one GPU; a plan fits only if they "
            f"are at least {LEAST_SEQUENCES} or a whole rollout. Otherwise generate on servers of several GPUs "
            "(VLLMServerEngine)."
        )
    proposal = job.proposal(gpus)
    if proposal is None:
        return [*lines, "Nothing fits; the engine or a micro-batch alone may need too much. Try more or larger GPUs."]
    if proposal.host:
        lines.append(f"Offloading keeps {proposal.host / GIB:.0f} GiB in the CPUs' memory, over all processes.")
    return [*lines, f"Proposal: {proposal.name} ({proposal.needs / GIB:.1f} GiB) {job.arguments(proposal)}".rstrip()]
