"""Write what the documents say of each algorithm, from its record `lit_rlvr/algorithms/NAME.toml` and its class.

    python docs/scripts/algorithm_pages.py

These are the table of docs/algorithms/index.md, the YAML, the facts and the curve of each page next to it, README's
table of losses by ratio, the losses in docs/coming_from_trl.md, and docs/api/algorithms.md. The curves come from the
recorded runs in research/results. Everything else on a page is written by hand and stays.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from statistics import mean
from textwrap import fill
from typing import Any

import yaml
from docstring_parser import parse
from options_page import options

from lit_rlvr import advantages, algorithms
from lit_rlvr.common.init_arguments import class_default, settings_of
from lit_rlvr.conformance.published import RECORDS, AlgorithmRecord

sys.path.insert(0, str(Path(__file__).parents[2] / "research"))
from findings import learning_rates, read

DOCS = Path(__file__).parent.parent
PAGES = DOCS / "algorithms"
TABLE = re.compile(r"(?:^\|.*\n)+", re.M)
TOP = re.compile(r"\A(# [^\n]*\n\n)(?:```yaml\n.*?```\n\n)?", re.S)
"""The title of a page, and its YAML."""
END = re.compile(r"^At its best of three.*?\(index\.md#the-curves\)\)\.\n", re.M | re.S)
STUDY, MORE = "losses_best", "losses_more"
"""The studies of every loss at its best learning rate."""
RATIOS = (
    "per token",
    "per completion",
    "off-policy, per token",
    "off-policy, per completion",
    "none",
    "none: distillation",
)
"""The ratios of probabilities that losses have, in the order in which tables show them."""


@dataclass(frozen=True)
class Method:
    """A published method.

    Args:
        page: the name of its page, without ".md".
        loss: the class that runs it, which may be another method's.
        advantages: registered names; the first one is the method's, others are variants of the same paper.
        study: the file in research/results with recorded runs of it; None = no run is recorded.
        record: the record of its class; None = the method is an advantage under another method's loss.
    """

    page: str
    loss: str
    advantages: tuple[str, ...]
    study: str | None = None
    record: AlgorithmRecord | None = None

    @property
    def owns_loss(self) -> bool:
        return self.record is not None

    @property
    def ratio(self) -> str:
        """One of `RATIOS`: that of its loss; off-policy if it is to the probability when the token was sampled."""
        if self.record is not None and self.record.ratio:
            return self.record.ratio
        loss = getattr(algorithms, self.loss)
        if not loss.has_ratio:
            return "none: distillation" if self.advantages == ("none",) else "none"
        unit = "per completion" if loss.sequence_level else "per token"
        return f"off-policy, {unit}" if loss.uses_rollout else unit

    @property
    def estimators(self) -> list[type[advantages.Advantage]]:
        return [advantages.REGISTRY[name] for name in self.advantages]

    @property
    def owns_advantage(self) -> bool:
        """False if the method takes another method's advantage, which has a page of its name."""
        return self.advantages[0] == self.page

    @property
    def classes(self) -> list[type]:
        """Return the method's own classes."""
        loss = [getattr(algorithms, self.loss)] if self.owns_loss else []
        return [*loss, *self.estimators] if self.owns_advantage else loss


def method_of(record: AlgorithmRecord) -> Method:
    """Return the method of an algorithm, with its class's own advantage."""
    default = inspect.signature(getattr(algorithms, record.loss)).parameters["advantage"].default
    return Method(record.page, record.loss, (default,), record.study, record)


CONTROLS = ("positive_dominant", "negative_dominant", "hard_focused", "easy_focused")
LOSSES = sorted(map(method_of, RECORDS), key=lambda method: RATIOS.index(method.ratio))
"""The algorithms with a loss of their own by its ratio, and the earliest paper first."""
METHODS = (
    *LOSSES,
    Method("agrae", "GRPO", ("agrae", *CONTROLS), "agrae"),
    Method("rloo", "Reinforce", ("rloo",)),
    Method("opo", "Reinforce", ("opo",)),
    Method("maxrl", "GRPO", ("maxrl",)),
    Method("pass_at_k", "GRPO", ("pass_at_k", "grpo_passk")),
    Method("reinforce_pp", "GRPO", ("reinforce_pp",)),
    Method("gdpo", "GRPO", ("gdpo",)),
    Method("gigpo", "GRPO", ("gigpo", "step_returns")),
)
"""The algorithms, by their records, and the advantages that are methods under another method's loss."""


def description(cls: type) -> str:
    """Return a class's docstring before its source and arguments, as one line."""
    parsed = parse(inspect.getdoc(cls) or "")
    text = f"{parsed.short_description} {parsed.long_description or ''}".partition("Source:")[0]
    return " ".join(text.split()).replace("|", "\\|")


def papers(method: Method) -> list[str]:
    """Return links to papers by their numbers: the record's, and those that the docstrings of advantages name."""
    named = method.estimators if method.owns_advantage else []
    numbers = [*(method.record.arxiv if method.record else [])]
    numbers += [number for cls in named for number in re.findall(r"arXiv (\d+\.\d+)", inspect.getdoc(cls) or "")]
    return [f"[{number}](https://arxiv.org/abs/{number})" for number in dict.fromkeys(numbers)]


def needs(method: Method) -> str:
    """Return what a run has to provide, by what the classes say."""
    loss, advantage = getattr(algorithms, method.loss), method.estimators[0]()
    found = {
        f"G >= {advantage.min_group}": advantage.min_group > 1,
        "several updates per rollout (with one it is GRPO)": loss.needs_updates,
        "one update per rollout": not loss.has_ratio,
        "completions of a reference model": advantage.reference_completions is not None,
        "several rewards": advantage.needs_parts,
        "a reference model for the KL term": class_default(loss, "kl").coef > 0,
    }
    return "; ".join(need for need, is_needed in found.items() if is_needed) or "-"


def elsewhere(method: Method) -> tuple[str, str]:
    """Return the settings of TRL and verl: an advantage's are in the row of docs/coming_from_trl.md that names it."""
    if method.record:
        return method.record.trl, method.record.verl
    name = method.advantages[0]
    for line in (DOCS / "coming_from_trl.md").read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) > 3 and cells[2].startswith(f"`{name}`"):
            return cells[0], cells[1]
    return "-", "-"


def own_options(cls: type) -> dict[str, Any]:
    """Return a class's options that its base class lacks, or has with another default, and their defaults."""
    base = set(options(algorithms.RLVRModule)) if issubclass(cls, algorithms.RLVRModule) else set()
    names = [row[0] for row in options(cls) if row not in base and row[0] != "advantage"]
    return {name: default_of(class_default(cls, name)) for name in names}


def default_of(value: Any) -> Any:
    """Return a default as a config writes it; of a group of options those that differ from the group's own defaults."""
    if not is_dataclass(value):
        return settings_of(value)
    usual = vars(type(value)())  # type: ignore[operator]
    group = {name: one for name, one in vars(value).items() if name != "given"}
    differing = {name: one for name, one in group.items() if one != usual[name]}
    return settings_of(differing or group)


def shown_classes(method: Method) -> list[type]:
    """Return the classes whose options the YAML of a page has: the loss, and the advantage if both are the method's."""
    if not method.owns_advantage:
        return method.classes
    return [getattr(algorithms, method.loss), method.estimators[0]]


def config(method: Method) -> str:
    """Return the YAML that a page begins with: the method's classes, and their own options with their defaults."""
    arguments = own_options(getattr(algorithms, method.loss)) if method.owns_loss else {}
    if method.owns_advantage:
        estimator = method.estimators[0]
        arguments["advantage"] = {"class_path": estimator.__name__, "init_args": own_options(estimator)}
        if not arguments["advantage"]["init_args"]:
            arguments["advantage"] = method.advantages[0]
    model = {"class_path": method.loss, "init_args": arguments} if arguments else {"class_path": method.loss}
    text = yaml.safe_dump({"model": model}, sort_keys=False, default_flow_style=None, width=100)
    return f"```yaml\n{text}```\n\n"


def facts(method: Method) -> Iterator[tuple[str, str]]:
    """Yield the rows of the table on a method's page."""
    loss = getattr(algorithms, method.loss)
    if method.owns_loss:
        yield "loss", f"[`{method.loss}`](../api/algorithms.md): {description(loss)}"
    for name, cls in zip(method.advantages, method.estimators, strict=True):
        elsewhere_too = not method.owns_advantage and any(name == other.page for other in METHODS)
        text = f", as for [{title(name)}]({name}.md)" if elsewhere_too else f" (`{cls.__name__}`): {description(cls)}"
        yield "advantage", f"[`{name}`](../api/advantages.md){text}"
    yield "paper", method.record.paper if method.record else f"arXiv {', '.join(papers(method))}"
    yield "needs", needs(method)
    for cls in method.classes:
        key = "model" if issubclass(cls, algorithms.RLVRModule) else "modeladvantage"
        own = own_options(cls)
        if not own:
            continue
        shown = ", ".join(f"`{name}: {json.dumps(value)}`" for name, value in own.items())
        where = "above" if cls in shown_classes(method) else shown
        yield f"options of `{cls.__name__}`", f"{where} ([meaning](../reference.md#{key}))"
    trl, verl = elsewhere(method)
    yield "in TRL", trl
    yield "in verl", verl


def title(page: str) -> str:
    """Return the heading of a page."""
    return page_text(page).partition("\n")[0].removeprefix("# ")


def page_text(page: str) -> str:
    """Return a page as it is, or the beginning of a new one for an algorithm that has none yet."""
    path = PAGES / f"{page}.md"
    if path.is_file():
        return path.read_text()
    (record,) = [record for record in RECORDS if record.page == page]
    return f"# {record.title}\n\n| | |\n"


def index_row(method: Method, advice: str) -> str:
    makes = f"`{method.loss}`" if method.owns_loss else "any"
    names = ", ".join(f"`{name}`" for name in method.advantages)
    return f"| [{title(method.page)}]({method.page}.md) | {makes} | {names} | {advice} |"


def index_table() -> str:
    """Return the table by which a reader chooses, with the advice that people wrote into it: its last three columns."""
    header = ("method", "class", "advantage", "for", "costs", "not for")
    advice = dict(re.findall(r"^\| \[[^]]+\]\((\w+)\.md\) \| [^|]+ \| [^|]+ \| (.+) \|$", page_text("index"), re.M))
    rows = [index_row(method, advice.get(method.page, "- | - | -")) for method in METHODS]
    return "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *rows]) + "\n"


def rendered(page: str) -> str:
    """Return a page with its YAML and its first table made again."""
    if page == "index":
        return TABLE.sub(lambda _: index_table(), page_text(page), count=1)
    (method,) = [method for method in METHODS if method.page == page]
    table = "| | |\n|---|---|\n" + "".join(f"| {name} | {text} |\n" for name, text in facts(method))
    text = TOP.sub(lambda top: top[1] + config(method), page_text(page), count=1)
    text = TABLE.sub(lambda _: table, text, count=1)
    return END.sub(lambda _: end(method), text) if method.study in (STUDY, MORE) else text


def end(method: Method) -> str:
    """Return the sentence on a loss's accuracy at the end of its runs at its best learning rate."""
    name, study = method.page, method.study
    assert study is not None
    tasks = read(study)["tasks"].values()
    ours, grpo = (mean(task["cells"][cell]["mean"] for task in tasks) for cell in (name, "grpo"))
    theirs = "" if name == "grpo" else f", GRPO at {grpo:.3f}"
    text = (
        f"At its best of three learning rates, {learning_rates(study)[name]:g}, {'GRPO' if name == 'grpo' else 'it'} "
        f"ends at {ours:.3f} on held-out sums{theirs} ([how to read the curve](index.md#the-curves))."
    )
    return fill(text, 120, break_on_hyphens=False) + "\n"


def draw(method: Method) -> None:
    """Draw the accuracy of a method's recorded runs next to GRPO's in the same study."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = read(method.study)
    (unit, budget), *_ = results["budget"].items()
    tasks = [task["cells"] for task in results["tasks"].values()]
    names = method.advantages if method.page not in tasks[0] or len(method.advantages) > 1 else (method.page,)
    figure, axis = pyplot.subplots(figsize=(5.6, 3.2), constrained_layout=True)
    middles = [budget * (quarter + 0.5) / 4 for quarter in range(4)]
    for name in dict.fromkeys(("grpo", *names)):
        runs = [run["quarters"]["rollout/accuracy"] for cells in tasks for run in cells[name]["by_seed"].values()]
        by_quarter = list(zip(*runs, strict=True))
        (line,) = axis.plot(
            middles,
            [mean(values) for values in by_quarter],
            marker="o",
            label=name.replace("_", " "),
            color="0.45" if name == "grpo" else None,
        )
        axis.fill_between(
            middles,
            [min(v) for v in by_quarter],
            [max(v) for v in by_quarter],
            alpha=0.15,
            color=line.get_color(),
            linewidth=0,
        )
    axis.set(xlabel={"steps": "optimizer steps"}.get(unit, unit), ylabel="share of right answers", xlim=(0, budget))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(PAGES / f"{method.page}.png", dpi=80)
    pyplot.close(figure)


def with_table(file: Path, heading: str, rows: list[str]) -> str:
    """Return a document with other rows in the first table below a heading; the table's two first lines stay."""
    before, found, after = file.read_text().partition(heading)
    assert found, f"{file}: {heading}"
    return before + found + TABLE.sub(lambda old: "".join(old[0].splitlines(True)[:2]) + "".join(rows), after, count=1)


def api_page(file: Path) -> str:
    """Return the Python reference with an entry for each algorithm, after those of their base classes."""
    entries = []
    for method in LOSSES:
        own = vars(getattr(algorithms, method.loss))
        members = ", ".join(name for name in ("objective", "select_tokens", "observe") if name in own)
        entries.append(f"\n::: lit_rlvr.algorithms.{method.loss}\n    options:\n      members: [{members}]\n")
    base = "".join(re.split(r"(?=\n:::)", file.read_text())[:3])
    return base + "".join(entries)


def documents() -> dict[Path, str]:
    """Return every file that this script writes, with its text."""
    readme, trl, api = DOCS.parent / "README.md", DOCS / "coming_from_trl.md", DOCS / "api/algorithms.md"
    by_ratio: dict[str, list[str]] = {}
    for method in LOSSES:
        by_ratio.setdefault(method.ratio, []).append(f"`{method.loss}`")
    listed = [f"| {ratio} | {', '.join(losses)} |\n" for ratio, losses in by_ratio.items()]
    records = [method.record for method in LOSSES if method.record and method.record.here]
    named = [f"| {record.trl} | {record.verl} | {record.here} | {record.same} |\n" for record in records]
    return {
        **{PAGES / f"{page}.md": rendered(page) for page in ("index", *(method.page for method in METHODS))},
        readme: with_table(readme, "\n## Algorithms\n", listed),
        trl: with_table(trl, "\n## Loss\n", named),
        api: api_page(api),
    }


def main() -> None:
    for path, text in documents().items():
        path.write_text(text)
    for method in METHODS:
        if method.study is not None:
            draw(method)


if __name__ == "__main__":
    main()
