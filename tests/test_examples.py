"""The examples in the docstrings of the classes that people subclass: each is run, and does what it shows."""

import inspect
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from lit_rlvr import Advantage, Completion, Environment, PromptDataModule, Reward, RLVRModule, Sample, Term
from lit_rlvr.commands.check import check_advantage, check_algorithm
from lit_rlvr.types import Turn

SAMPLE = Sample("1", "What is 3 + 4?", "7")


def built_from_example(base: type) -> Any:
    """Run the example of a class, and return an instance of the subclass that it defines."""
    (code,) = re.findall(r"```python\n(.*?)```", inspect.cleandoc(base.__doc__ or ""), re.DOTALL)
    names: dict[str, Any] = {}
    exec(inspect.cleandoc(code), names)
    defined = []
    for value in names.values():
        if isinstance(value, type) and issubclass(value, base) and value is not base:
            defined.append(value)
    (cls,) = defined
    return cls()


def test_the_loss_and_the_advantage_pass_the_check() -> None:
    findings = [*check_algorithm(built_from_example(RLVRModule)), *check_advantage(built_from_example(Advantage))]
    assert findings and [str(finding) for finding in findings if not finding.ok] == []


def test_the_reward_says_what_is_right() -> None:
    answer = Completion("It is 7", (1, 2), "stop")
    right, wrong = built_from_example(Reward).score([(answer, SAMPLE), (answer, replace(SAMPLE, answer="8"))])
    assert (right.value, right.correct, wrong.value, wrong.correct) == (1, True, 0, False)


def test_the_environment_ends_with_the_right_guess() -> None:
    environment = built_from_example(Environment)
    environment.reset(SAMPLE)
    assert not environment.step(Turn("8")).done and not environment.reward()
    assert environment.step(Turn("7")).done and environment.reward()


def test_the_data_module_has_rows() -> None:
    assert [row.answer for row in built_from_example(PromptDataModule).rows("validation")] == ["daerb"]


def test_the_term_costs_what_its_comment_says() -> None:
    x = SimpleNamespace(logp=torch.tensor([[-1.0, -2.0]]))
    assert built_from_example(Term).cost(x).tolist() == [[-1.0, -2.0]]
