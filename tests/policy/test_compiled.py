"""Compiled layers score and train as the model's own; everything else runs as it did."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import END, make_rollout, random_ids, tiny_llama
from tiny_compiled import compiled_calls
from tiny_fit import fit
from tiny_runs import FIT, STRATEGIES, in_two_processes, metrics, tiny_config, to, write_config
from tiny_vlms import mixed_prompts
from torch._dynamo.utils import counters

from lit_rlvr.algorithms import GRPO
from lit_rlvr.distributed.fsdp2 import FSDP2
from lit_rlvr.errors import UserError
from lit_rlvr.options import Lora
from lit_rlvr.plan import RunPlan
from lit_rlvr.policy import speed as compiled
from lit_rlvr.policy.adapters import add_adapters
from lit_rlvr.policy.loading import load_policy
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.speed import compile_layers, decoder_layers, enable_checkpointing
from lit_rlvr.policy.verify import compile_and_verify
from lit_rlvr.sampling import Sampling
from lit_rlvr.training import models
from lit_rlvr.types import Completion, Rollout

Layer = Callable[..., Any]
ALIKE = make_rollout([random_ids(9, 1)], [[random_ids(12, 2), random_ids(14, 3)]])
RAGGED = make_rollout(
    [random_ids(19, 1), random_ids(3, 4)],
    [[random_ids(12, 2), random_ids(30, 3)], [random_ids(120, 2), random_ids(3, 3)]],
)
"""One laid out as padded blocks, one as spans."""
LONGER = make_rollout([random_ids(5, 7)], [[random_ids(17, 8), random_ids(18, 9)]])
LONGEST = make_rollout([random_ids(40, 1)], [[random_ids(2, 2), random_ids(90, 3), random_ids(3, 3)]])


@pytest.fixture
def in_place_of_torch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Layer], None]:
    """Set what is called with a layer's own function to compile it; it needs no C++ compiler."""
    monkeypatch.setattr(compiled, "missing_compiler", lambda: None)
    return lambda made: monkeypatch.setattr(compiled, "_compiled", made)


def compiled_llama(prepare: Callable[[Any], None] = lambda model: None) -> tuple[Policy, Policy]:
    """The same weights twice, the second with compiled layers."""
    models = [tiny_llama(), tiny_llama()]
    for model in models:
        torch.manual_seed(1)
        prepare(model)
    compile_layers(models[1])
    return Policy(models[0], (END,)), Policy(models[1], (END,))


def gradients(policy: Policy, rollout: Rollout) -> dict[str, torch.Tensor]:
    """The log-probabilities, and the gradients of their sum."""
    policy.zero_grad()
    logp, _ = policy.logprobs(rollout, list(range(len(rollout.mask))))
    logp.sum().backward()
    return {"logp": logp.detach()} | {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}


def test_only_the_scoring_of_shared_prompts_is_compiled(in_place_of_torch: Callable[[Layer], None]) -> None:
    calls = []

    def count(plain: Layer) -> Layer:
        def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(layer)
            return plain(layer, *args, **kwargs)

        return call

    in_place_of_torch(count)
    plain, policy = compiled_llama()
    model: Any = policy.model
    layers = list(model.get_decoder().layers)
    torch.testing.assert_close(policy.logprobs(RAGGED, [0, 3]), plain.logprobs(RAGGED, [0, 3]))
    assert calls == layers
    model.generate(torch.tensor([random_ids(5, 0)]), max_new_tokens=3, do_sample=False)
    policy.plain_logits(torch.tensor([random_ids(5, 0)]), [])
    policy.share_prefix(False)
    policy.logprobs(RAGGED, [0, 3])
    assert calls == layers, "nothing else is"


def test_a_copy_of_a_compiled_model_has_its_own_weights(in_place_of_torch: Callable[[Layer], None]) -> None:
    in_place_of_torch(lambda plain: plain)
    _, policy = compiled_llama()
    copy = deepcopy(policy)
    before = copy.logprobs(ALIKE, [0])[0]
    with torch.no_grad():
        for weight in policy.parameters():
            weight.zero_()
    torch.testing.assert_close(copy.logprobs(ALIKE, [0])[0], before)


class Crooked(torch.autograd.Function):
    """A right result with a wrong gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * 1.01


def broken(graph: Any, inputs: Any) -> Any:
    raise OSError("no compiler")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda plain: torch.compile(plain, backend=broken), r"cannot compile LlamaForCausalLM's .*no compiler"),
        (lambda plain: lambda *args, **kwargs: plain(*args, **kwargs) * 1.1, "compute something else; leave it off"),
        (lambda plain: lambda *args, **kwargs: Crooked.apply(plain(*args, **kwargs)), "compute something else"),
    ],
)
def test_a_compiler_that_fails_or_is_wrong_is_one_line(
    in_place_of_torch: Callable[[Layer], None], made: Layer, message: str
) -> None:
    in_place_of_torch(made)
    with pytest.raises(UserError, match=r"^model.compute.torch_compile: .*" + message) as caught:
        compile_and_verify(Policy(tiny_llama(), (END,)), torch.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("works", [True, False])
def test_what_auto_cannot_compile_stays_plain(
    tiny_model_folder: Path,
    tmp_path: Path,
    in_place_of_torch: Callable[[Layer], None],
    works: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A run of two steps that would pay, with a compiler that is broken or leaves the layers as they are."""
    monkeypatch.setitem(compiled.MIN_COMPILED_FLOPS, "cpu", 1.0)
    calls: list[int] = []

    def counted(plain: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: calls.append(1) or plain(*args, **kwargs)

    in_place_of_torch(counted if works else lambda plain: torch.compile(plain, backend=broken))
    module, _ = fit(tiny_model_folder, tmp_path, steps=2, trainer_options={"precision": "bf16-mixed"})
    assert module.plan.most_tokens == 2 * 6 * 4 * 9
    assert ("auto leaves it off" in caplog.text) != works
    assert bool(calls) == works and all(
        ("forward" in vars(layer)) == works for layer in decoder_layers(module.policy.model)
    )


def test_a_model_that_cannot_share_prompts_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    compile_and_verify(Policy(tiny_llama(), (END,), shared_prefix=False), torch.float32)
    assert "only layers that share prompts are compiled; LlamaForCausalLM's are not" in caplog.text


def test_what_it_cannot_be_combined_with_is_refused() -> None:
    for other, said in (
        ({"shared_prefix": False}, "shared_prefix: false"),
        ({"liger": True}, "liger: true; leave one"),
    ):
        with pytest.raises(UserError, match=f"model.compute.torch_compile: it cannot be combined with {said}"):
            GRPO(compute={"torch_compile": True, **other})
    GRPO(compute={"liger": True})


@pytest.fixture
def never_eager() -> Iterator[None]:
    """A layer that torch gives up compiling is an error, not eager."""
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


def checkpoint_and_adapt(model: Any) -> None:
    add_adapters(model, Lora(rank=4, quantize="nf4"))
    enable_checkpointing(model)


@pytest.mark.slow
@pytest.mark.usefixtures("never_eager")
def test_gradients_are_the_same_and_other_lengths_are_not_compiled_again() -> None:
    plain, fast = compiled_llama(checkpoint_and_adapt)
    graphs = []
    for rollout in (ALIKE, RAGGED, LONGER, LONGEST):
        wanted, found = gradients(plain, rollout), gradients(fast, rollout)
        assert wanted.keys() == found.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[1] == graphs[2] == graphs[3], "each layout once"
    assert compiled_calls(fast.logprobs(ALIKE, [0])[0]) >= 2 * 2 > compiled_calls(plain.logprobs(ALIKE, [0])[0]) == 0
    with torch.no_grad():  # the reference of a run with adapters
        policies = (plain.without_adapters(), fast.without_adapters())
        torch.testing.assert_close(*(policy.logprobs(RAGGED, [0, 3])[0] for policy in policies), atol=1e-5, rtol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("never_eager")
def test_gradients_with_images_are_the_same(vlm_folder: Path) -> None:
    plain, fast = (load_policy(str(vlm_folder)) for _ in range(2))
    compile_layers(fast.model)
    prompts = mixed_prompts(vlm_folder)
    ids = [tuple(random_ids(9 + g, g)) for g in range(2)]
    completions = [[Completion("", i, "length", (-1.0,) * len(i)) for i in ids] for _ in prompts]
    rollout = Rollout.unscored(prompts, completions, Sampling(max_tokens=10), 2)
    wanted, found = gradients(plain, rollout), gradients(fast, rollout)
    assert wanted.keys() == found.keys() and any("visual" in name or "vision" in name for name in wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)
    assert compiled_calls(fast.logprobs(rollout, [0])[0]) > 0


@pytest.mark.exhaustive
def test_layers_of_two_processes_are_compiled_too(run_folder: Path, tiny_model_folder: Path) -> None:
    """By torch's own backend, which writes no C++; the tests above have that of users."""
    config = tiny_config(tiny_model_folder)
    config["model"] = {"class_path": "tiny_compiled.CompiledGRPO", "init_args": config["model"]["init_args"]}
    config["model"]["init_args"]["compute"] = {"torch_compile": True}
    write_config(run_folder / "compiled.yaml", config)
    fit_compiled, few = ("fit", "--config", "compiled.yaml"), ("--trainer.max_steps", "3")
    in_two_processes(
        run_folder,
        [*FIT, *STRATEGIES["fsdp2"], *few, *to("plain")],
        [*fit_compiled, *STRATEGIES["fsdp2"], *few, *to("compiled")],
    )
    for row, wanted in zip(metrics(run_folder / "compiled"), metrics(run_folder / "plain"), strict=True):
        for key in ("train/loss", "train/grad_norm", "train/entropy", "rollout/reward"):
            same = row[key] == wanted[key] == ""
            assert same or float(row[key]) == pytest.approx(float(wanted[key]), rel=1e-3, abs=1e-5), key


@pytest.mark.parametrize("strategy", [None, FSDP2()])
@pytest.mark.parametrize(
    ("pays", "failures", "compiled"),
    [([True, True], [None, None], True), ([True, False], [None, None], None), ([True, True], [None, "no"], False)],
)
def test_all_processes_compile_or_none_does(
    pays: list[bool],
    failures: list[str | None],
    compiled: bool | None,
    strategy: FSDP2 | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By what each of them trains on, which is a part of the run's tokens."""
    answers = iter([pays, failures])
    done: list[str] = []
    tokens: list[int] = []
    policy: Any = SimpleNamespace(parameters=lambda: [torch.zeros(3)], model=None)
    monkeypatch.setattr(models, "world_size", lambda: 2)
    monkeypatch.setattr(models, "gather_objects", lambda own: next(answers))
    monkeypatch.setattr(models, "compiling_pays", lambda size, seen, device, dtype: bool(tokens.append(seen)))
    monkeypatch.setattr(models, "compile_and_verify", lambda *_: done.append("compiled"))
    monkeypatch.setattr(models, "uncompile_layers", lambda *_: done.append("undone"))
    GRPO().models._compile(policy, RunPlan(precision="bf16-mixed", most_tokens=1000, strategy=strategy))
    assert tokens == [500]
    assert done == {True: ["compiled"], False: ["compiled", "undone"], None: []}[compiled]
