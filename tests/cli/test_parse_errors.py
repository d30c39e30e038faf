"""The parser's messages as one line each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional, Union

import pytest
from jsonargparse import ArgumentError

from lit_rlvr.cli.error_lines import explain_parse_error, options_of
from lit_rlvr.cli.lightning_cli import RLVRCLI, ConfigCheck
from lit_rlvr.common.did_you_mean import nearest
from lit_rlvr.common.foreign_names import OPTIONS_OF_OTHERS
from lit_rlvr.configs import TOP_KEYS, Parser, find_configs, load_yaml
from lit_rlvr.errors import UserError

OWN = """
from collections.abc import Callable
from dataclasses import dataclass

from lit_rlvr.datamodules import PromptDataModule
from lit_rlvr.advantages import Advantage
from lit_rlvr.algorithms import GRPO
from lit_rlvr.environments import Environment
from lit_rlvr.rewards import Reward
from lit_rlvr.rollout import HFEngine


class Half(Reward):
    def __call__(self, completion, sample):
        return 0.5


def half(completion, sample):
    return 0.5


NUMBER = 3


class Calls(Half):
    def __init__(self, function: Callable[[str], float] | None = None, **kwargs):
        super().__init__(**kwargs)


class Judge(Half):
    def __init__(self, rubric, **kwargs):
        super().__init__(**kwargs)


class Typed(Half):
    def __init__(self, rubric: str, **kwargs):
        super().__init__(**kwargs)


class Plain(GRPO):
    def __init__(self, rubric, **kwargs):
        super().__init__(**kwargs)


class Data(PromptDataModule):
    def __init__(self, rubric, **kwargs):
        super().__init__(**kwargs)


class Room(Environment):
    def __init__(self, rubric, **kwargs):
        super().__init__(**kwargs)

    def step(self, turn): ...


class Engine(HFEngine):
    def __init__(self, rubric):
        super().__init__()


@dataclass
class Scaled(Advantage):
    rubric: float

    def __call__(self, group):
        return group.rewards


class Shifted(Advantage):
    def __init__(self, rubric):
        self.rubric = rubric

    def __call__(self, group):
        return group.rewards
"""
"""Classes of a user, all with a required argument but the first."""

RIGHT: dict[str, Any] = {"data": {"class_path": "Arithmetic"}, "model": {"class_path": "GRPO"}}
CLASSES = ("--data", "Arithmetic", "--model", "GRPO")
SAID: dict[str, tuple[dict[str, Any], str]] = {
    "a list as a class": (
        {"model": ["GRPO"]},
        "model: give a class of type RLVRModule by its class_path, not ['GRPO']",
    ),
    "a number as a class": ({"model": 3}, "model: give a class of type RLVRModule by its class_path, not 3"),
    "another class": (
        {"model": {"class_path": "pathlib.Path"}},
        "model: {'class_path': 'pathlib.Path'} is not a subclass of RLVRModule",
    ),
    "an abstract class": (
        {"model": {"class_path": "lit_rlvr.algorithms.RLVRModule"}},
        "model: lit_rlvr.algorithms.RLVRModule is abstract, it lacks objective; define it in the class, or give "
        "another",
    ),
    "an abstract class by its short name": (
        {"model": "RLVRModule"},
        "model: RLVRModule is abstract, it lacks objective; define it in the class, or give another",
    ),
    "a long name of a module": (
        {"model": {"class_path": f"{'a_long_name_' * 9}.Plain"}},
        f"model: class_path '{'a_long_name_' * 9}.Plain' cannot be used: No module named '{'a_long_name_' * 9}'",
    ),
    "option of a class": (
        {"model": {"class_path": "GRPO", "init_args": {"lrr": 1}}},
        "model: lit_rlvr.algorithms.GRPO has no option 'lrr'; did you mean 'lr'?",
    ),
    "type in a class": (
        {"model": {"class_path": "GRPO", "init_args": {"lr": "x"}}},
        "model.lr: give a number, or 'auto', not x",
    ),
    "choice": (
        {"model": {"class_path": "GRPO", "init_args": {"optim": {"lr_schedule": "up"}}}},
        "model.optim.lr_schedule: give one of 'constant', 'linear', 'cosine', not up",
    ),
    "key of a group of a class": (
        {"model": {"class_path": "GRPO", "init_args": {"loss": {"agregation": "token_mean"}}}},
        "model.loss: unknown key 'agregation'; did you mean 'loss.aggregation'?",
    ),
    "type": ({"rollout": {"group_size": "many"}}, "rollout.group_size: give a whole number, not many"),
    "union": ({"budget": {"samples": 1.5}}, "budget.samples: give a whole number, not 1.5"),
    "text for a group": (
        {"rollout": "fast"},
        "rollout: 'fast' is not a group of options; give them by their names",
    ),
    "text for a group in a class": (
        {"model": {"class_path": "GRPO", "init_args": {"lora": "yes"}}},
        "model.lora: 'yes' is not a group of options; give them by their names",
    ),
    "number for a class in a list": (
        {"model": {"class_path": "GRPO", "init_args": {"terms": [5]}}},
        "model.terms: give a class of type Term by its class_path, not 5",
    ),
    "number for one of Lightning's classes": (
        {"trainer": {"callbacks": [5]}},
        "trainer.callbacks: give a class of type Callback by its class_path, not 5",
    ),
    "text for a number of one of them": (
        {
            "trainer": {
                "callbacks": [{"class_path": "EarlyStopping", "init_args": {"monitor": "x", "patience": "long"}}]
            }
        },
        "trainer.callbacks.patience: give a whole number, not long",
    ),
    "text for a number of a reward": (
        {"rollout": {"rewards": [{"class_path": "MathAnswer", "init_args": {"weight": "heavy"}}]}},
        "rollout.rewards.weight: give a number, not heavy",
    ),
    "a list of options": (
        {"rollout": {"rewards": [{"class_path": "MathAnswer", "init_args": [1]}]}},
        "rollout.rewards: the init_args of lit_rlvr.rewards.MathAnswer are a mapping of its options, not a list",
    ),
    "options without a class": (
        {"trainer": {"logger": {"a": 1}}},
        "trainer.logger: {'a': 1} has no class; give {class_path: CLASS, init_args: ...}",
    ),
    "text for a list": ({"rollout": {"rewards": "MathAnswer"}}, "rollout.rewards: give a list, not MathAnswer"),
    "key of a group": (
        {"rollout": {"grop_size": 8}},
        "unknown key 'rollout.grop_size'; did you mean 'rollout.group_size'?",
    ),
    "key of sampling": (
        {"rollout": {"sampling": {"temprature": 1}}},
        "unknown key 'rollout.sampling.temprature'; did you mean 'rollout.sampling.temperature'?",
    ),
    "key like another group's": ({"run": {"slop": 1}}, "unknown key 'run.slop'"),
    "TRL's key of a group": (
        {"trainer": {"learning_rate": 1}},
        "unknown key 'trainer.learning_rate'; did you mean 'model.init_args.lr'?",
    ),
    "a name that TRL has, too": (
        {
            "model": {
                "class_path": "GRPO",
                "init_args": {"advantage": {"class_path": "GRPOAdvantage", "init_args": {"epsilon": 1}}},
            }
        },
        "model.advantage: lit_rlvr.advantages.GRPOAdvantage has no option 'epsilon'; did you mean 'eps'?",
    ),
    "class in another case": ({"model": "grpo"}, "model: there is no class 'grpo'; did you mean 'GRPO'?"),
    "a class inside a group of a class": (
        {"model": {"class_path": "GRPO", "init_args": {"teacher": {"prompt": {"class_path": "Demo"}}}}},
        "model.teacher.prompt: there is no class 'Demo'; give the dotted path of a class or function of yours, such as "
        "my_task.Demo",
    ),
    "option of an environment": (
        {"rollout": {"environment": {"class_path": "Calculator", "init_args": {"offr": 1}}}},
        "rollout.environment: lit_rlvr.environments.Calculator has no option 'offr'; did you mean 'offer'?",
    ),
    "no function": (
        {"model": {"class_path": "FunctionLoss", "init_args": {"function": 5}}},
        "model.function: give the dotted path of a function, such as my_task.my_function, not 5",
    ),
    "a number as a function": (
        {"model": {"class_path": "FunctionLoss", "init_args": {"function": "own_parts.NUMBER"}}},
        "model.function: give the dotted path of a function, such as my_task.my_function, not 3",
    ),
    "no such function": (
        {"model": {"class_path": "FunctionLoss", "init_args": {"function": "own_parts.nosuch"}}},
        "model.function: give the dotted path of a function, such as my_task.my_function: module 'own_parts' has no "
        "attribute 'nosuch'",
    ),
    "a function without a path": (
        {"model": {"class_path": "FunctionLoss", "init_args": {"function": "my_loss"}}},
        "model.function: there is no class 'my_loss'; give the dotted path of a class or function of yours, such as "
        "my_task.my_loss",
    ),
    "a function of a user's class": (
        {"rollout": {"rewards": [{"class_path": "own_parts.Calls", "init_args": {"function": "nosuch.f"}}]}},
        "rollout.rewards.function: give the dotted path of a function, such as my_task.my_function: No module named "
        "'nosuch'",
    ),
    "a function of a user's class without a path": (
        {"rollout": {"rewards": [{"class_path": "own_parts.Calls", "init_args": {"function": "f"}}]}},
        "rollout.rewards.function: give the dotted path of a function, such as my_task.my_function, not f",
    ),
    "number to base 60": ({"rollout": {"group_size": "1:30"}}, "rollout.group_size: give a whole number, not 1:30"),
    "true as a seed": ({"seed_everything": True}, "seed_everything: give a whole number, not True"),
    "flag": ({"overwrite": "maybe"}, "overwrite: give true or false, not maybe"),
}


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConfigCheck]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_parts.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield ConfigCheck()


def test_a_class_may_be_named_as_python_imports_it(fit: ConfigCheck) -> None:
    rewards = {"rewards": [{"class_path": "lit_rlvr.MathAnswer"}]}
    fit.check(RIGHT | {"model": {"class_path": "lit_rlvr.DAPO"}, "rollout": rewards})
    with pytest.raises(ArgumentError):
        fit.check(RIGHT | {"model": {"class_path": "lit_rlvr.Dapo"}})


@pytest.mark.parametrize("case", SAID)
def test_a_wrong_value_is_said_with_its_option_and_what_it_takes(fit: ConfigCheck, case: str) -> None:
    wrong, said = SAID[case]
    with pytest.raises(ArgumentError) as error:
        fit.check(RIGHT | wrong)
    assert explain_parse_error(error.value) == said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit", "stray", "words"], "what is 'stray words' for? An option begins with --"),
        (["fit", "--modle", "GRPO"], "unknown option '--modle'; did you mean '--model'?"),
        (["fit", "--modle.init_args.lr", "1"], "unknown option '--modle.init_args.lr'; did you mean "
         "'--model.init_args.lr'?"),
        (["fit", "--confg", "x"], "unknown option '--confg'; did you mean '--config'?"),
        (["fit", "--beta", "0"], "unknown option '--beta'; did you mean '--model.init_args.kl.coef'?"),
        (["fit", *CLASSES, "--model.init_args.kl", "5"], "model.kl: '5' is not a group of options; give them by their "
         "names"),
        (["fit", "--lr", "1"], "unknown option '--lr'; did you mean '--model.init_args.lr'?"),
        (["fit", "--lora.rank", "8"], "unknown option '--lora.rank'; did you mean '--model.init_args.lora'?"),
        (["fit", "--max_tokens", "8"], "unknown option '--max_tokens'; did you mean '--rollout.sampling.max_tokens'?"),
        (["fit", "--num_generations=8"], "unknown option '--num_generations'; did you mean '--rollout.group_size'?"),
        (["fit", *CLASSES, "--model.init_args.beta", "0"], "model: lit_rlvr.algorithms.GRPO has no option 'beta'; "
         "did you mean 'kl.coef'?"),
        (["fit", *CLASSES, "--model.init_args.num_generations", "8"], "model: lit_rlvr.algorithms.GRPO has no option "
         "'num_generations'; did you mean 'rollout.group_size'?"),
        (["fit", "--dryrun"], "unknown option '--dryrun'; did you mean '--dry-run'?"),
        (["fit", "--overwrit", "true"], "unknown option '--overwrit'; did you mean '--overwrite'?"),
        (["fit", "--rollout.sampling.temp", "1"], "unknown option '--rollout.sampling.temp'; did you mean "
         "'--rollout.sampling.temperature'?"),
        (["fit", *CLASSES, "--model.init_args.warmup", "1"], "model: lit_rlvr.algorithms.GRPO has no option 'warmup'; "
         "did you mean 'optim.warmup_steps'?"),
        (["fit", *CLASSES, "--model.kl.coeff", "1"], "model.kl: unknown key 'coeff'; did you mean 'kl.coef'?"),
        (["fit", *CLASSES, "--rollout.group_size", "1:30"], "rollout.group_size: give a whole number, not 1:30"),
        (["fit", *CLASSES, "--rollout.rewards", "[{class_path: own_parts.Half, init_args: {b: 1}}]"],
         "rollout.rewards: own_parts.Half has no option 'b'"),
        (["fit", *CLASSES, "--rollout.rewards+", "{class_path: own_parts.Half, init_args: {wight: 1}}"],
         "rollout.rewards: own_parts.Half has no option 'wight'; did you mean 'weight'?"),
        (["fit", *CLASSES, "--rollout.environment", "{class_path: Calculator, init_args: {offr: 1}}"],
         "rollout.environment: lit_rlvr.environments.Calculator has no option 'offr'; did you mean 'offer'?"),
        (["fit", "--data", "Arithmetic", "--model.init_args.model", "tiny-llama", "--model", "GRPO"],
         "model: its options come before its class; give --model CLASS first"),
        (["fit", *CLASSES, "base.yaml"], "what is 'base.yaml' for? Give a config as --config base.yaml"),
        (["fit", *CLASSES, "--rollout.rewards", "[{class_path: own_parts.Hallf}]"],
         "rollout.rewards: module 'own_parts' has no attribute 'Hallf'; did you mean 'Half'?"),
        (["fit"], "fit.data, fit.model: missing; give a config that sets them, such as --config quickstart"),
    ],
)  # fmt: skip
def test_arguments_that_have_no_place(fit: ConfigCheck, arguments: list[str], said: str) -> None:
    with pytest.raises(ArgumentError) as error:
        fit.parser.parse_line(arguments)
    assert explain_parse_error(error.value) == said


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("rollout.rewards", "Judge"),
        ("rollout.rewards", "Typed"),
        ("rollout.environment", "Room"),
        ("rollout.engine", "Engine"),
        ("model", "Plain"),
        ("data", "Data"),
        ("model.advantage", "Scaled"),
        ("model.advantage", "Shifted"),
    ],
)
def test_a_required_argument_of_a_user_s_class_is_required(fit: ConfigCheck, key: str, name: str) -> None:
    """With a type or without one, and however the class is named."""
    path = f"own_parts.{name}"
    for value in (path, {"class_path": path}, {"class_path": path, "init_args": {}}):
        group, _, option = key.partition(".")
        inner: Any = {option: [value] if option == "rewards" else value} if option else value
        wrong = {"model": {"class_path": "GRPO", "init_args": inner}} if option == "advantage" else {group: inner}
        with pytest.raises(ArgumentError) as error:
            fit.check(RIGHT | wrong)
        assert explain_parse_error(error.value) == f"{key}: {path} needs a value for rubric; give it under init_args"


@pytest.mark.parametrize("text", ["about class_path", "class_path: [", "{class_path: GRPO"])
def test_a_text_about_classes_stays_a_text(fit: ConfigCheck, text: str) -> None:
    parsed = fit.parser.parse_line(["fit", *CLASSES, "--data.init_args.chat.system_prompt", text])
    assert parsed.fit.data.init_args.chat.system_prompt == text


def test_a_required_argument_that_is_given_arrives(fit: ConfigCheck) -> None:
    rewards = [{"class_path": "own_parts.Judge", "init_args": {"rubric": [1, 2]}}, "own_parts.Half"]
    parsed = fit.parser.parse_object({"subcommand": "fit", "fit": RIGHT | {"rollout": {"rewards": rewards}}})
    assert parsed.fit.rollout.rewards[0].init_args.rubric == [1, 2]


@pytest.mark.parametrize(("text", "number"), [("010", 10), ("-010", -10), ("0x10", 16), ("0", 0), ("12", 12)])
def test_numbers_are_as_written_in_files_and_on_the_command_line(
    fit: ConfigCheck, tmp_path: Path, text: str, number: int
) -> None:
    """YAML 1.1, which PyYAML reads, takes 010 for 8."""
    config = tmp_path / "own.yaml"
    config.write_text(f"data: Arithmetic\nmodel: GRPO\nrollout: {{group_size: {text}}}\n")
    read = fit.parser.parse_line(["fit", "--config", str(config)])
    typed = fit.parser.parse_line(["fit", *CLASSES, "--rollout.group_size", text])
    assert read.fit.rollout.group_size == typed.fit.rollout.group_size == number


@pytest.mark.parametrize("text", ["-1", "-1e-5", "-1.", "-.5", "-.inf"])
def test_a_negative_number_is_a_value(fit: ConfigCheck, text: str) -> None:
    parsed = fit.parser.parse_line(["fit", *CLASSES, "--model.lr", text, "--rollout.sampling.temperature", text])
    assert (
        parsed.fit.model.init_args.lr == parsed.fit.rollout.sampling.temperature == float(text.replace(".inf", "inf"))
    )


def test_null_switches_off_a_group_that_an_earlier_config_sets(fit: ConfigCheck, tmp_path: Path) -> None:
    shipped, null = tmp_path / "shipped.yaml", tmp_path / "null.yaml"
    shipped.write_text("warm_start: {steps: 600, until: 0.5}\ncollapse: {action: stop}\nbudget: {samples: 9}\n")
    null.write_text("warm_start: null\ncollapse:\n")
    off = ["--config", str(null)]
    RLVRCLI.parse_arguments(fit, fit.parser, ["fit", *CLASSES, "--config", str(shipped), *off])
    found = fit.config.fit
    assert (found.warm_start.steps, found.warm_start.until) == (0, 1.0)
    assert (found.collapse.action, found.budget.samples) == ("warn", 9)
    RLVRCLI.parse_arguments(
        fit, fit.parser, ["fit", *CLASSES, "--config", str(shipped), *off, "--warm_start.steps", "7"]
    )
    assert (fit.config.fit.warm_start.steps, fit.config.fit.warm_start.until) == (7, 1.0)


def test_a_class_may_take_null_where_its_base_does_not(fit: ConfigCheck) -> None:
    reward = {"class_path": "FunctionReward", "init_args": {"path": "own_parts.half", "isolate": {"cpu_seconds": 5}}}
    assert fit.check(RIGHT | {"rollout": {"rewards": [reward]}}).rollout.rewards[0].isolation.cpu_seconds == 5
    wrong = {"class_path": "FunctionReward", "init_args": {"path": "own_parts.half", "weight": None}}
    with pytest.raises(UserError, match=r"rollout\.rewards\.0\.init_args\.weight: null is not allowed"):
        fit.check(RIGHT | {"rollout": {"rewards": [wrong]}})


def test_options_of_trl_and_verl_have_names_here(fit: ConfigCheck) -> None:
    page = (Path(__file__).parents[2] / "docs/coming_from_trl.md").read_text()
    assert [name for name in OPTIONS_OF_OTHERS if not re.search(rf"[`.]{name}[`:]", page)] == []
    options = options_of(fit.parser)
    assert [ours for ours in OPTIONS_OF_OTHERS.values() if f"--{ours}" not in options] == []
    assert nearest("max_completion_length", TOP_KEYS) == "rollout.sampling.max_tokens"
    assert nearest("beta", ["beat", "alpha"]) == "beat"


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("dryrun", ["--run", "--dry-run"], "--dry-run"),
        ("GRPO", ["grpo", "dr_grpo"], "grpo"),
        ("temp", ["top_p", "temperature"], "temperature"),
        ("", ["a"], None),
        ("zzz", ["a", "b"], None),
        ("modle.lr", ["lora", "model.lr"], "model.lr"),
    ],
)
def test_names_are_compared_whole_and_without_case_and_dashes(name: str, known: list[str], found: str | None) -> None:
    assert nearest(name, known) == found


@pytest.mark.parametrize(("given", "expected"), [("4", 4), ("4.0", 4.0), ("0.5", 0.5), ("null", None)])
def test_a_whole_number_stays_one_whatever_types_the_process_has_seen(given: str, expected: float | None) -> None:
    parser = Parser()
    parser.add_argument("--size", type=Optional[Union[float, int]])  # noqa: UP007, UP045  # typing caches this order
    found = parser.parse_args(["--size", given]).size
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {class_path: GRPO, init_arg: {lr: 1}}", "model: unknown key 'init_arg'; did you mean 'init_args'?"),
        ("data: {clas_path: Arithmetic, init_args: {}}", "data: unknown key 'clas_path'; did you mean 'class_path'?"),
        ("model: {class_path: GRPO, lr: 1}", "model: unknown key 'lr'; the options of a class are under init_args"),
        (
            "rollout: {rewards: [{class_path: OpenAnswer, init_arg: {}}]}",
            "rollout.rewards.0: unknown key 'init_arg'; did you mean 'init_args'?",
        ),
        (
            "model: {class_path: GRPO, init_args: {advantage: {class_path: RLOO, args: 1}}}",
            "model.init_args.advantage: unknown key 'args'; did you mean 'init_args'?",
        ),
        ("model: {class_path: , init_args: {lr: 1}}", "model: a class_path is the name of a class, not None"),
        (
            "rollout: {rewards: [{class_path: [Format]}]}",
            "rollout.rewards.0: a class_path is the name of a class, not ['Format']",
        ),
        ("model: {class_path: GRPO, init_args: [lr: 1]}", "model: init_args is a mapping of options, not [{'lr': 1}]"),
    ],
)
def test_a_class_in_a_config_has_a_name_and_a_mapping(tmp_path: Path, text: str, said: str) -> None:
    (config := tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        find_configs(["--config", str(config)])
    assert str(error.value) == f"--config: {config}: {said}"


def test_what_is_no_file_is_no_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, links that lead nowhere, a pipe and a URL; also as the `base:` of a config, which is then named."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("folder/inner.yaml").touch()
    os.mkfifo("pipe.yaml")
    for link, target in {"loop.yaml": "back.yaml", "back.yaml": "loop.yaml", "broken.yaml": "gone.yaml"}.items():
        Path(link).symlink_to(target)
    cases = {
        "folder": "'folder' is a folder; give a file in it: folder/inner.yaml",
        "loop.yaml": "'loop.yaml' is a link that leads back to itself",
        "broken.yaml": "'broken.yaml' is a link to gone.yaml, which is not there",
        "pipe.yaml": "'pipe.yaml' is a pipe or a device, not a file; write its content to a file",
    }
    for name, said in cases.items():
        Path("own.yaml").write_text(f"base: {name}")
        for given, where in ((name, "--config"), ("own.yaml", "--config: own.yaml: base")):
            with pytest.raises(UserError) as error:
                find_configs(["--config", given])
            assert str(error.value) == f"{where}: {said}"


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({"model": "tiny-llama", "beta": 2}, "model.teacher.beta: 2.0 must lie in [0, 1]"),
        ({"model": "tiny-llama", "ema": 0.5}, "model.teacher.ema: it averages the policy's weights; leave `model` out"),
    ],
)
def test_a_mistake_in_a_group_without_defaults_is_what_is_named(
    fit: ConfigCheck, teacher: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as error:
        fit.check(RIGHT | {"model": {"class_path": "GRPO", "init_args": {"teacher": teacher}}})
    assert str(error.value) == said


def test_a_config_over_a_base_is_checked_under_its_own_name_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))  # not there: nothing can be written
    (tmp_path / "base.yaml").write_text("rollout: {group_size: 4}")
    (config := tmp_path / "own.yaml").write_text("base: base.yaml\nrollout: {init_args: {inflight: 2}}")
    with pytest.raises(UserError) as error:
        find_configs(["--config", str(config)])
    assert str(error.value) == (
        f"--config: {config}: rollout: init_args is for a class, and there is no class_path; give one, or give the "
        "options as 'group_size' is given"
    )
    config.write_text("base: base.yaml\nrollout: {staleness: 2}")
    assert load_yaml(find_configs(["--config", str(config)])[1]) == {"rollout": {"group_size": 4, "staleness": 2}}
