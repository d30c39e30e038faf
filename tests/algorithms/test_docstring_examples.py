"""The example in the docstring of each class that a config names is a config that builds it."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from lit_rlvr import advantages, algorithms
from lit_rlvr.algorithms import RLVRModule
from lit_rlvr.objectives import LossInputs
from lit_rlvr.options import Teacher
from lit_rlvr.training.teachers import Demonstration
from lit_rlvr.training.terms import Term


class Confidence(Term):
    """The term of the example."""

    def cost(self, x: Any) -> Any:
        return -x.logp


def my_loss(x: LossInputs) -> Any:
    """The loss of the example."""


OWN = {"my_task.Confidence": Confidence, "my_task.my_loss": my_loss, "Demonstration": Demonstration}
CLASSES = [
    *(cls for name in algorithms.__all__ if (cls := getattr(algorithms, name)) is not RLVRModule),
    *(cls for _, cls in sorted(advantages.REGISTRY.items())),
    algorithms.SFT,
    algorithms.FunctionLoss,
    Demonstration,
    Term,
]


def built(value: Any) -> Any:
    """The object that a part of a config describes."""
    if isinstance(value, list):
        return [built(part) for part in value]
    if not isinstance(value, dict):
        return OWN.get(value, value) if isinstance(value, str) else value
    if "class_path" not in value:
        return {name: Teacher(**built(part)) if name == "teacher" else built(part) for name, part in value.items()}
    name = value["class_path"]
    cls = OWN.get(name) or getattr(algorithms, name, None) or getattr(advantages, name)
    return cls(**built(value.get("init_args", {})))


def parts(module: RLVRModule) -> Iterator[Any]:
    yield from (module, module.advantage, *module.terms)
    if module.teachers.options is not None:
        yield module.teachers.options.prompt


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_example_builds_its_class(cls: type) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", inspect.getdoc(cls) or "", re.DOTALL)
    assert any(isinstance(part, cls) for part in parts(built(yaml.safe_load(example)["model"])))
