"""Where vLLM keeps its files on a machine whose home cannot be written."""

import os
from pathlib import Path

import pytest

from lit_rlvr.engines.vllm_cache import _FOLDERS, use_writable_folders

MOVED = ["VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE"]


def test_folders_that_cannot_be_written_are_replaced_and_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lit_rlvr.common.log.log.propagate", True)
    for variable in _FOLDERS:  # set here, so that they are restored afterwards
        monkeypatch.setenv(variable, "")
    for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    use_writable_folders()
    assert not caplog.text and not any(os.environ[variable] for variable in _FOLDERS)
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setenv("LIT_RLVR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VLLM_CONFIG_ROOT", str(tmp_path / "config"))
    with caplog.at_level("INFO"):
        use_writable_folders()
        use_writable_folders()
    assert {os.environ[variable] for variable in MOVED} == {str(tmp_path / "cache/vllm")}
    assert os.environ["VLLM_CONFIG_ROOT"] == str(tmp_path / "config")
    (message,) = caplog.messages
    assert message.startswith("vLLM's folders cannot be written (~/.cache/vllm, ~/.triton/cache, ~); it uses ")
