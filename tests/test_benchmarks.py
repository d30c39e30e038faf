"""Every benchmark runs at a tiny size, and its last line has numbers that make sense."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
from tiny_runs import child_environment

FOLDERS = [Path(__file__).parent.parent / name for name in ("benchmarks", "research")]
ELSEWHERE = {
    "findings": "test_findings.py", "gpu": "test_gpu_benchmark.py", "outside": "test_docs.py",
    "peak_memory": "commands/test_plan.py",
}  # fmt: skip
"""Benchmark -> the file of its tests."""
TINY = ("--model", "tiny-llama", "--matmul-sizes", "256")
FEW = ("--prompts", "2", "--group-size", "2", "--max-tokens", "8")

Benchmark = Callable[..., dict[str, Any]]


@pytest.fixture
def benchmark(run_folder: Path) -> Benchmark:
    """Runs a benchmark in a folder that holds `tiny.yaml`; returns the numbers of its last line."""

    def call(name: str, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, *(path for folder in FOLDERS if (path := folder / f"{name}.py").is_file()), *arguments],
            env=child_environment(), cwd=run_folder, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        assert found["benchmark"] == name and found["machine"]["cores"] > 0
        return found

    return call


def test_every_benchmark_has_a_tiny_run() -> None:
    """The rows of both READMEs' tables, each run below or in another file."""
    tables = "".join((folder / "README.md").read_text() for folder in FOLDERS)
    listed = set(re.findall(r"^\| `(\w+)\.py", tables, re.M))
    files = [path for folder in FOLDERS for path in folder.glob("*.py")]
    starts = {path.stem for path in files if "make_parser(__doc__" in path.read_text()}
    here = set(re.findall(r'benchmark\(\n? *"(\w+)"', Path(__file__).read_text()))
    assert listed == starts | {"findings"} == here | ELSEWHERE.keys()
    for name, file in ELSEWHERE.items():
        assert name in (Path(__file__).parent / file).read_text()


@pytest.mark.slow
def test_aapo_runs(benchmark: Benchmark) -> None:
    """The pool is full after the first of three visits; fresh references are sampled at each."""
    found = benchmark("aapo", "--config", "tiny.yaml", "--prompts", "16", "--rollouts", "3")
    assert found["visits"] == 3
    reference = {name: run["reference"] for name, run in found["runs"].items()}
    assert reference["GRPO"] == 0 and reference["AAPO, fresh"] > 2 * reference["AAPO, pool"]
    assert all(run["ratio"] > 0 for run in found["runs"].values())


@pytest.mark.slow
def test_ablation_runs(benchmark: Benchmark) -> None:
    """15 of 16 groups are dead, so skipping them saves most of a step."""
    found = benchmark(
        "ablation", "--model", "tiny-llama", "--precisions", "fp32", "--techniques", "skipping dead groups",
        "--groups", "16", "--dead", "15", "--completion-tokens", "32", "--steps", "2", "--rounds", "1",
    )  # fmt: skip
    assert found["variants"]["fp32, without skipping dead groups"]["factor"] > 2


@pytest.mark.slow
def test_algorithms_runs(benchmark: Benchmark, run_folder: Path) -> None:
    found = benchmark(
        "algorithms", "--config", "tiny.yaml", "--algorithms", "GRPO + A-GRAE", "--rollouts", "2", "--out", "out"
    )
    run = found["runs"]["GRPO + A-GRAE"]
    assert run["steps"] == 4 and run["train_seconds"] > 0
    assert (run_folder / "out/algorithms.png").is_file()


@pytest.mark.slow
def test_asynchrony_runs(benchmark: Benchmark, run_folder: Path) -> None:
    found = benchmark(
        "asynchrony", "--models", "Qwen2.5-1.5B", "--staleness", "0", "2", "--train-gpus", "2", "3", "--prompts", "16",
        "--steps", "4", "--warm-up", "2", "--out", "out.png",
    )  # fmt: skip
    runs = found["models"]["Qwen2.5-1.5B"]["staleness"]
    assert runs["2"]["speedup"] > 1 == runs["0"]["speedup"] and runs["2"]["max_staleness"] <= 2
    assert (run_folder / "out.png").is_file()


@pytest.mark.slow
def test_attention_runs(benchmark: Benchmark) -> None:
    found = benchmark(
        "attention", "--device", "cpu", "--groups", "2", "--group-size", "2", "--prompt", "8", "--mean", "8",
        "--rounds", "1",
    )  # fmt: skip
    assert 0 < found["error"] < 1e-5


@pytest.mark.slow
def test_mechanism_runs(benchmark: Benchmark, run_folder: Path) -> None:
    """GMPO differs from GRPO in how it clips, PositiveDominant in the weights of the groups."""
    found = benchmark(
        "mechanism", "--config", "tiny.yaml", "--learning-rates", "1e-4", "--updates", "2", "--rollouts", "2",
        "--prompts", "4", "--every", "2", "--warm-starts", "0", "--out", "out",
    )  # fmt: skip
    setting = found["settings"]["0.0001, 2 x 4"]
    losses = setting["losses"]
    assert setting["measured"] == 2 and 0 < setting["live_groups"] <= 4
    assert losses["gmpo"]["cosine"] > 0.99 > losses["positive_dominant"]["cosine"]
    assert all(abs(loss["cosine"]) <= 1 and loss["norm"] > 0 for loss in losses.values())
    assert (run_folder / "out/mechanism.png").is_file()


@pytest.mark.slow
def test_memory_runs(benchmark: Benchmark) -> None:
    found = benchmark(
        "memory", "--models", "30M", "--strategies", "FSDP2", "--precisions", "fp32", "--groups", "1"
    )  # fmt: skip
    ((*_, measured, formula, ratio),) = found["rows"]
    assert measured > 100 and formula > 100 and 0.5 < ratio < 1.5


@pytest.mark.slow
def test_prefix_runs(benchmark: Benchmark) -> None:
    """Eight completions of 4 tokens behind 64 tokens: the prompt is nearly all of the work."""
    found = benchmark(
        "prefix", "--longest-smollm2", "0", "--longest", "64", "--prompt-tokens", "64", "--group-sizes", "2",
        "--completion-tokens", "4", "--image-tokens", "16", "--rounds", "1", "--matmul-sizes", "256",
    )  # fmt: skip
    ratios = {(model, group): ratio for model, _, group, *_, ratio in found["points"]}
    assert ratios["random Llama, 30 M", 8] > 1.5 and ratios["random Qwen2.5-VL, 30 M", 8] > 1.5
    assert len(ratios) == 3


@pytest.mark.slow
def test_answers(benchmark: Benchmark, tmp_path: Path) -> None:
    """The checkers of answers, on three of them."""
    (tmp_path / "answers.jsonl").write_text(
        '{"reference": "5", "completion": "\\\\boxed{5 kg}", "right": true}\n'
        '{"reference": "5 cm", "completion": "\\\\boxed{5 m}", "right": false}\n'
        '{"reference": "ABC", "completion": "\\\\boxed{CBA}", "right": false}\n'
    )
    found = benchmark("answers", "answers.jsonl")
    assert (found["right"], found["wrong"]) == (1, 2)
    assert (found["MathAnswer"]["missed"], found["MathAnswer"]["paid"]) == (0, 0)
    assert found["Math-Verify"]["paid"] > 0, "it reads words as products of letters"


@pytest.mark.slow
def test_real_sets(benchmark: Benchmark, tmp_path: Path) -> None:
    write_sets(tmp_path / "sets")
    found = benchmark("real_sets", "sets")
    assert len(found["sets"]) == 6
    for each in found["sets"]:
        assert (each["rows"], each["right_by_its_own"], each["right_by_the_next"]) == (3, 1, 0)


def write_sets(folder: Path) -> None:
    """Write three rows for each of the published files."""
    for name in ("gsm8k/train.jsonl", "gsm8k/test.jsonl", "math/train.parquet", "math/test.parquet",
                 "math500/test.jsonl", "svamp/svamp.jsonl"):  # fmt: skip
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = [
            {"question": f"What is {k} + 1?", "answer": f"One more.\n#### {k + 1}"} if "gsm8k" in name
            else {"problem": f"What is {k} + 1?", "solution": f"\\boxed{{{k + 1}}}", "answer": str(k + 1)}
            for k in range(3)
        ]  # fmt: skip
        if path.suffix == ".parquet":
            pandas.DataFrame(rows).to_parquet(path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
def test_replay_trl(benchmark: Benchmark) -> None:
    found = benchmark("replay_trl", "--rollouts", "1", "--prompts", "2", "--group-size", "4")
    assert len(found["results"]) == 4
    for case, differences in found["results"].items():
        assert differences["gradient"] < 1e-4 and differences["of_change"] < 1e-3, (case, differences)
        assert differences["change"] > 1e-5, (case, differences)


@pytest.mark.slow
def test_roofline_runs(benchmark: Benchmark) -> None:
    found = benchmark("roofline", *TINY, "--workloads", "2x2x8x4", "--rounds", "1")
    assert 0 < found["workloads"][0]["strict"] < found["utilisation"] < 1


@pytest.mark.slow
def test_scaling_runs(benchmark: Benchmark, run_folder: Path) -> None:
    found = benchmark("scaling", "--sweeps", "group_size", "--points", "2", "--steps", "2", "--out", "out.png")
    exponents = found["exponents"]["group_size"]
    assert 0 < exponents["time"] < 3 and 0 < exponents["memory"] < 3
    assert (run_folder / "out.png").is_file()


@pytest.mark.slow
def test_server_requests_runs(benchmark: Benchmark) -> None:
    """More completions than sockets; the others wait for one."""
    found = benchmark("server_requests", "--completions", "1000", "--seconds", "0.1", "--descriptors", "256")
    assert found["right"] == found["completions"] == 1000 and found["cpu_ms"] > 0


@pytest.mark.slow
def test_models_runs(benchmark: Benchmark) -> None:
    found = benchmark("models", "--only", "SmolLM3", "gemma3")["models"]
    assert [row["shared"] for row in found.values()] == [True, False]
    for row in found.values():
        assert row["plan exact"] and all(0 < row[part] < 1e-4 for part in ("policy", "engine hf", "LoRA"))
    assert found["SmolLM3"]["FSDP2"] < 5e-6 and found["SmolLM3"]["resume exact"] and "FSDP2" not in found["gemma3"]


@pytest.mark.slow
def test_overlap_runs(benchmark: Benchmark) -> None:
    tiny = ("--steps", "3", "--prompts", "2", "--group-size", "2", "--mean", "4", "--longest", "8")
    found = benchmark("overlap", "--staleness", "0", "1", *tiny)
    assert [run["k"] for run in found["runs"]] == [0, 1] and all(run["of_bound"] > 0 for run in found["runs"])
    assert found["runs"][0]["age"] == 0 and all(run["server_seconds"] > 0 for run in found["runs"])


@pytest.mark.slow
def test_soak_runs(benchmark: Benchmark, run_folder: Path) -> None:
    """The command and its two reward workers."""
    found = benchmark("soak", "--steps", "20", "--every", "0.2", "--out", "out.png")
    last = found["at_the_end"]
    assert 10 < last["step"] <= 20 and last["MiB"] > 100 and last["open files"] > 3 and last["processes"] == 3
    assert (run_folder / "out.png").is_file()


@pytest.mark.slow
def test_vs_trl_runs(benchmark: Benchmark) -> None:
    found = benchmark("vs_trl", *TINY, *FEW, "--steps", "1", "--engine", "hf")
    ours, theirs = found["contestants"]["lit-rlvr"], found["contestants"]["TRL"]
    assert found["ratio_step"] == pytest.approx(theirs["step"] / ours["step"], rel=1e-2)
    for contestant in (ours, theirs):
        assert contestant["step"] > contestant["generate"] > 0 and contestant["train"] > 0
        assert len(contestant["seconds"]) == 2 and contestant["tokens_per_second"] > 0


@pytest.mark.slow
def test_vs_vllm_runs(benchmark: Benchmark) -> None:
    """It stops where both do not sample the same tokens."""
    found = benchmark("vs_vllm", *TINY, *FEW, "--rounds", "2")
    rates = found["tokens_per_second"]
    assert found["ratio"] == pytest.approx(rates["rollout"] / rates["bare vLLM"], rel=1e-2)
    assert 0.1 < found["ratio"] < 10


@pytest.mark.slow
def test_watch_runs(benchmark: Benchmark) -> None:
    found = benchmark("watch", "--steps", "70", "--prompts", "8", "--known", "8")
    assert len(found["views"]) == 7 and found["completions_mb"] > 1
    for name, fastest, slowest, kib, _ in found["views"]:
        assert 0 < fastest <= slowest and (kib > 1 or name == "now"), name
