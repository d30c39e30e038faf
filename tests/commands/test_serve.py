"""What `lit-rlvr serve` refuses before vLLM is started, and how vLLM's own refusals are told."""

import argparse
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import CLI

from lit_rlvr.engines import server_process as vllm_process


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that vLLM would be started with."""
    lines: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda _, line: lines.append(line))
    monkeypatch.setattr("os.environ", {})  # for what the command sets
    return lines


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--port", "TAKEN"), "--host 127.0.0.1 --port TAKEN: cannot listen there: Address already in use"),
        (("--port=TAKEN", "--host=127.0.0.1"), "--host 127.0.0.1 --port TAKEN: cannot listen there"),
        (("--port", 65536), "--port 65536: cannot listen"),
        (("--port=-1",), "--port -1: cannot listen"),
        (("--port", "http"), "--port: invalid int value: 'http'"),
        (
            ("--port", 0, "--host", "no.such.host.invalid"),
            "--host no.such.host.invalid --port 0: cannot listen there: ",
        ),
        (("--dtype", "int8"), "--dtype: invalid choice: 'int8'"),
    ],
)
def test_addresses_and_types_that_cannot_be_served_are_refused(
    lit_rlvr: CLI, tiny_model_folder: Path, started: list[list[str]], taken: int, options: tuple[Any, ...], said: str
) -> None:
    given = [str(option).replace("TAKEN", str(taken)) for option in options]
    result = lit_rlvr("serve", "--model", tiny_model_folder, *given, status=2, says=said.replace("TAKEN", str(taken)))
    assert result.err.count("\n") == 1 and not started


def test_batch_invariant_kernels_need_a_gpu(lit_rlvr: CLI, tiny_model_folder: Path) -> None:
    lit_rlvr(
        "serve",
        "--model",
        tiny_model_folder,
        "--deterministic",
        status=2,
        says="--deterministic: vLLM has batch-invariant kernels for GPUs only",
    )


def test_fp8_needs_a_gpu_and_16_bits(
    lit_rlvr: CLI, tiny_model_folder: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = ("serve", "--model", tiny_model_folder, "--port", 0)
    assert "--quantize fp8: it needs a GPU" in lit_rlvr(*serve, "--quantize", "fp8").err
    assert "--quantization: use --quantize fp8" in lit_rlvr(*serve, "--quantization", "awq").err
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert "use --dtype bfloat16" in lit_rlvr(*serve, "--quantize", "fp8", "--dtype", "float32").err
    assert not started
    assert lit_rlvr(*serve, "--quantize", "fp8").status == 0
    (line,) = started
    assert "--quantization=fp8_per_channel" in line and line[line.index("--dtype") + 1] == "bfloat16"


@pytest.mark.parametrize(
    ("gpu", "options", "wanted"),
    [
        (True, (), ["--max-num-seqs=1024", "--max-cudagraph-capture-size=1024"]),
        (True, ("--max_num_seqs", "700"), ["--max-num-seqs=700", "--max-cudagraph-capture-size=704"]),
        (True, ("--max-num-seqs=512",), ["--max-num-seqs=512"]),
        (True, ("--max-num-seqs=700", "--enforce-eager"), ["--max-num-seqs=700"]),
        (True, ("--compilation-config.mode=0",), []),
        (
            True,
            ("--max-cudagraph-capture-size=8",),
            [
                "--max-num-seqs=1024",
                "--max-cudagraph-capture-size=1024",
                "--max-cudagraph-capture-size=8",  # the last counts
            ],
        ),
        (False, (), []),
        (False, ("--max-num-seqs", "700"), ["--max-num-seqs=700"]),
    ],
)
def test_cuda_graphs_are_captured_for_all_sequences(
    lit_rlvr: CLI,
    tiny_model_folder: Path,
    started: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    gpu: bool,
    options: tuple[str, ...],
    wanted: list[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert lit_rlvr("serve", "--model", tiny_model_folder, "--port", 0, *options).status == 0
    assert [word for word in started[0] if "num-seqs" in word or "cudagraph" in word] == wanted


def test_vllm_gets_the_other_options(lit_rlvr: CLI, tiny_model_folder: Path, started: list[list[str]]) -> None:
    lit_rlvr("serve", "--model", tiny_model_folder, "--port", 0, "--max-model-len", 64, "--api-key", "k", status=0)
    (line,) = started
    assert line[1:5] == ["-m", "lit_rlvr.engines.server_process", "--model", str(tiny_model_folder)]
    assert line[-6:] == ["--host=127.0.0.1", "--port=0", "--max-model-len", "64", "--api-key", "k"]
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in os.environ
    lora = ("--enable_lora", "--max_lora_rank=8", "--x_y.a_b", "c_d")
    assert lit_rlvr("serve", "--model", tiny_model_folder, "--port", 0, *lora).status == 0
    assert started[1][-4:] == ["--enable-lora", "--max-lora-rank=8", "--x-y.a_b", "c_d"]
    assert os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1", "vLLM then loads adapters while it runs"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-model-length", "5"], "unknown option --max-model-length; did you mean --max-model-len?"),
        (["--max_model_lenn=5"], "unknown option --max_model_lenn; did you mean --max-model-len?"),
        (["--nonsense"], "unknown option --nonsense"),
        (["--max-model-len", "x"], "argument --max-model-len: invalid int value: 'x'"),
        (["--max-model-len", "5"], "1 validation error for ModelConfig Value error, max_model_len (5)"),
    ],
)
def test_what_vllm_refuses_is_one_line(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its parser is an argparse one with some three hundred lines of usage; its settings are checked after that."""

    def serve(*_: Any, **__: Any) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--max-model-len", type=int)
        parser.parse_args(options)
        raise ValueError(f"1 validation error for ModelConfig\n  Value error, max_model_len (5) is {'x' * 999}")

    monkeypatch.setattr(argparse.ArgumentParser, "error", argparse.ArgumentParser.error)  # put back afterwards
    monkeypatch.setattr(vllm_process, "serve", serve)
    with pytest.raises(SystemExit, match="2"):
        vllm_process.main()
    line = capsys.readouterr().err
    assert (line.startswith(f"lit-rlvr: error: vLLM: {said}"), line.count("\n"), len(line) < 600) == (True, 1, True)
