"""What others wrote never becomes a program: answers, checkpoints, models, configs."""

import ast
import json
import os
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_model, tiny_llama
from tiny_runs import FIT, TESTS, child_environment, fit, summary

CLI = Callable[..., Any]
ROOT = TESTS.parents[1]
SOURCES = [*sorted((ROOT / "lit_rlvr").rglob("*.py")), *sorted((ROOT / "datamodules").rglob("*.py"))]

# ---- the source -------------------------------------------------------------------------------------------

RUNS_TEXT = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "marshal.loads",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "cloudpickle.loads", "dill.loads", "joblib.load", "pandas.eval",
    "sympy.sympify", "sympy.parse_expr", "sympy.lambdify",
}  # fmt: skip
"""Calls that make a program of text or bytes."""
ALLOWED = {
    "lit_rlvr/workers/jail/__main__.py": {"exec", "compile"},  # what the sandbox is for
    "lit_rlvr/workers/process.py": {"pickle.loads"},  # what our own worker sends
    "lit_rlvr/workers/worker.py": {"pickle.loads"},  # what the parent sends: a reward of the user's own
}
DEMANDED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "from_pretrained": ("trust_remote_code", False),
}
EXEMPT = {f"{name}.from_pretrained" for name in ("GenerationConfig", "PeftConfig", "PeftModel")}  # files of numbers


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """The dotted name of everything that is called, and the call."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_the_source_runs_no_text_and_trusts_no_file() -> None:
    found = ((str(path.relative_to(ROOT)), *call) for path in SOURCES for call in calls(path))
    for name, called, node in found:
        options = {word.arg: word.value for word in node.keywords}
        assert called not in RUNS_TEXT or called in ALLOWED.get(name, ()), f"{name}:{node.lineno}: {called}"
        shell = options.get("shell")
        assert shell is None or not ast.literal_eval(shell), f"{name}:{node.lineno}: a shell"
        option, value = DEMANDED.get(called, DEMANDED.get(called.rpartition(".")[2], ("", None)))
        packaged = "gguf_file" in options  # of a package that is installed
        if option and called not in EXEMPT and not packaged:
            said = ast.literal_eval(options[option]) if option in options else None
            assert said is value, f"{name}:{node.lineno}: {called} without {option}={value}"


# ---- answers ----------------------------------------------------------------------------------------------

WATCH = """if True:
    import os, resource, sys, tempfile
    sys.path.append({tests!r})
    from hostile_answers import ANSWERS
    from lit_rlvr.answers import verdict
    from lit_rlvr.rewards import code, sql
    from lit_rlvr.answers.find import find_answer, normalise
    from lit_rlvr.rewards.sql_query import QueryLimits

    reads = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    forbidden = ("os.", "subprocess.", "socket.", "shutil.", "pickle.", "ctypes.", "pty.", "code.__new__")
    harmless = ("os.listdir", "os.scandir", "os.putenv")
    armed = []
    told = tempfile.TemporaryFile(buffering=0)

    def note(*words):
        told.write((repr(words) + "\\n").encode(errors="replace"))  # at once: the process may be ended

    def hook(event, arguments):
        if not armed:
            return
        if event == "exec" and arguments[0].co_filename.startswith("<") and "frozen" not in arguments[0].co_filename:
            by = sys._getframe(1).f_code.co_filename
            if not by.endswith(("sympy/polys/monomials.py", "/dataclasses.py", "/collections/__init__.py")):
                # (they fill templates of their own: with a number of variables, or the fields of a class)
                note(event, by)
        if event.startswith(forbidden) and event not in harmless:
            note(event, str(arguments)[:100])
        if event == "open" and arguments[2] & reads:
            note(event, str(arguments)[:100])

    def judge(text):
        boxed = f"\\\\boxed{{{{{{text}}}}}}"
        for form in (text, boxed, f"the answer is {{text}}", f"${{text}}$", f"```sql\\n{{text}}\\n```"):
            try:
                find_answer(form), normalise(form[:2000]), code.extract_program(form)
                verdict.check(form[:3000], "7")
                sql.check_sql(form, "SELECT 1", ({database!r},), "bird", QueryLimits(100_000, 100))
            except (MemoryError, RecursionError, OverflowError, ValueError, TimeoutError):
                pass

    sys.addaudithook(hook)
    for text in ("1/2", "x^2", "(1,2)", "\\\\{{1,2\\\\}}", "x>3", "SELECT 1"):
        judge(text)  # imports what sympy imports late
    sys.set_int_max_str_digits(4300)
    for text in ANSWERS:
        child = os.fork()
        if not child:  # where an answer may take as little as it likes
            resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
            resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
            armed.append(1)
            judge(text)
            os._exit(0)
        os.waitpid(child, 0)
    told.seek(0)
    seen = told.read().decode().splitlines()
    print(len(ANSWERS), sorted(set(seen)))
"""
"""Judges hostile answers in one process that notes what Python's audit events tell: programs made of text, processes,
sockets, files opened to be written."""


@pytest.mark.slow
def test_no_answer_reaches_a_program_a_process_a_socket_or_a_file(tmp_path: Path) -> None:
    database = tmp_path / "d.sqlite"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE t (a)")
    before = database.read_bytes()
    source = WATCH.format(tests=str(TESTS), database=str(database))
    done = subprocess.run(
        [sys.executable, "-B", "-c", source],
        cwd=tmp_path,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    count, _, seen = done.stdout.strip().partition(" ")
    assert int(count) > 60 and seen == "[]", seen
    assert database.read_bytes() == before and os.listdir(tmp_path) == ["d.sqlite"]


# ---- files ------------------------------------------------------------------------------------------------


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def refused(result: Any, mark: Path, *said: str) -> None:
    assert not mark.exists() and all(word in result.refusal for word in said), result.err


@pytest.mark.slow
def test_a_checkpoint_cannot_run_code(run_folder: Path, lit_rlvr: CLI) -> None:
    fit(lit_rlvr, "--trainer.max_steps", 1)
    mark, path = run_folder / "PWNED", run_folder / "run/checkpoints/step-000001.ckpt"
    saved = torch.load(path, weights_only=True)
    for spoil in (saved | {"state_dict": Bomb(mark)}, saved | {"more": Bomb(mark)}, Bomb(mark)):
        torch.save(spoil, path)
        refused(lit_rlvr(*FIT, "--ckpt_path", "last"), mark, "step-000001.ckpt")
        refused(lit_rlvr(*FIT, "--ckpt_path", path), mark, "step-000001.ckpt")
        refused(lit_rlvr("validate", *FIT[1:], "--ckpt_path", path), mark, "step-000001.ckpt")
        refused(lit_rlvr("export", "run", "--to", "out"), mark, "step-000001.ckpt")
    path.write_bytes(pickle.dumps(Bomb(mark)))
    refused(lit_rlvr(*FIT, "--ckpt_path", path), mark, "step-000001.ckpt")
    assert pickle.loads(pickle.dumps(Bomb(mark))) is None and mark.exists(), "the bomb works"


@pytest.mark.first_case_fast
@pytest.mark.parametrize("part", ["tokenizer", "config", "both"])
def test_a_model_cannot_run_code(run_folder: Path, lit_rlvr: CLI, part: str) -> None:
    mark, folder = run_folder / "PWNED", save_model(tiny_llama(), run_folder / "evil")
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    changes: dict[str, dict[str, Any]] = {
        "tokenizer": {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"},
        "config": {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}, "model_type": "evil"},
    }
    for name, file in (("tokenizer", "tokenizer_config.json"), ("config", "config.json")):
        if part in (name, "both"):
            settings = json.loads((folder / file).read_text())
            (folder / file).write_text(json.dumps(settings | changes[name]))
    refused(lit_rlvr(*FIT, "--model.init_args.model", folder), mark, "custom code", str(folder))


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir ['PWNED']", "!!python/name:os.system", "!mkdir PWNED"])
def test_a_config_cannot_run_code(run_folder: Path, lit_rlvr: CLI, tag: str) -> None:
    (run_folder / "evil.yaml").write_text(f"model: {{init_args: {{lr: {tag}}}}}\n")
    refused(lit_rlvr(*FIT, "--config", "evil.yaml"), run_folder / "PWNED", "evil.yaml")
    refused(lit_rlvr(*FIT, f"--model.init_args.lr={tag}"), run_folder / "PWNED", "lr")


def test_what_a_run_leaves_holds_nothing_of_the_environment(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, f"secret-of-{name}")
    result = fit(lit_rlvr, "--trainer.max_steps", 1)
    assert summary(run_folder / "run")["steps"] == 1
    left = [path.read_bytes() for path in (run_folder / "run").rglob("*") if path.is_file()]
    assert len(left) > 4 and not any(b"secret-of-" in content for content in [*left, result.err.encode()])
