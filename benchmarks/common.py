"""Shared parts of the benchmarks: the machine's own rate, tables, peak memory, contestants in separate processes."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
"""A benchmark's name of a precision -> the trainer's name."""
MATMUL_SIZES = (2048, 3072, 4096)


def make_parser(doc: str | None, precision: bool = False, rate: bool = False) -> argparse.ArgumentParser:
    """Build a parser whose help is the script's own description.

    Args:
        precision: add the option `--precision`.
        rate: add the option `--matmul-sizes`, for `MatmulRate`.
    """
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if precision:
        parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="what both compute in")
    if rate:
        parser.add_argument(
            "--matmul-sizes",
            type=int,
            nargs="+",
            default=MATMUL_SIZES,
            help="of the square matrices that measure the machine's own rate",
        )
    return parser


def add_contestants(parser: argparse.ArgumentParser) -> None:
    """Add options for our settings and for TRL's, as dicts."""
    kind = {"type": setting, "nargs": "*", "action": Settings, "default": {}, "metavar": "NAME=VALUE"}
    parser.add_argument(
        "--ours", help="options of our algorithm, such as compute.torch_compile=true (values as JSON)", **kind
    )
    parser.add_argument("--trl", help="settings of TRL's GRPOConfig (values as JSON)", **kind)


def setting(text: str) -> tuple[str, Any]:
    """Return `name=value` as a pair."""
    name, _, value = text.partition("=")
    return name, json.loads(value)


class Settings(argparse.Action):
    """Stores pairs as a dict; `group.name` is a name in the dict of a group."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        found: dict[str, Any] = {}
        for name, value in values:
            group, _, field = name.rpartition(".")
            (found.setdefault(group, {}) if group else found)[field] = value
        setattr(namespace, self.dest, found)


def say(text: str) -> None:
    """Print progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table on stdout, with floats of four significant digits."""
    text = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *text, strict=True)]
    for row in [columns, ["-" * width for width in widths], *text]:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def print_result(**result: Any) -> None:
    """Print the last line of every benchmark: its numbers and the machine, as JSON."""
    import torch

    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps({"benchmark": Path(sys.argv[0]).stem, **result, "machine": machine}), flush=True)


def run_command(*arguments: str, **options: Any) -> dict[str, Any]:
    """Run a command of lit-rlvr with `--json`, and `subprocess.run`'s options; return the document that it prints."""
    line = [str(Path(sys.executable).with_name("lit-rlvr")), *arguments, "--json"]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True, **options)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def peak_memory_mb() -> float:
    """Return the peak resident memory of this process, in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss would count the parent's memory before the exec
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)


class MatmulRate:
    """The best measured rate of large matrix products, in FLOP/s; measure it between the contestants' steps.

    Args:
        precision: fp32 or bf16.
        device: cpu or cuda.
        sizes: of the square matrices.
    """

    def __init__(self, precision: str, device: str = "cpu", sizes: Sequence[int] = MATMUL_SIZES) -> None:
        import torch

        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        largest = torch.randn(max(sizes), max(sizes), device=device, dtype=dtype)
        self._pairs = [(largest[:n, :n].contiguous(), largest[-n:, -n:].contiguous()) for n in sizes]
        self._wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        self.best = 0.0

    def measure(self, repeats: int = 2) -> float:
        """Measure again, and return the best rate so far."""
        for a, b in self._pairs:
            for _ in range(repeats):
                self._wait()
                started = time.perf_counter()
                a @ b
                self._wait()
                self.best = max(self.best, 2 * len(a) ** 3 / (time.perf_counter() - started))
        return self.best


def alternate(contestants: dict[str, Callable[[], Any]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Return the seconds of each contestant's calls, which alternate, without the first `warm_up` rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for k in range(warm_up + rounds):
        for name, call in contestants.items():
            started = time.perf_counter()
            call()
            if k >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: median(values) for name, values in seconds.items()}


def run_isolated(script: str, **options: Any) -> dict[str, Any]:
    """Run a script of this folder in a separate process; return the JSON of its last line.

    Args:
        options: given as one JSON argument.
    """
    command = [sys.executable, str(Path(__file__).with_name(script)), json.dumps(options)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def draw_lengths(kind: str, count: int, mean: int, longest: int | None = None) -> list[int]:
    """Draw lengths of completions: `equal`, or `lognormal` with this mean and at most `longest`, by default 8 *
    `mean`."""
    if kind == "equal":
        return [mean] * count
    import torch

    sigma = 0.9
    draws = torch.randn(count, generator=torch.Generator().manual_seed(0)) * sigma + math.log(mean) - sigma**2 / 2
    return [int(x) for x in draws.exp().clamp(2, longest or 8 * mean)]


def growth_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the slope of log(values) over log(sizes): values grow like sizes ** exponent."""
    x, y = [math.log(v) for v in sizes], [math.log(v) for v in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)
