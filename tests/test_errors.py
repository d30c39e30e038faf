"""Exceptions told in one line: where in the user's code they came from."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from lit_rlvr.common.files import write_atomically
from lit_rlvr.common.user_code import check_takes, defined_at, user_line
from lit_rlvr.errors import UserError

SOURCE = """import json

def score(completion, sample):
    return sample["answer"]

def parse(text):
    return json.loads(text)

def through(function, *arguments):
    return function(*arguments)
"""


def raised(function: object, *arguments: object) -> BaseException:
    with pytest.raises(Exception) as caught:
        function(*arguments)  # type: ignore[operator]
    error = caught.value
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next  # this file is the user's too
    return error


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "task_of_mine.py").write_text(SOURCE)
    (tmp_path / "half_a_task.py").write_text("x = 1\ndef score(:\n")
    (tmp_path / "needs_more.py").write_text("import json\n\nimport no_such_dependency\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("task_of_mine", None)
    return tmp_path


def test_the_deepest_line_of_the_users_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = import_module("task_of_mine")
    assert user_line(raised(mine.score, "text", {})) == "task_of_mine.py:4"
    assert user_line(raised(mine.parse, "{")) == "task_of_mine.py:7"  # not Python's json
    assert user_line(raised(mine.through, mine.score, "", {})) == "task_of_mine.py:4"
    assert user_line(raised(mine.through, json.loads, "{")) == "task_of_mine.py:10"
    monkeypatch.chdir(Path(__file__).parent)
    assert user_line(raised(mine.score, "text", {})) == f"{folder / 'task_of_mine.py'}:4"


def test_ours_and_installed_code_are_not_the_users(folder: Path) -> None:
    assert user_line(KeyError("never raised")) == ""
    assert (user_line(raised(json.loads, "{")), user_line(raised(yaml.safe_load, "{"))) == ("", "")
    assert user_line(raised(import_module("lit_rlvr").__getattr__, "Nonsense")) == ""
    assert user_line(raised(eval, "1 / 0")) == ""


def test_what_an_exception_was_raised_from_is_named(folder: Path) -> None:
    error = UserError("wrapped")
    error.__cause__ = raised(import_module("task_of_mine").score, "text", {})
    assert user_line(error) == "task_of_mine.py:4"


def test_a_module_that_cannot_be_imported_is_named(folder: Path) -> None:
    assert user_line(raised(import_module, "half_a_task")) == "half_a_task.py:2"
    assert user_line(raised(import_module, "needs_more")) == "needs_more.py:3"


class Called:
    def __call__(self, group: object) -> None: ...


def test_a_function_is_named_with_its_place(folder: Path) -> None:
    assert defined_at(import_module("task_of_mine").score) == "score (task_of_mine.py:3)"
    assert defined_at(Called()).startswith("Called.__call__ (")
    assert defined_at(Called().__call__) == defined_at(Called())
    assert defined_at(len) == "len"


def test_a_function_that_takes_other_arguments_is_refused(folder: Path) -> None:
    mine = import_module("task_of_mine")
    check_takes(mine.score, "completion", "sample")
    check_takes(mine.through, "function", "one", "two")
    check_takes(Called(), "group")
    with pytest.raises(UserError, match=r"score \(task_of_mine.py:3\) must take \(group\): missing .*'sample'"):
        check_takes(mine.score, "group")
    with pytest.raises(UserError, match=r"__call__ .* must take \(a, b\): too many"):
        check_takes(Called(), "a", "b")


def test_an_atomic_write_touches_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "notes.tmp").write_text("precious")
    write_atomically(tmp_path / "notes.html", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "notes.tmp": "precious",
        "notes.html": "new",
    }
