"""The folders in which vLLM and the compilers behind it keep what they have made."""

from __future__ import annotations

import os

from lit_rlvr.common.files import cache_folder, check_writable
from lit_rlvr.common.log import log
from lit_rlvr.common.paths import expanded
from lit_rlvr.errors import UserError

_FOLDERS = {
    "VLLM_CACHE_ROOT": "{cache}/vllm",
    "VLLM_CONFIG_ROOT": "{config}/vllm",
    "TRITON_CACHE_DIR": "~/.triton/cache",
    "FLASHINFER_WORKSPACE_BASE": "~",
}
"""Environment variable -> the folder that its reader takes by default."""


def use_writable_folders() -> None:
    """Give vLLM folders of this project's cache in place of those that cannot be written, and log it in a line.

    vLLM and the processes that it starts print a traceback each otherwise.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    moved = {}
    for variable, default in _FOLDERS.items():
        folder = os.environ.get(variable) or default.format(cache=cache, config=config)
        try:
            check_writable(expanded(folder), variable)
        except (UserError, RuntimeError):  # RuntimeError: this user has no home
            moved[variable] = folder
    if not moved:
        return
    new = cache_folder() / "vllm"
    for variable in moved:
        os.environ[variable] = str(new)
    log.info("vLLM's folders cannot be written (%s); it uses %s", ", ".join(dict.fromkeys(moved.values())), new)
