"""Real vLLM in this process, on tiny models: one engine for the whole session."""

import importlib.util
import os
from collections.abc import Container, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import ENDS, VOCAB, byte_tokenizer, make_prompt, plain_logprobs, random_ids, start_engine
from tiny_engines import adapted, assert_logprobs_are_the_policys, change, change_adapters, check_thought_budget, flat
from tiny_environments import Echo
from tiny_episodes import Recording, assert_exact, between, check_own_beginnings
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3_5TextConfig

from lit_rlvr.common.files import save_smaller_sizes, smaller_sizes
from lit_rlvr.engines import vllm
from lit_rlvr.engines.base import EngineContext
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.engines.process_group import executor_on
from lit_rlvr.engines.synced import check_engine
from lit_rlvr.engines.vllm import WORTH_COMPILING, VLLMEngine, with_tied_head
from lit_rlvr.errors import ResumableError, UserError, refuse_all
from lit_rlvr.objectives import resolve_correction
from lit_rlvr.options import Lora
from lit_rlvr.policy.adapters import add_adapters, changing_weights
from lit_rlvr.policy.loading import load_policy
from lit_rlvr.policy.policy import Policy
from lit_rlvr.sampling import Sampling

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

SAMPLING = Sampling(temperature=0.8, max_tokens=12, banned_token_ids=(3, 50))
PROBE = Sampling(max_tokens=16)
PROMPTS = [make_prompt(random_ids(n, n), f"p{n}") for n in (7, 2, 30, 1)]
SEEDS = [[100 * p + g for g in range(3)] for p in range(4)]
LONG = make_prompt(random_ids(300, 9), "long")


@pytest.fixture(scope="session")
def started(tiny_model_folder: Path) -> Iterator[VLLMEngine]:
    """vLLM is started once, without compiling; its weights are noise until the first sync."""
    engine = VLLMEngine(enforce_eager=True)
    start_engine(engine, load_policy(str(tiny_model_folder)), tiny_model_folder)
    yield engine
    engine.close()


@pytest.fixture
def policy(tiny_model_folder: Path) -> Policy:
    return load_policy(str(tiny_model_folder))


@pytest.fixture
def engine(started: VLLMEngine, policy: Policy) -> VLLMEngine:
    """The session's engine with a fresh policy's weights."""
    started.sync(policy)
    return started


def without_the_repair(
    policy: Policy, only: Container[str] | None = None, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    yield from ((name, parameter.detach()) for name, parameter in policy.named_weights(only))


def test_logprobs_are_the_trainers_also_after_a_weight_change(engine: VLLMEngine, policy: Policy) -> None:
    first = engine.generate(PROMPTS, SAMPLING, SEEDS)
    assert_logprobs_are_the_policys(policy, first, PROMPTS, SAMPLING)
    change(policy, 0.3)
    engine.sync(policy)
    second = engine.generate(PROMPTS, SAMPLING, SEEDS)
    assert_logprobs_are_the_policys(policy, second, PROMPTS, SAMPLING)
    assert flat(first) != flat(second), "generation follows the new weights"


def test_the_probe_fails_when_the_tied_head_is_not_repaired(
    engine: VLLMEngine, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM on a CPU keeps the old output embedding; all other weights are new, and generation looks healthy."""
    if torch.cuda.is_available():
        pytest.skip("only vLLM on a CPU packs the output embedding")
    monkeypatch.setattr(vllm, "with_tied_head", without_the_repair)
    change(policy, 1e-3)
    engine.sync(policy)
    with pytest.raises(UserError, match="stale or wrong weights"):
        check_engine(engine, policy, PROMPTS, PROBE)
    monkeypatch.undo()
    engine.sync(policy)
    assert check_engine(engine, policy, PROMPTS, PROBE) <= 1e-4


def test_long_prompts_follow_new_weights_only_because_the_prefix_cache_is_reset(
    engine: VLLMEngine, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.generate([LONG], SAMPLING, [[1]])
    change(policy, 0.3)
    engine.sync(policy)
    assert_logprobs_are_the_policys(policy, engine.generate([LONG], SAMPLING, [[1, 2]]), [LONG], SAMPLING)

    monkeypatch.setattr(engine._llm, "reset_prefix_cache", lambda: True)
    change(policy, 0.3, seed=2)
    engine.sync(policy)
    with pytest.raises(AssertionError):
        assert_logprobs_are_the_policys(policy, engine.generate([LONG], SAMPLING, [[1, 2]]), [LONG], SAMPLING)


def test_a_completion_depends_on_its_own_seed_alone(engine: VLLMEngine) -> None:
    groups = engine.generate(PROMPTS, SAMPLING, SEEDS)
    assert flat(engine.generate(PROMPTS[::-1], SAMPLING, SEEDS[::-1])[::-1]) == flat(groups)
    alone = [engine.generate([p], SAMPLING, [[s]])[0] for p, seeds in zip(PROMPTS, SEEDS, strict=True) for s in seeds]
    assert flat(alone) == flat(groups)
    others = engine.generate(PROMPTS, SAMPLING, [[seed + 1000 for seed in seeds] for seeds in SEEDS])
    assert len(set(flat(others)) & set(flat(groups))) < 3


def test_finish_reasons_end_tokens_and_groups(engine: VLLMEngine) -> None:
    seeds = [[1, 2], [3], [], [4, 5, 6, 7]]
    assert [len(group) for group in engine.generate(PROMPTS, SAMPLING, seeds)] == [2, 1, 0, 4]
    found = [c for group in engine.generate(PROMPTS, SAMPLING, SEEDS) for c in group]
    stopped = [c for c in found if c.finish_reason == "stop"]
    cut = [c for c in found if c.finish_reason == "length"]
    assert (bool(stopped), bool(cut), len(stopped) + len(cut)) == (True, True, len(found))
    assert all(c.token_ids[-1] in ENDS and not set(c.token_ids[:-1]) & set(ENDS) for c in stopped)
    assert all(len(c.token_ids) == SAMPLING.max_tokens and not set(c.token_ids) & set(ENDS) for c in cut)
    assert all(len(c.logprobs) == len(c.token_ids) and "<|" not in c.text for c in found)


def test_banned_tokens_are_never_sampled_and_out_of_the_softmax(engine: VLLMEngine, policy: Policy) -> None:
    """All but 20 tokens are banned; without the ban, hardly any sampled token would be one of the 20."""
    allowed = list(range(100, 120))
    narrow = Sampling(max_tokens=12, banned_token_ids=tuple(i for i in range(VOCAB) if i not in allowed))
    found = [c for group in engine.generate(PROMPTS, narrow, SEEDS) for c in group]
    assert {token for c in found for token in c.token_ids} <= set(allowed)
    assert check_engine(engine, policy, PROMPTS, narrow) <= 1e-4


def test_greedy_decoding_takes_the_likeliest_token(engine: VLLMEngine, policy: Policy) -> None:
    completion = engine.generate(PROMPTS[:1], Sampling(temperature=0.0, max_tokens=6), [[1]])[0][0]
    with torch.no_grad():
        _, everything = plain_logprobs(policy.model, PROMPTS[0].token_ids, completion.token_ids)
    assert everything.argmax(-1).tolist() == list(completion.token_ids)


@pytest.mark.parametrize(
    ("compiler", "enforce_eager", "tokens", "compiles"),
    [
        ("true", None, 0, True),  # of unknown length
        ("true", None, WORTH_COMPILING, True),
        ("true", None, WORTH_COMPILING - 1, False),
        ("true", True, 0, False),
        ("true", False, 1, True),
        ("no-such-compiler", None, 0, False),
    ],
)
def test_on_a_cpu_only_long_runs_with_a_compiler_compile(
    monkeypatch: pytest.MonkeyPatch,
    compiler: str,
    enforce_eager: bool | None,
    tokens: int,
    compiles: bool,
    caplog: pytest.LogCaptureFixture,
    policy: Policy,
) -> None:
    monkeypatch.setenv("CXX", compiler)
    engine = VLLMEngine(enforce_eager=enforce_eager)
    context = EngineContext("", policy, byte_tokenizer(), 0, 1, 0, tokens=tokens)
    with caplog.at_level("INFO", "lit_rlvr"):
        assert engine._may_compile(context) == compiles
    assert ("nothing is compiled" in caplog.text) == (compiler != "true")
    if compiler != "true":
        with pytest.raises(UserError, match="enforce_eager:"):
            VLLMEngine(enforce_eager=False)._may_compile(context)


def test_adapters_are_merged_into_what_the_engine_holds(
    engine: VLLMEngine, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Syncs after the first send only what training changes; the rest stays as it was, also the tied head."""
    policy = load_policy(str(tiny_model_folder))
    change(policy, 0.2)
    add_adapters(policy.model, Lora(rank=2, layers=["q_proj", "up_proj"]))
    sent: list[int] = []

    def counted(
        policy: Policy, only: Container[str] | None = None, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        found = [*with_tied_head(policy, only)]
        sent.append(len(found))
        yield from found

    monkeypatch.setattr(vllm, "with_tied_head", counted)
    monkeypatch.setattr(engine, "_changing", changing_weights(policy.model))
    engine._complete = False
    for seed in (1, 2):
        engine.sync(policy)
        assert_logprobs_are_the_policys(policy, engine.generate(PROMPTS, SAMPLING, SEEDS), PROMPTS, SAMPLING)
        for name, parameter in policy.model.named_parameters():
            if ".lora_" in name:
                parameter.data += 0.05 * seed
    engine.sync(policy.without_adapters())
    reference = load_policy(str(tiny_model_folder))
    change(reference, 0.2)
    assert_logprobs_are_the_policys(reference, engine.generate(PROMPTS, SAMPLING, SEEDS), PROMPTS, SAMPLING)
    layers = len(policy.model.model.layers)
    assert sent == [sent[0], 7 * layers, 7 * layers] and sent[0] > 9 * layers


def test_an_engine_that_lost_its_weights_gets_all(monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Path) -> None:
    """After it slept, or was started again."""
    sent: list[int] = []

    class LLM:
        def __init__(self, **settings: Any) -> None:
            pass

        def collective_rpc(self, method: Any, kwargs: Any = None) -> None:
            if method == "reload_weights":
                sent.append(len([*kwargs["weights_iterator"]]))

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **options: True

    monkeypatch.setattr("vllm.LLM", LLM)
    policy = load_policy(str(tiny_model_folder))
    add_adapters(policy.model, Lora(rank=2))
    every, some = len([*with_tied_head(policy)]), len(changing_weights(policy.model) or ())
    context, engine = EngineContext("", policy, byte_tokenizer(), 512, 4, 0), VLLMEngine()
    engine.start(context)
    engine.sync(policy)
    engine.sync(policy)
    engine.start(context)
    engine.sync(policy)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert engine.sleep()
    engine.sync(policy)
    engine.sync(policy)
    assert sent == [every, some, every, every, some] and some < every


def test_on_a_gpu_deterministic_means_batch_invariant(
    monkeypatch: pytest.MonkeyPatch, policy: Policy, environment: None
) -> None:
    """vLLM reads the variable when it is imported or started."""
    seen: list[str | None] = []

    class LLM:
        def __init__(self, **settings: Any) -> None:
            seen.append(os.environ.get("VLLM_BATCH_INVARIANT"))

    monkeypatch.setattr("vllm.LLM", LLM)
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "")
    for gpu, deterministic in ((False, True), (True, False), (True, True)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        context = EngineContext("", policy, byte_tokenizer(), 512, 4, 0, deterministic=deterministic)
        VLLMEngine(gpu_memory_utilization=0.5).start(context)
    assert seen == ["", "", "1"]


def test_more_banned_tokens_than_the_second_runner_takes_go_to_the_first(
    monkeypatch: pytest.MonkeyPatch, policy: Policy, environment: None
) -> None:
    monkeypatch.setattr("vllm.LLM", lambda **settings: None)
    for banned, runner in ((1024, None), (1025, "0")):
        monkeypatch.setattr(Policy, "placeholder_ids", tuple(range(banned)))
        VLLMEngine().start(EngineContext("", policy, byte_tokenizer(), 512, 4, 0))
        assert os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == runner


def test_no_batch_stays_in_flight_after_the_last_completion() -> None:
    """Under asynchronous scheduling, which a CPU's vLLM has not."""
    queue = [1, 2]
    engine = VLLMEngine()
    engine._context = EngineContext.in_place(None, byte_tokenizer(), 1)  # type: ignore[arg-type]
    engine._llm = SimpleNamespace(
        llm_engine=SimpleNamespace(
            engine_core=SimpleNamespace(engine_core=SimpleNamespace(batch_queue=queue)),
            step=queue.pop,
            has_unfinished_requests=lambda: False,
            renderer=None,  # nothing is rendered
        )
    )
    assert engine.generate([], SAMPLING, []) == [] and not queue


def test_its_share_of_a_gpu_is_what_training_leaves_and_stays_that_after_a_crash(
    monkeypatch: pytest.MonkeyPatch, policy: Policy, gpu: None
) -> None:
    free, shares = [60 << 30], []

    def give_back() -> None:
        free[0] += 4 << 30  # what torch keeps of freed tensors

    monkeypatch.setattr("vllm.LLM", lambda **given: shares.append(given["gpu_memory_utilization"]))
    monkeypatch.setattr(torch.cuda, "empty_cache", give_back)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free[0], 80 << 30))
    context, engine = EngineContext("", policy, byte_tokenizer(), 512, 4, 0, reserved=22 << 30), VLLMEngine()
    engine.start(context)
    free[0] = 38 << 30  # the moments are there
    engine.start(context)
    VLLMEngine(sleep=False).start(context)
    VLLMEngine(gpu_memory_utilization=0.7).start(context)
    assert shares == pytest.approx([(60 + 4 - 22) / 80 - 0.08] * 2 + [0.4, 0.7])
    free[0] = 26 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free[0], 40 << 30))
    VLLMEngine().start(replace(context, reserved=0))
    assert shares[-1] == pytest.approx((26 + 4 - 6) / 40)


class OnGPU:
    """What vLLM is told, on a GPU that is not there.

    Attributes:
        calls: in their order. wakes: whether there is memory when it wakes.
    """

    def __init__(self, **settings: Any) -> None:
        self.calls, self.wakes, self.llm_engine = ALL_CALLS, True, SimpleNamespace(reset_encoder_cache=None)
        self.settings = settings
        self.calls.append(f"start {settings['gpu_memory_utilization']:.2f}")
        torch.set_num_threads(1)

    def sleep(self, level: int) -> None:
        self.calls.append("sleep")

    @staticmethod
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA Error: out of memory at csrc/cumem_allocator.cpp:119")

    def wake_up(self, tags: list[str]) -> None:
        if not self.wakes:
            self.fail()
        self.calls.append(f"wake {tags[0]}")

    def collective_rpc(self, method: Any, kwargs: Any = None) -> None:
        if kwargs is not None:
            self.calls.append(f"load { ({str(weight.dtype) for _, weight in kwargs['weights_iterator']}) }")

    def reset_prefix_cache(self) -> bool:
        return True


ALL_CALLS: list[str] = []


@pytest.mark.exhaustive
def test_adapters_are_added_by_vllm_itself(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are loaded once, then adapters alone; each of them is used at once, also for cached prefixes."""
    policy = adapted(tiny_model_folder, Lora(rank=3, rslora=True, init="pissa"))
    engine, loaded = VLLMEngine(enforce_eager=True, adapters=True), []
    reference = policy.before_training()
    start_engine(engine, policy, tiny_model_folder)
    rpc = engine._llm.collective_rpc
    monkeypatch.setattr(
        engine._llm, "collective_rpc", lambda *args, **given: (loaded.append(args), rpc(*args, **given))
    )
    engine.sync(reference)
    assert check_engine(engine, reference, [*PROMPTS, LONG], PROBE) <= 1e-4
    for seed in (1, 2):  # after a third change vLLM's sums of PiSSA's large factors round by 1.6e-4
        engine.sync(policy)
        assert check_engine(engine, policy, [*PROMPTS, LONG], PROBE) <= 1e-4
        engine.sync(reference)
        assert check_engine(engine, reference, [*PROMPTS, LONG], PROBE) <= 1e-4
        engine.sync(policy)
        change_adapters(policy, seed)
        with pytest.raises(UserError, match="stale or wrong weights"):
            check_engine(engine, policy, [*PROMPTS, LONG], PROBE)
    assert len(loaded) == 1 and engine._folder is not None
    assert len([*engine._folder.path.iterdir()]) == 1, "those before are gone"

    with monkeypatch.context() as stale:  # vLLM keeps what it has loaded under a number
        from vllm.lora.request import LoRARequest as named

        number = engine._loads
        stale.setattr("vllm.lora.request.LoRARequest", lambda name, _, folder: named(name, number, folder))
        engine.sync(policy)
        with pytest.raises(UserError, match="stale or wrong weights"):
            check_engine(engine, policy, PROMPTS, PROBE)
    own = engine._folder.path
    engine.close()
    assert not own.exists()
    start_engine(engine, policy, tiny_model_folder)
    engine.sync(policy)
    assert check_engine(engine, policy, PROMPTS, PROBE) <= 1e-4, "after a restart"
    engine.close()


@pytest.mark.parametrize(
    ("options", "rank", "separate"),
    [
        ({"sleep": False}, 3, True),
        ({}, 3, False),
        ({"sleep": False, "adapters": False}, 3, False),
        ({"sleep": False}, 513, False),
    ],
)
def test_on_a_gpu_weights_that_stay_get_adapters(
    made_up_vllm: None, policy: Policy, options: Any, rank: int, separate: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """`test_adapters_are_added_by_vllm_itself` has the adapters themselves."""
    add_adapters(policy.model, Lora(rank=rank, alpha=6, layers=["q_proj", "up_proj"]))
    engine = VLLMEngine(**options)
    with caplog.at_level("INFO", "lit_rlvr"):
        engine.start(EngineContext("", policy, byte_tokenizer(), 512, 4, 0, dtype=torch.bfloat16))
    assert ("only the adapters" in caplog.text) == separate
    assert ("merged in" in caplog.text) != separate
    given = engine._llm.settings
    engine._llm = None
    engine.close()
    assert ("enable_lora" in given) == separate
    if separate:
        assert (given["max_lora_rank"], given["lora_target_modules"]) == (8, ["q_proj", "up_proj"])


def test_a_model_that_vllm_has_no_adapters_for_is_one_line(
    made_up_vllm: None, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise ValueError("OwnForCausalLM does not support LoRA yet.")

    add_adapters(policy.model, Lora(rank=3))
    monkeypatch.setattr("vllm.LLM", refuse)
    with pytest.raises(UserError, match=r"VLLMEngine\.adapters: ValueError: OwnFor.* does not support LoRA.* false"):
        VLLMEngine(sleep=False).start(EngineContext("", policy, byte_tokenizer(), 512, 4, 0))


def test_adapters_of_an_engine_that_sleeps_are_refused() -> None:
    refuse_all(VLLMEngine(adapters=True).hardware_problems("cpu", torch.float32))
    refuse_all(VLLMEngine(adapters=True, sleep=False).hardware_problems("cuda", torch.float32))
    with pytest.raises(UserError, match=r"VLLMEngine\.adapters: vLLM drops its weights to sleep"):
        refuse_all(VLLMEngine(adapters=True).hardware_problems("cuda", torch.float32))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, environment: None) -> None:
    """A GPU of 80 GiB, of which 60 are free, that multiplies in FP8, as far as settings go."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


@pytest.fixture
def made_up_vllm(monkeypatch: pytest.MonkeyPatch, gpu: None) -> None:
    ALL_CALLS.clear()
    monkeypatch.setattr("vllm.LLM", OnGPU)


def test_an_engine_makes_room_for_its_kv_cache_and_ends_the_run_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, policy: Policy, made_up_vllm: None, tmp_path: Path
) -> None:
    """vLLM's allocator cannot free what sleeps; the run's next start takes less."""
    engine = VLLMEngine()
    context = EngineContext("", policy, byte_tokenizer(), 512, 4, 0, dtype=torch.bfloat16, run=tmp_path)
    threads = [2]  # a real engine on the CPU, earlier in this process, forbids torch to change their number
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    engine.start(context)
    assert threads == [2, 1, 2], "vLLM leaves one"
    load = "load {'torch.bfloat16'}"
    for _ in range(2):  # iterations of AAPO: the policy's weights, and the reference's without having slept
        engine.sync(policy)
        engine.sync(policy)
        engine.sleep()
    assert ["start 0.67", load, load, "sleep", "wake weights", load, "wake kv_cache", load, "sleep"] == ALL_CALLS
    engine._llm.wakes = False
    with pytest.raises(ResumableError, match=r"out of GPU memory when it woke up; .* 0\.54 .*: resume with ckpt_path"):
        engine.sync(policy)
    save_smaller_sizes(tmp_path, given=8, left=4)  # training ran out of memory, too
    VLLMEngine().start(context)
    assert ALL_CALLS[-1] == "start 0.54" and smaller_sizes(tmp_path)["left"] == 4
    VLLMEngine().start(replace(context, run=tmp_path / "another"))
    assert ALL_CALLS[-1] == "start 0.67"


@pytest.mark.usefixtures("gpu")
def test_fp8_is_asked_of_vllm_and_widens_the_probe(monkeypatch: pytest.MonkeyPatch, policy: Policy) -> None:
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    settings: dict[str, Any] = {}
    monkeypatch.setattr("vllm.LLM", lambda **given: settings.update(given))
    context = EngineContext("", policy, byte_tokenizer(), 512, 4, 0, dtype=torch.bfloat16)
    plain, engine = VLLMEngine(gpu_memory_utilization=0.5), VLLMEngine(gpu_memory_utilization=0.5, quantize="fp8")
    plain.start(context)
    assert settings["quantization"] is None and not plain.quantized
    engine.start(context)
    assert settings["quantization"] in QUANTIZATION_METHODS and settings["dtype"] == "bfloat16"
    assert engine.probe_tolerance > 2 * plain.probe_tolerance
    assert resolve_correction(None, engine.is_exact(torch.bfloat16)) == "token_truncate"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("dtype", "device", "capability", "said"),
    [
        (torch.bfloat16, "cpu", (9, 0), "fp8 needs a GPU; leave the option out"),
        (torch.bfloat16, "cuda", (8, 6), "compute capability 8.9 or more, and this one has 8.6"),
        (
            torch.float32,
            "cuda",
            (9, 0),
            "fp8 layers give 16-bit results, not float32; use trainer.precision: bf16-mixed",
        ),
    ],
)
def test_fp8_is_refused_where_it_does_not_work(
    dtype: torch.dtype, device: str, capability: tuple[int, int], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_all(VLLMEngine().hardware_problems(device, dtype))
    refuse_all(VLLMEngine("bfloat16", quantize="fp8").hardware_problems("cuda", torch.float32))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    with pytest.raises(UserError, match=rf"VLLMEngine\.quantize: .*{said}"):
        refuse_all(VLLMEngine(quantize="fp8").hardware_problems(device, dtype))


def test_it_runs_on_this_ranks_device(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default vLLM takes the first device on every rank."""
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    running = engine._llm.llm_engine.engine_core.engine_core.model_executor
    assert isinstance(running, UniProcExecutor) and type(running).__name__ == "OnDevice"
    monkeypatch.setattr(UniProcExecutor, "_distributed_args", lambda self: ("tcp://here", 0, 0))
    assert object.__new__(executor_on(3))._distributed_args() == ("tcp://here", 0, 3)


@pytest.mark.parametrize("option", ["tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"])
def test_a_model_is_not_split_in_the_training_process(option: str) -> None:
    with pytest.raises(UserError, match=rf"VLLMEngine\.options: {option} splits the model.*lit-rlvr serve"):
        VLLMEngine(options={option: 2})
    VLLMEngine(options={option: 1})


@pytest.mark.slow
def test_a_prefix_cache_that_is_kept_is_an_error(engine: VLLMEngine, policy: Policy) -> None:
    """vLLM does not empty it while a request is running, and reports that only by its return value."""
    llm = engine._llm.llm_engine
    llm.add_request("0", {"prompt_token_ids": [5] * 64}, engine._parameters(Sampling(), 0, 9))
    llm.step()
    try:
        with pytest.raises(RuntimeError, match="keeps its prefix cache"):
            engine.sync(policy)
    finally:
        llm.abort_request(["0"])
        llm.step()


def test_what_sleep_leaves_becomes_noise(engine: VLLMEngine, policy: Policy) -> None:
    def weights() -> list[torch.Tensor]:
        (found,) = engine._llm.collective_rpc(lambda worker: [p.clone() for p in worker.get_model().parameters()])
        return list(found)

    before = weights()  # on a CPU some are empty: it keeps packed copies
    engine._llm.collective_rpc(vllm._make_noise)
    assert not any(a.numel() and torch.equal(a, b) for a, b in zip(weights(), before, strict=True))
    engine.sync(policy)
    assert_logprobs_are_the_policys(policy, engine.generate(PROMPTS, SAMPLING, SEEDS), PROMPTS, SAMPLING)


def test_turns_of_different_completions_run_together(engine: VLLMEngine, policy: Policy) -> None:
    sampling = replace(SAMPLING, max_turns=4, max_observation_tokens=48)
    turns = Recording(Echo(), between(ends=policy.eos_token_ids))
    groups, again = (engine.generate(PROMPTS, sampling, SEEDS, turns=turns) for _ in range(2))
    turns.close()
    assert len({len(completion.turns) for group in groups for completion in group}) > 1
    assert_exact(PROMPTS, groups, turns, policy.model, sampling)
    assert groups == again, "however long the environments take"


def test_thoughts_end_with_their_budget(engine: VLLMEngine, policy: Policy) -> None:
    check_thought_budget(engine, policy.model, PROMPTS, SAMPLING, SEEDS)


def test_completions_of_a_prompt_may_begin_differently(engine: VLLMEngine, policy: Policy) -> None:
    check_own_beginnings(engine, policy, PROMPTS, replace(SAMPLING, max_turns=3, max_observation_tokens=48), SEEDS)


def test_a_stop_text_ends_a_turn_in_both_engines(engine: VLLMEngine, policy: Policy) -> None:
    """A character that was sampled; what was sampled up to there stays the same."""
    decoder = HFEngine()
    start_engine(decoder, policy)
    tokenizer = byte_tokenizer()
    for generates in (engine, decoder):
        free = [c for group in generates.generate(PROMPTS, SAMPLING, SEEDS) for c in group]
        letters = "".join(tokenizer.decode(c.token_ids[1:-1]) for c in free)
        stop = next(letter for letter in letters if letter.isascii())
        found = [
            c for group in generates.generate(PROMPTS, replace(SAMPLING, stop=("never", stop)), SEEDS) for c in group
        ]
        ended = 0
        for before, after in zip(free, found, strict=True):
            text = tokenizer.decode(before.token_ids)
            if stop not in text:
                assert before.token_ids == after.token_ids and before.finish_reason == after.finish_reason
                continue
            ended += 1
            assert tokenizer.decode(after.token_ids) == text[: text.index(stop) + len(stop)]
            assert before.token_ids[: len(after.token_ids)] == after.token_ids and after.finish_reason == "stop"
            assert after.logprobs == pytest.approx(before.logprobs[: len(after.token_ids)], abs=1e-5)
        assert ended, generates.name


HYBRID = {
    "num_hidden_layers": 1,
    "layer_types": ["linear_attention"],
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": VOCAB,
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="these are limits of a CPU's kernels")
@pytest.mark.parametrize(
    ("config", "dtype", "limit"),
    [
        (
            LlamaConfig(hidden_size=48, num_attention_heads=3, num_hidden_layers=1, vocab_size=VOCAB),
            "float32",
            r"LlamaForCausalLM on a CPU: its attention has heads of 16, and vLLM's kernels take 32, 64, ",
        ),
        (
            Qwen3_5TextConfig(**HYBRID, head_dim=32),
            "float32",
            r"Qwen3_5ForCausalLM on a CPU: .*delta nets in bfloat16, not torch.float32",
        ),
        (
            Qwen3_5TextConfig(**HYBRID, head_dim=32, linear_key_head_dim=32),
            "bfloat16",
            r"delta nets have heads of 32, and vLLM's kernels take 64 and 128",
        ),
    ],
)
def test_what_a_cpus_kernels_do_not_compute_is_refused_before_vllm_starts(config: Any, dtype: Any, limit: str) -> None:
    policy = Policy(AutoModelForCausalLM.from_config(config), ENDS, shared_prefix=False)
    with pytest.raises(UserError, match=rf"rollout.engine: vllm cannot run .*{limit}.*use rollout.engine: hf"):
        start_engine(VLLMEngine(dtype=dtype), policy)
    if dtype == "bfloat16":
        config.linear_key_head_dim = 64
        VLLMEngine(dtype=dtype)._check_cpu_kernels(policy.model)
