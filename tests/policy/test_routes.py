"""Router replay: the trainer uses the experts that tokens used in the engine, with weights of its own logits."""

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import test_models
import torch
from plans import plan_without_trainer
from test_models import COMPLETIONS, ENDS, MODELS, PROMPTS, build, scored
from tiny import make_prompt, make_rollout, plain_logprobs, save_model, start_engine, tiny_llama
from tiny_environments import Echo
from tiny_episodes import between
from tiny_fit import fit
from tiny_runs import fit as run, metrics, summary, to
from torch import Tensor
from torch.nn.functional import normalize

from lit_rlvr.algorithms import GRPO
from lit_rlvr.engines.base import EngineContext
from lit_rlvr.engines.client import VLLMServer
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.engines.server import VLLMServerEngine
from lit_rlvr.engines.transfer import FileTransfer
from lit_rlvr.engines.vllm import VLLMEngine
from lit_rlvr.errors import UserError
from lit_rlvr.options import Teacher
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.routes import routers, routing
from lit_rlvr.policy.speed import enable_checkpointing
from lit_rlvr.rollout import RolloutCallback
from lit_rlvr.rollout.episodes import Episodes
from lit_rlvr.rollout.preflight.sizes import check_settings
from lit_rlvr.sampling import Sampling
from lit_rlvr.training.teachers import Demonstration
from lit_rlvr.types import Completion, Rollout

Weigh = Callable[[Any, Tensor], Tensor]


def softmax(config: Any, logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def normalised(config: Any, logits: Tensor) -> Tensor:
    return normalize(logits.exp(), 1, -1)


def sigmoid(config: Any, logits: Tensor) -> Tensor:
    return normalize(logits.sigmoid(), 1, -1) * config.routed_scaling_factor


EXPERTS: dict[str, Weigh] = {
    "Qwen3-MoE": softmax,
    "Qwen3.5-MoE": normalised,
    "Qwen3-Next": normalised,
    "DeepSeek-V3": sigmoid,
}
EACH = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in test_models.FAST else pytest.mark.slow) for name in EXPERTS]
)


def replaying(name: str) -> Policy:
    policy = Policy(build(name), ENDS, MODELS[name].why is None)
    policy.replay_routes()
    return policy


def with_random_routes(rollout: Rollout, layers: int) -> Rollout:
    """Two of four experts for each input, which have nothing to do with the model; a prompt's are its group's."""
    generator = torch.Generator().manual_seed(5)

    def draw(count: int) -> Tensor:
        return torch.rand(count, layers, 4, generator=generator).argsort(-1)[..., :2].to(torch.uint8)

    groups = []
    for prompt, group in zip(rollout.prompts, rollout.completions, strict=True):
        first = draw(len(prompt.token_ids))
        groups.append([replace(c, routes=torch.cat([first, draw(len(c.token_ids) - 1)])) for c in group])
    return replace(rollout, completions=groups)


def slow_logprobs(model: Any, weigh: Weigh, prompt: Sequence[int], completion: Completion) -> Tensor:
    """One sequence alone: each router's result is made anew of its logits and the experts given."""
    assert completion.routes is not None
    routes = torch.cat([completion.routes.long(), completion.routes[-1:].long()])  # the last token predicts nothing
    with ExitStack() as stack:
        for layer, router in enumerate(routers(model).values()):

            def forced(_: Any, inputs: Any, result: tuple[Tensor, ...], layer: int = layer) -> tuple[Tensor, ...]:
                logits, experts = result[0], routes[:, layer]
                chosen = logits.float().gather(-1, experts)
                weights = (
                    logits.float().softmax(-1).gather(-1, experts) if weigh is softmax else weigh(model.config, chosen)
                )
                return logits, weights.to(result[1].dtype), experts

            stack.callback(router.register_forward_hook(forced).remove)
        return plain_logprobs(model, prompt, completion.token_ids)[0]


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
def test_the_balance_of_experts_is_that_of_each_completion(checkpointed: bool) -> None:
    """DeepSeek-V3's sequence-wise loss, with its gradient, against one sequence at a time and a loop over experts."""
    policy = Policy(build("Qwen3-MoE"), ENDS)
    policy.balance_experts()
    model: Any = policy.model
    if checkpointed:
        enable_checkpointing(model)
    rollout = make_rollout(PROMPTS, COMPLETIONS)
    found = policy.forward_rows(rollout, [*range(len(PROMPTS) * len(COMPLETIONS[0]))]).expert_imbalance
    model.gradient_checkpointing_disable()
    wanted, mask = [], rollout.mask
    for prompt, group in zip(rollout.prompts, rollout.completions, strict=True):
        for completion in group:
            ids = torch.tensor([[*prompt.token_ids, *completion.token_ids]])
            layers = model(ids, use_cache=False, output_router_logits=True).router_logits
            scored_at = slice(len(prompt.token_ids) - 1, ids.shape[1] - 1)
            loss = torch.zeros(len(completion.token_ids))
            for logits in layers:
                p = logits.view(ids.shape[1], -1)[scored_at].float().softmax(-1)
                best, (tokens, experts) = p.topk(2).indices, p.shape
                for e in range(experts):
                    loss = loss + experts * float((best == e).sum()) / (2 * tokens) * p[:, e] / len(layers)
            wanted.append(loss)
    assert found is not None
    for row, values in enumerate(wanted):
        torch.testing.assert_close(found[row][mask[row]], values, atol=1e-5, rtol=0)
    parameters = [p for n, p in model.named_parameters() if "gate.weight" in n]
    ours, theirs = (torch.autograd.grad(total, parameters) for total in (found.sum(), torch.cat(wanted).sum()))
    assert parameters and float(theirs[0].abs().max()) > 1e-3
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@EACH
@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
def test_logprobs_and_gradients_are_those_of_the_given_experts(name: str, checkpointed: bool) -> None:
    policy = replaying(name)
    model: Any = policy.model
    if checkpointed:
        enable_checkpointing(model)
    rollout = with_random_routes(make_rollout(PROMPTS, COMPLETIONS), len(routers(model)))
    ours = scored(policy, rollout)
    found = torch.autograd.grad(torch.cat(ours).sum(), [*model.parameters()], allow_unused=True)
    model.gradient_checkpointing_disable()
    theirs = [
        slow_logprobs(model, EXPERTS[name], prompt.token_ids, completion)
        for prompt, group in zip(rollout.prompts, rollout.completions, strict=True)
        for completion in group
    ]
    wanted = torch.autograd.grad(torch.cat(theirs).sum(), [*model.parameters()], allow_unused=True)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=1e-5)
    largest = max(float(grad.abs().max()) for grad in wanted if grad is not None)
    for (weight, _), mine, other in zip(model.named_parameters(), found, wanted, strict=True):
        assert (mine is None) == (other is None)
        assert mine is None or float((mine - other).abs().max()) < 1e-4 * largest, weight
        assert ".gate." not in weight or float(other.abs().max()) > 1e-3 * largest, "routers learn"
    flips = policy.forward_rows(rollout, [*range(len(rollout.mask))]).flips
    assert flips is not None and 0.5 < float(flips[rollout.mask].mean()) < 1
    shifted = [[replace(c, routes=c.routes.roll(1, 0)) for c in group] for group in rollout.completions]  # type: ignore[union-attr]
    apart = torch.cat(scored(policy, replace(rollout, completions=shifted))) - torch.cat(theirs)
    assert float(apart.detach().abs().max()) > 0.05, "routes belong to positions"


@EACH
@pytest.mark.parametrize("most", [1, 3], ids=["one turn", "three turns"])
@torch.no_grad()
def test_the_hugging_face_engine_returns_the_experts_of_each_input(name: str, most: int) -> None:
    """Left-padded prompts of different lengths, rows that leave early, observations."""
    policy = replaying(name)
    start_engine(engine := HFEngine(), policy)
    seeds = [[p, p + 9, p + 20] for p in range(3)]
    turns = Episodes(Echo(), between(ends=ENDS)) if most > 1 else None
    sampling = Sampling(max_tokens=12, max_turns=most, max_observation_tokens=60)
    groups = engine.generate([make_prompt(ids, str(len(ids))) for ids in PROMPTS], sampling, seeds, turns=turns)
    if turns is not None:
        turns.close()
        assert any(len(completion.turns) == most for group in groups for completion in group)
    assert len({len(c.token_ids) for group in groups for c in group}) > 2
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            with routing() as seen:
                policy.model(torch.tensor([[*prompt, *completion.token_ids[:-1]]]))
            wanted = seen.packed()
            assert (completion.routes is not None, wanted.dtype) == (True, torch.uint8)
            assert completion.routes.sort(-1).values.equal(wanted.sort(-1).values)
            assert not wanted.sort(-1).values.roll(1, 0).equal(wanted.sort(-1).values) or len(wanted) == 1


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_what_vllm_reports_is_of_all_layers_and_of_their_numbers() -> None:
    """Its own classes, without its kernels: it returns no experts on a CPU."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.outputs import CompletionOutput

    assert "enable_return_routed_experts" in {field.name for field in fields(EngineArgs)}
    policy = replaying("DeepSeek-V3")  # its first layer has no router
    engine = VLLMEngine()
    engine._context = EngineContext("", policy, test_models.tiny.byte_tokenizer(), 512, 64, 0)
    reported = torch.randint(4, (7, 2, 2)).to(torch.uint8)
    found = engine.routes(CompletionOutput(0, "", [5, 6], None, None, routed_experts=reported.numpy()))
    assert (found.dtype, found.equal(reported[:, 1:])) == (torch.uint8, True)
    large = CompletionOutput(0, "", [5], None, None, routed_experts=reported.numpy().astype("uint16") + 300)
    assert engine.routes(large).equal(reported[:, 1:].short() + 300)  # type: ignore[union-attr]
    server, choice = server_engine(), server_choice(reported)
    server._context = engine._context
    assert server._completion(choice, None).routes.equal(reported[:, 1:])  # type: ignore[union-attr]


def server_engine() -> VLLMServerEngine:
    return VLLMServerEngine(["http://localhost:1"], FileTransfer())


def server_choice(reported: Tensor) -> dict[str, Any]:
    """What vLLM's server says of a completion of two tokens, made by its own classes."""
    from vllm.entrypoints.scale_out.token_in_token_out.protocol import GenerateTextChoice
    from vllm.utils.serial_utils import numpy2base64

    content = [{"token": "x", "logprob": -1.0, "top_logprobs": []}] * 2
    choice = GenerateTextChoice(
        index=0,
        text="xx",
        token_ids=[5, 6],
        finish_reason="length",
        logprobs={"content": content},
        routed_experts=numpy2base64(reported.numpy()),
    )
    answer: dict[str, Any] = choice.model_dump(mode="json")
    return answer


def test_a_server_that_returns_no_experts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = replaying("Qwen3-MoE")
    server = server_engine()
    known = {
        "model": "unknown",
        "dtype": "torch.float32",
        "max_num_seqs": 8,
        "replicas": 1,
        "adapters": None,
        "max_model_len": 512,
        "logprobs_mode": "processed_logprobs",
        "batch_invariant": False,
    }
    monkeypatch.setattr("lit_rlvr.engines.server.check_model", lambda *_: None)
    context = EngineContext("", policy, test_models.tiny.byte_tokenizer(), 512, 64, 0)
    for returns in (True, False):
        monkeypatch.setattr(VLLMServer, "settings", lambda _, returns=returns: known | {"returns_routes": returns})
        if returns:
            server._check(server.servers[0], context)
        else:
            with pytest.raises(UserError, match="start it with --enable-return-routed-experts"):
                server._check(server.servers[0], context)


def test_a_run_trains_on_the_engines_experts(tmp_path: Path) -> None:
    folder = save_model(build("Qwen3-MoE"), tmp_path / "model")
    options: dict[str, Any] = {"sampling": Sampling(max_tokens=5), "updates_per_rollout": 2}
    _, seen = fit(folder, tmp_path / "replayed", replay_routes=True, **options)
    _, plain = fit(folder, tmp_path / "plain", **options)
    assert seen.metrics[0]["train/expert_flips"] == 0 and "train/expert_flips" not in plain.metrics[0]
    assert seen.metrics[0]["train/engine_difference"] < 1e-4
    assert all(c.routes is not None for group in seen.rollouts[0].completions for c in group)
    for name, grad in plain.gradients[0].items():
        torch.testing.assert_close(seen.gradients[0][name], grad)


@pytest.mark.slow
def test_a_record_holds_the_experts(run_folder: Path, lit_rlvr: Callable[..., Any]) -> None:
    options = (
        "--model.init_args.model", str(save_model(build("Qwen3-MoE"), run_folder / "experts")), "--model", "DAPO",
        "--rollout.replay.record", "1", "--trainer.limit_val_batches", "0", "--trainer.max_steps", "3",
    )  # fmt: skip
    replayed = ("--rollout.replay_routes", "true")
    run(lit_rlvr, *options, *replayed)
    run(lit_rlvr, *options, *replayed, "--rollouts-from", "run", *to("again"))
    assert summary(run_folder / "again")["weights_sha256"] == summary(run_folder / "run")["weights_sha256"]
    assert all(float(row["train/expert_flips"]) == 0 for row in metrics(run_folder / "again")[1:])
    run(lit_rlvr, *options, *to("unknown"))
    run(
        lit_rlvr,
        *options,
        *replayed,
        "--rollouts-from",
        "unknown",
        *to("refused"),
        status=2,
        says="unknown was recorded without rollout.replay_routes; leave the option off",
    )


def refused(callback: RolloutCallback, model: Path, device: str = "cpu", **options: Any) -> str:
    with pytest.raises(UserError) as error:
        module = GRPO(model=str(model), **options)
        check_settings(callback, module, plan_without_trainer(callback, module, 8, device=device))
    return str(error.value)


def test_what_cannot_replay_is_refused_in_one_line(tmp_path: Path) -> None:
    dense = save_model(tiny_llama(), tmp_path / "dense")
    experts = save_model(build("Qwen3-MoE"), tmp_path / "experts")
    ours = RolloutCallback(engine="hf", replay_routes=True)
    assert "the model has no experts" in refused(ours, dense)
    assert "layers that model.compute.torch_compile compiles cannot replay" in refused(
        ours, experts, compute={"torch_compile": True}
    )
    module = GRPO(model=str(experts))
    check_settings(ours, module, plan_without_trainer(ours, module, 8))
    validating = replace(plan_without_trainer(ours, GRPO(model=str(dense)), 8), trains=False)
    with pytest.raises(UserError, match="the model has no experts"):
        check_settings(ours, GRPO(model=str(dense)), validating)
    vllm = RolloutCallback(engine=VLLMEngine(), replay_routes=True)
    assert "vLLM returns no experts of tokens on a CPU" in refused(vllm, experts)
    check_settings(vllm, module, plan_without_trainer(vllm, module, 8, device="cuda"))
    stops = RolloutCallback(engine=VLLMEngine(), replay_routes=True, sampling=Sampling(stop=("x",)))
    assert "with rollout.sampling.stop; use" in refused(stops, experts, "cuda")
    assert "a policy that is its own teacher" in refused(ours, experts, teacher=Teacher(prompt=Demonstration("answer")))
    with pytest.raises(UserError, match="LlamaForCausalLM has no routers of a known form"):
        Policy(tiny_llama(), ENDS).replay_routes()
    with pytest.raises(UserError, match="experts are known for 0 of 3 inputs of a completion of p0"):
        scored(replaying("Qwen3-MoE"), make_rollout(PROMPTS, COMPLETIONS))
