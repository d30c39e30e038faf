"""Compares the answers of an exported model in lit-rlvr, transformers, vLLM and lm-evaluation-harness.

Each program answers the same questions greedily in the same data type, with the files of docs/outside.md: transformers
one question at a time, the others in batches. The table says how many answers are right and, against transformers, how
many texts and how many final numbers are equal. lm-evaluation-harness judges its own answers, by the task file's rule;
the script stops if last_number.py judges one of them otherwise. A program that is not installed is left out.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from common import make_parser, print_result, print_table, say

from lit_rlvr.common.packages import is_installed
from lit_rlvr.datamodules.text_math import read_svamp

ROOT = Path(__file__).parent.parent
SVAMP = ROOT / "datamodules/data/svamp/validation.jsonl"
Texts = dict[str, str]
"""Question id -> completion."""


def parse() -> Any:
    parser = make_parser(__doc__)
    parser.add_argument("--model", type=Path, default=Path("exported"), help="a folder that lit-rlvr export wrote")
    parser.add_argument("--out", type=Path, default=Path("runs/outside"), help="folder for what the programs write")
    parser.add_argument("--questions", type=int, default=60, help="questions of SVAMP, which ships with lit-rlvr")
    parser.add_argument("--max-tokens", type=int, default=64, help="longest completion")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="what all compute in")
    return parser.parse_args()


def page_files() -> dict[str, str]:
    """Return the files that docs/outside.md shows, by the name in their first line."""
    return dict(re.findall(r"```\w+\n# ([\w.]+)\n(.*?)```", (ROOT / "docs/outside.md").read_text(), re.S))


def write_files(options: Any) -> list[dict[str, str]]:
    """Write the page's files and the questions to the output folder; return the questions."""
    options.out.mkdir(parents=True)
    for name, text in page_files().items():
        text = re.sub(r"max_gen_toks: \d+", f"max_gen_toks: {options.max_tokens}", text)
        (options.out / name).write_text(text)
    rows = [json.loads(line) for line in SVAMP.read_text().splitlines()[: options.questions]]
    asked = [(row["ID"], *read_svamp(row)) for row in rows]
    questions = [{"id": name, "question": text, "answer": answer} for name, text, answer in asked]
    (options.out / "questions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in questions))
    return questions


def run_module(options: Any, *arguments: object) -> None:
    """Run a Python module in the output folder; its output goes to stderr."""
    subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=options.out, stdout=sys.stderr, check=True)


def chat(question: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"role": "user", "content": question["question"]}]


def ask_transformers(options: Any, questions: list[dict[str, str]]) -> Texts:
    """Answer one question at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    texts = {}
    for question in questions:
        inputs = tokenizer.apply_chat_template(
            chat(question), add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        output = model.generate(**inputs, do_sample=False, max_new_tokens=options.max_tokens)
        texts[question["id"]] = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def ask_vllm(options: Any, questions: list[dict[str, str]]) -> Texts:
    """Answer all questions at once."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(options.model), dtype=options.dtype, gpu_memory_utilization=0.2, max_model_len=1024, enforce_eager=True
    )
    sampling = SamplingParams(temperature=0, max_tokens=options.max_tokens)
    outputs = llm.chat([chat(question) for question in questions], sampling, use_tqdm=False)
    llm.llm_engine.engine_core.shutdown()  # its processes would last as long as this one
    return {question["id"]: output.outputs[0].text for question, output in zip(questions, outputs, strict=True)}


def ask_ours(options: Any, questions: list[dict[str, str]]) -> Texts:
    """Answer by `lit-rlvr evaluate` with the page's suite."""
    run_module(
        options, "lit_rlvr", "evaluate", "--model", options.model, "--suite", "suite.yaml", "--samples", 0,
        "--max_tokens", options.max_tokens, "--dtype", options.dtype, "--out", "lit-rlvr",
    )  # fmt: skip
    rows = map(json.loads, (options.out / "lit-rlvr/completions.jsonl").read_text().splitlines())
    return {row["id"]: row["completion"] for row in rows}


def ask_harness(options: Any, questions: list[dict[str, str]]) -> Texts:
    """Answer by lm-evaluation-harness with the page's task file.

    Raises:
        SystemExit: last_number.py judges an answer otherwise.
    """
    run_module(
        options, "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={options.model},dtype={options.dtype}",
        "--include_path", ".", "--tasks", "questions", "--apply_chat_template", "--batch_size", 8, "--device", "cpu",
        "--log_samples", "--output_path", "lm-eval",
    )  # fmt: skip
    (file,) = (options.out / "lm-eval").rglob("samples_questions_*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    judge = load_rule(options.out)
    for row in rows:
        if bool(row["exact_match"]) != (judge(row["resps"][0][0]) == judge(row["doc"]["answer"])):
            raise SystemExit(f"lm-eval judges the answer to {row['doc']['id']} otherwise than last_number.py")
    return {row["doc"]["id"]: row["resps"][0][0] for row in rows}


def load_rule(folder: Path) -> Callable[[str], str | None]:
    """Return `last_number` from the page's last_number.py."""
    names: dict[str, Any] = {}
    exec((folder / "last_number.py").read_text(), names)
    return names["last_number"]


PROGRAMS: dict[str, tuple[str, Callable[[Any, list[dict[str, str]]], Texts]]] = {
    "transformers": ("transformers", ask_transformers),
    "vLLM": ("vllm", ask_vllm),
    "lit-rlvr evaluate": ("lit_rlvr", ask_ours),
    "lm-evaluation-harness": ("lm_eval", ask_harness),
}
"""Program -> its module and the function that asks it."""


def main() -> None:
    options = parse()
    if options.out.exists():
        raise SystemExit(f"--out: {options.out} exists; choose another folder")
    options.model, options.out = options.model.resolve(), options.out.resolve()
    questions = write_files(options)
    texts: dict[str, Texts] = {}
    for name, (module, ask) in PROGRAMS.items():
        if not is_installed(module):
            say(f"{name} is not installed and left out")
            continue
        texts[name] = {key: text.strip() for key, text in ask(options, questions).items()}
        say(f"{name}: {len(texts[name])} answers")
        (options.out / "texts.json").write_text(json.dumps(texts, indent=1) + "\n")
    rule = load_rule(options.out)
    numbers = {name: {key: rule(text) for key, text in found.items()} for name, found in texts.items()}
    ids, first = [question["id"] for question in questions], next(iter(texts))
    right = {question["id"]: rule(question["answer"]) for question in questions}

    def count(found: Mapping[str, Any], other: Mapping[str, Any]) -> int:
        return sum(found[key] == other[key] for key in ids)

    rows = [(n, count(numbers[n], right), count(texts[n], texts[first]), count(numbers[n], numbers[first]))
            for n in texts]  # fmt: skip
    differ = [key for key in ids if len({found[key] for found in numbers.values()}) > 1]
    print_table(("", f"right of {len(ids)}", f"same text as {first}", "same number"), rows)
    print(f"all agree on the number: {len(ids) - len(differ)} of {len(ids)}; not on {', '.join(differ) or 'none'}")
    print_result(
        questions=len(ids), dtype=options.dtype, max_tokens=options.max_tokens, agree=len(ids) - len(differ),
        right={row[0]: row[1] for row in rows}, same_text={row[0]: row[2] for row in rows},
        same_number={row[0]: row[3] for row in rows}, left_out=[name for name in PROGRAMS if name not in texts],
    )  # fmt: skip


if __name__ == "__main__":
    main()
