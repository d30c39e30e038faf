"""Write the tables of research/conformance.md: who passes the kit, and the published formulas.

    python docs/scripts/conformance_page.py

lit-rlvr and the installed TRL are measured here; of verl, `tests/conformance/freeze_verl.py` stored what it measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from lit_rlvr import advantages, algorithms
from lit_rlvr.commands.check.replay import FrozenBatch, algorithm_step
from lit_rlvr.conformance import Batch, trl
from lit_rlvr.conformance.batches import load_data
from lit_rlvr.conformance.functions import check_estimator, check_loss, check_step
from lit_rlvr.conformance.properties import Finding, Step
from lit_rlvr.conformance.published import ADVANTAGES, LOSSES, Published

PAGE = Path(__file__).parents[2] / "research/conformance.md"
OURS = [name for name in LOSSES if "/" not in name]
"""The published losses with a class of ours, by its name."""

TRL = "TRL " + ".".join(version("trl").split(".")[:2])
EQUAL_SIZES = "a mean over the rows of a micro-batch, divided by their number: right if all have as many rows"
OVERFLOW = "`exp` of a log-ratio above 88 overflows"
SAMPLE_STD = "the deviation is the sample's, plus 1e-4 (TRL) or 1e-6 (verl): 13 % smaller advantages with G = 4"
PER_MICROBATCH = "the token mean of each micro-batch, then their mean"
SUM = "a sum over completions in place of the mean"
EMPTY_ROWS = "completions without a token are not counted in B"


@dataclass(frozen=True)
class Row:
    """A function that was measured.

    Args:
        failed: the properties that it lacks.
        note: why, as a convention.
    """

    framework: str
    setting: str
    published: str
    failed: tuple[str, ...]
    note: str = "-"


def failed(findings: list[Finding]) -> tuple[str, ...]:
    return tuple(finding.name for finding in findings if not finding.ok)


def our_findings(name: str) -> list[Finding]:
    """Measure our class for a published loss."""

    def prepare(batch: Batch) -> Step:
        return algorithm_step(FrozenBatch(**vars(batch)), getattr(algorithms, name)(), batch.advantages)

    return check_step(prepare, name)


def our_estimator(name: str) -> Callable[..., Tensor]:
    """Return our advantage of a name as a plain function."""
    return lambda rewards, **others: advantages.REGISTRY[name]()(advantages.GroupBatch(rewards, **others))


def our_rows() -> Iterator[Row]:
    for name in OURS:
        yield Row("lit-rlvr", name, name, failed(our_findings(name)))
    for name in ADVANTAGES:
        yield Row("lit-rlvr", name, name, failed(check_estimator(our_estimator(name), name)))


def trl_rows() -> Iterator[Row]:
    one_step = "N is right if a generation batch is one optimizer step; of several, each has their mean N"
    for name, loss, published, note in (
        ("grpo", trl.grpo, "GRPO", f"{EQUAL_SIZES}; {OVERFLOW}"),
        ("dapo", trl.dapo, "DAPO", f"{one_step}; {OVERFLOW}"),
        ("bnpo", trl.bnpo, "DAPO", f"{PER_MICROBATCH}; {OVERFLOW}"),
        ("dr_grpo", trl.dr_grpo, "DrGRPO", f"{EQUAL_SIZES}; {OVERFLOW}"),
        ("cispo", trl.cispo, "CISPO", one_step),
        ("sapo", trl.sapo, "SAPO", f"{EQUAL_SIZES}; {OVERFLOW}"),
        ("vespo", trl.vespo, "VESPO", one_step),
        ("luspo, importance_sampling_level: sequence", trl.luspo, "LUSPO", f"{EQUAL_SIZES}; {OVERFLOW}"),
        ("grpo, importance_sampling_level: sequence", trl.gspo, "GSPO", f"{EQUAL_SIZES}; {OVERFLOW}"),
    ):
        yield Row(TRL, f"loss_type: {name}", published, failed(check_loss(loss, published)), note)


VERL_NOTES = {
    "legacy token-mean": PER_MICROBATCH,
    "legacy cispo": PER_MICROBATCH,
    "legacy gpg": PER_MICROBATCH,
    "legacy seq-mean-token-mean": f"{EQUAL_SIZES}; {EMPTY_ROWS}",
    "legacy gspo": f"{EQUAL_SIZES}; {EMPTY_ROWS}",
    "legacy sapo": f"{EQUAL_SIZES}; {EMPTY_ROWS}",
    "legacy geo_mean": f"{EQUAL_SIZES}; {OVERFLOW}",
    "engine geo_mean": f"the means of the micro-batches are added up: more of them, a larger loss; {OVERFLOW}",
    "legacy seq-mean-token-sum-norm": f"{SUM}, divided by the padded width and the number of micro-batches",
    "engine seq-mean-token-sum-norm": f"{SUM}; it is not multiplied by the number of ranks, over which gradients are "
    "averaged",
    "grpo": SAMPLE_STD,
    "gpg": "`alpha` counts completions whose reward is not 0, in place of groups whose rewards differ",
}
VERL = {
    "losses": {
        "token-mean": "DAPO",
        "seq-mean-token-mean": "GRPO",
        "seq-mean-token-sum-norm": "DrGRPO",
        "gspo": "GSPO",
        "cispo": "CISPO",
        "sapo": "SAPO",
        "geo_mean": "GMPO",
        "gpg": "GPG",
    },
    "advantages": {
        "grpo": "grpo",
        "grpo, norm_adv_by_std_in_grpo: false": "dr_grpo",
        "rloo": "rloo",
        "gpg": "gpg",
    },
}
"""Setting -> the published loss or advantage."""


def verl_rows() -> Iterator[Row]:
    stored = load_data("verl")
    for key, measured in stored.items():
        if not key.startswith("measured/"):
            continue
        _, kind, name = key.split("/")
        findings = [
            Finding(str(prop), float(value), float(tolerance), "")
            for prop, value, tolerance in zip(
                stored[f"properties/{kind}"], measured, stored[f"tolerances/{kind}"], strict=True
            )
        ]
        worker, _, setting = name.partition(" ") if kind == "losses" else ("", "", name)
        who = f"verl, {worker} workers" if worker else "verl"
        yield Row(who, setting, VERL[kind][setting], failed(findings), VERL_NOTES.get(name, "-"))


def who_passes() -> str:
    """Return the table of all rows; those that differ in the same properties for the same reason share a line."""
    lines: dict[tuple[str, tuple[str, ...], str], list[str]] = {}
    for row in (*our_rows(), *trl_rows(), *verl_rows()):
        same = row.setting == row.published
        text = f"`{row.setting}`" if same else f"`{row.setting}` as {row.published}"
        lines.setdefault((row.framework, short_names(row.failed), row.note), []).append(text)
    cells = [(who, ", ".join(names), ", ".join(lacks) or "none", note) for (who, lacks, note), names in lines.items()]
    return table(("framework", "loss or advantage", "fails", "convention"), cells)


def short_names(properties: tuple[str, ...]) -> tuple[str, ...]:
    """Return the properties, with the values on all batches as one."""
    return tuple(dict.fromkeys("values" if name.startswith("values") else name for name in properties))


def published(known: dict[str, Published]) -> str:
    cells = [
        (f"`{name}`", f"`{one.formula}`" if "/" not in name else one.formula, one.source) for name, one in known.items()
    ]
    return table(("name", "formula", "source"), cells)


def table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("| --- ", "|---").replace("--- |", "---|")


def rendered() -> str:
    """Return the page with the first table after each of these headings made again."""
    text = PAGE.read_text()
    for heading, made in (
        ("Who passes", who_passes()),
        ("The losses", published(LOSSES)),
        ("The advantages", published(ADVANTAGES)),
    ):
        found = re.compile(rf"(## {heading}\n(?:(?!\|).*\n)*)(?:\|.*\n)+")
        assert found.search(text), heading
        text = found.sub(lambda match, made=made: match[1] + made, text, count=1)
    return text


if __name__ == "__main__":
    PAGE.write_text(rendered())
