"""Build hook: put the start-up file that calls `lit_rlvr.compat.repair` at the root of site-packages."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RepairHook(BuildHookInterface):
    """`import lit_rlvr` at interpreter start, in ordinary and editable installs alike, so that vLLM's and
    transformers' own processes are repaired too (see lit_rlvr/compat.py; no effect where nothing misfits)."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        key = "force_include_editable" if version == "editable" else "force_include"
        build_data[key]["lit_rlvr/start_up.pth"] = "zz_lit_rlvr_repair.pth"
