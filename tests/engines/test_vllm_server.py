"""A real vLLM server on this machine, started as users start it, on a tiny model."""

import copy
import importlib.util
import json
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file
from tiny import ENDS, byte_tokenizer, make_prompt, random_ids, save_adapter, save_model, start_engine, tiny_llama
from tiny_engines import adapted, assert_logprobs_are_the_policys, change, change_adapters
from tiny_episodes import check_own_beginnings
from tiny_fit import assert_same, fit
from tiny_runs import (
    FIT,
    STRATEGIES,
    completions,
    in_two_processes,
    launch,
    metrics,
    summary,
    to,
)
from tiny_server import KEY, Served
from tiny_vlms import differences, mixed_prompts

from lit_rlvr.algorithms import OPD
from lit_rlvr.distributed import collectives
from lit_rlvr.engines import server as vllm_server
from lit_rlvr.engines.base import EngineContext
from lit_rlvr.engines.client import AdapterLimits, ServerError, VLLMServer, wait_for
from lit_rlvr.engines.server import VLLMServerEngine, check_model, differing_copies
from lit_rlvr.engines.synced import SyncedEngine, check_engine, trainer_logprobs
from lit_rlvr.engines.transfer import FileTransfer, NCCLTransfer, nccl, network, own_folder
from lit_rlvr.engines.transfer.base import Weights
from lit_rlvr.engines.transfer.nccl import RepeatedWeights
from lit_rlvr.environments import Agent
from lit_rlvr.errors import UserError
from lit_rlvr.options import Lora, Teacher
from lit_rlvr.policy.adapters import add_adapters, changing_weights
from lit_rlvr.policy.loading import load_policy
from lit_rlvr.policy.policy import Policy
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

SAMPLING = Sampling(temperature=0.8, max_tokens=12, banned_token_ids=(3, 50))
PROBE = Sampling(max_tokens=16)
PROMPTS = [make_prompt(random_ids(n, n), f"p{n}") for n in (7, 2, 300, 1)]
SEEDS = [[100 * p + g for g in range(3)] for p in range(4)]


@pytest.fixture(scope="module")
def served(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tiny_model_folder, tmp_path_factory.mktemp("server") / "log") as server:
        yield server


@pytest.fixture
def make_engine(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., VLLMServerEngine]]:
    """Engines that are closed afterwards: until then each restores its weights when the server comes back."""
    assert served.process and served.process.returncode is None, f"it ended: {served.log.read_text()[-3000:]}"
    monkeypatch.setenv("SERVER_KEY", KEY)
    engines: list[VLLMServerEngine] = []

    def make(**options: Any) -> VLLMServerEngine:
        defaults: dict[str, Any] = {
            "transfer": FileTransfer(tmp_path / "weights"),
            "api_key_env": "SERVER_KEY",
            "recompute_cache": True,
        }
        engines.append(VLLMServerEngine(**{"urls": [served.url], "timeout": 300.0} | defaults | options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def policy(tiny_model_folder: Path) -> Policy:
    return load_policy(str(tiny_model_folder))


@pytest.fixture
def engine(make_engine: Callable[..., VLLMServerEngine], policy: Policy) -> Iterator[VLLMServerEngine]:
    made = make_engine()
    start_engine(made, policy)
    made.sync(policy)
    yield made
    made.close()


@pytest.mark.slow
def test_groups_come_in_order_and_each_is_told_once(engine: VLLMServerEngine) -> None:
    told: dict[int, list[Completion]] = {}
    seeds = [[1, 2], [3], [], [4, 5, 6, 7]]
    groups = engine.generate(PROMPTS, SAMPLING, seeds, told.__setitem__)
    assert [len(group) for group in groups] == [2, 1, 0, 4]
    assert told == {p: group for p, group in enumerate(groups) if group}
    assert engine.generate(PROMPTS[::-1], SAMPLING, seeds[::-1])[::-1] == groups, "a seed, a completion"
    assert engine.generate([], SAMPLING, []) == []
    found = [c for group in engine.generate(PROMPTS, SAMPLING, SEEDS) for c in group]
    stopped = [c for c in found if c.finish_reason == "stop"]
    assert stopped and all(c.token_ids[-1] in ENDS for c in stopped)
    found = [c for group in engine.generate(PROMPTS, Sampling(max_tokens=1), SEEDS) for c in group]
    cut = [c for c in found if c.finish_reason == "length"]
    assert cut and all(len(c.token_ids) == 1 and c.token_ids[0] not in ENDS for c in cut)


@pytest.mark.slow
def test_completions_may_begin_differently_on_a_server(engine: VLLMServerEngine, policy: Policy) -> None:
    check_own_beginnings(engine, policy, PROMPTS, replace(SAMPLING, max_turns=3, max_observation_tokens=48), SEEDS)
    with pytest.raises(UserError, match=r"sampling\.stop:"):
        engine.generate(PROMPTS, replace(SAMPLING, stop=("x",)), SEEDS)


def generate_during_updates(
    engine: VLLMServerEngine,
    policy: Policy,
    prompts: list[Prompt],
    sampling: Sampling,
    updates: int,
    sync: Callable[[Policy], None] | None = None,
) -> tuple[dict[str, Policy], list[list[Completion]]]:
    """Generate during weight updates; return the policies by their labels, and the completions of each prompt.

    The first server waits from tokens of the weights of now to the update, so that what runs cannot end before it.
    """
    seeds = [[8 * p + g for g in range(8)] for p in range(len(prompts))]
    found: dict[int, list[Completion]] = {}
    begun = threading.Event()
    held = {engine.label: copy.deepcopy(policy)}
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(
            engine.generate_stream, prompts, sampling, seeds, lambda p, drop: begun.set(), found.__setitem__
        )
        assert begun.wait(60)
        for seed in range(updates):
            before = generated(engine)
            until(lambda: generated(engine) > before)  # noqa: B023
            engine.servers[0].pause()
            change(policy, 0.3, seed)
            (sync or engine.sync)(policy)
            held[engine.label] = copy.deepcopy(policy)
        running.result()
    return held, [found[p] for p in range(len(prompts))]


def generated(engine: VLLMServerEngine) -> float:
    """Return how many tokens the engine's first server has sampled since it started."""
    text = httpx.get(f"{engine.servers[0].url}/metrics", headers=engine.servers[0].headers, timeout=30).text
    return sum(float(n) for n in re.findall(r"^vllm:generation_tokens_total\{.*\} (\S+)$", text, re.M))


def fresh_differences(
    held: dict[str, Policy], groups: list[list[Completion]], prompts: list[Prompt], sampling: Sampling
) -> tuple[list[float], list[float]]:
    """How much each token's log-probability differs from fresh scoring with the weights that its label names: tokens
    without, and with a stale cache."""
    scored = {label: trainer_logprobs(policy, prompts, groups, sampling) for label, policy in held.items()}
    found: tuple[list[float], list[float]] = [], []
    for k, completion in enumerate(completion for group in groups for completion in group):
        assert len(completion.labels) == len(completion.token_ids)
        stale = completion.stale_cache or (False,) * len(completion.labels)
        for t, (label, where) in enumerate(zip(completion.labels, stale, strict=True)):
            found[where].append(abs(completion.logprobs[t] - float(scored[label][k][t])))
    return found


def assert_logprobs_are_their_versions(
    held: dict[str, Policy], groups: list[list[Completion]], prompts: list[Prompt], sampling: Sampling
) -> None:
    """Each token's log-probability is that of fresh scoring."""
    fresh, stale = fresh_differences(held, groups, prompts, sampling)
    assert max(fresh) <= 1e-4 and not stale


@pytest.mark.slow
def test_what_runs_goes_on_with_new_weights_and_each_token_names_its_own(
    make_engine: Callable[..., VLLMServerEngine], policy: Policy
) -> None:
    """vLLM computes the cache of keys and values anew; with the old one, log-probabilities are those of no weights."""
    engine = make_engine()
    engine.start(EngineContext("", policy, byte_tokenizer(), 1024, 512, 0))
    engine.sync(policy)
    prompts = [make_prompt(random_ids(20, p), f"p{p}") for p in range(12)]
    sampling = Sampling(max_tokens=500, banned_token_ids=tuple(policy.eos_token_ids))  # none ends early
    held, groups = generate_during_updates(engine, policy, prompts, sampling, updates=2)
    assert any(len({*completion.labels}) == 3 for group in groups for completion in group), "all three"
    assert_logprobs_are_their_versions(held, groups, prompts, sampling)
    engine.close()


@pytest.mark.exhaustive
def test_what_runs_may_keep_its_cache_and_new_requests_do_not_use_it(
    make_engine: Callable[..., VLLMServerEngine], policy: Policy
) -> None:
    """Requests hold blocks while the weights change. Tokens that follow keys and values of older weights are marked,
    and differ from fresh scoring; the others equal it, also of prompts that older blocks would fit."""
    engine = make_engine(recompute_cache=False)
    engine.start(EngineContext("", policy, byte_tokenizer(), 1024, 512, 0))
    engine.sync(policy)
    prompts = [make_prompt(random_ids(70, p), f"p{p}") for p in range(12)]  # two whole blocks each
    sampling = Sampling(max_tokens=500, banned_token_ids=tuple(policy.eos_token_ids))  # none ends early
    probed: list[float] = []

    def sync_and_probe(policy: Policy) -> None:
        engine.sync(policy)
        probed.append(check_engine(engine, policy, prompts[:3], PROBE))

    held, groups = generate_during_updates(engine, policy, prompts, sampling, updates=1, sync=sync_and_probe)
    assert max(probed) <= 1e-4
    fresh, stale = fresh_differences(held, groups, prompts, sampling)
    assert max(fresh) <= 1e-4 and max(stale) > 0.01
    older = next(iter(held))
    for completion in (completion for group in groups for completion in group):
        labels = {*completion.labels}  # one that waited for its turn during the update has the new one alone
        assert labels != {older} if any(completion.stale_cache) else len(labels) == 1
    engine._salt = older  # the blocks of the older weights are still there
    with pytest.raises(UserError, match="stale or wrong weights"):
        check_engine(engine, policy, prompts[:3], PROBE)
    engine.close()


@pytest.mark.slow
def test_other_weights_are_no_samples(
    engine: VLLMServerEngine, make_engine: Callable[..., VLLMServerEngine], policy: Policy
) -> None:
    """Somebody else uses the server."""
    other = make_engine()
    start_engine(other, policy)
    synced = SyncedEngine(engine)
    with pytest.raises(RuntimeError, match=r"answered with other weights \(zeros\) than those of the last sync"):
        synced.check_labels(engine.generate(PROMPTS, SAMPLING, SEEDS)[0])
    other.sync(policy)
    with pytest.raises(RuntimeError, match=rf"answered with other weights \({other.label}\) than"):
        synced.check_labels(engine.generate(PROMPTS, SAMPLING, SEEDS)[0])
    engine.restore(policy)
    assert_logprobs_are_the_policys(policy, engine.generate(PROMPTS, SAMPLING, SEEDS), PROMPTS, SAMPLING)


@pytest.mark.slow
def test_the_tokens_of_an_agent_name_the_weights_that_sampled_them(
    make_engine: Callable[..., VLLMServerEngine],
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Programs play while weights change; each token's log-probability is that of the weights that it names."""
    engine = make_engine()
    held: list[Policy] = []  # by version
    sync = engine.sync

    def sync_and_hold(policy: Policy) -> None:
        sync(policy)
        held.append(copy.deepcopy(policy))

    monkeypatch.setattr(engine, "sync", sync_and_hold)
    sampling = Sampling(max_tokens=12, max_turns=4, max_observation_tokens=128)
    script = Path(__file__).parents[1] / "helpers" / "tiny_agent.py"
    _, seen = fit(
        tiny_model_folder,
        tmp_path / "run",
        steps=2,
        engine=engine,
        environment=Agent([sys.executable, str(script), "turns", "worker"], workers=8),
        sampling=sampling,
        rewards=None,
        prompts_per_rollout=2,
        group_size=2,
        staleness=1,
        max_failure_rate=0.0,
    )
    ages = set()
    for step, rollout in enumerate(seen.rollouts):
        scored = [trainer_logprobs(policy, rollout.prompts, rollout.completions, sampling) for policy in held]
        assert rollout.versions is not None
        for row, completion in enumerate(completion for group in rollout.completions for completion in group):
            assert len(completion.turns) == 3
            for place, is_sampled in enumerate(completion.from_model):
                if is_sampled:
                    version = int(rollout.versions[row, place])
                    assert abs(completion.logprobs[place] - float(scored[version][row][place])) <= 1e-4
                    ages.add(step - version)
    assert ages == {0, 1}


def test_the_servers_model_is_compared_by_its_sizes(
    policy: Policy, tiny_model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A copy under another path is the same model; one that cannot be read here is only named."""
    ours = policy.model.config
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model_folder, copy)
    check_model("http://here", str(copy), ours)
    assert not caplog.text
    check_model("http://here", "/elsewhere/model", ours)
    assert "http://here serves /elsewhere/model, which cannot be read here" in caplog.text
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3, "vocab_size": 300}))
    sizes = rf"\((num_hidden_layers 3|vocab_size 300), .*\), but the run trains {tiny_model_folder} \("
    with pytest.raises(UserError, match=rf"^http://here: it serves {copy} {sizes}"):
        check_model("http://here", str(copy), ours)


def test_a_server_that_is_back_takes_no_requests_before_it_has_its_weights(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine restarts while groups run, which any server without a failure would get."""
    engine = VLLMServerEngine(["http://127.0.0.1:1", "http://127.0.0.1:2"], FileTransfer())
    alive, back = engine._replicas
    engine._syncs, back.failure = 1, "it died"
    monkeypatch.setattr(engine, "_loop", object())
    monkeypatch.setattr(engine, "_check", lambda *_: None)
    monkeypatch.setattr("lit_rlvr.engines.server.wait_for", lambda servers, least: servers)
    engine.start(EngineContext("", policy, byte_tokenizer(), 64, 8, 0))
    assert alive.failure is None and back.failure is not None
    restored = []
    monkeypatch.setattr(engine, "_restore_server", lambda server: restored.append((server, back.failure)))
    engine.restore(policy)
    assert [server for server, _ in restored] == engine.servers and restored[1][1] is not None
    assert alive.failure is None and back.failure is None


def test_a_server_that_is_back_gets_no_weights_that_training_is_changing(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL sends the policy's weights as they are now, under the label of the last sync's."""
    restored: list[bool] = []
    for made, streams, waits in ((NCCLTransfer, True, True), (NCCLTransfer, False, False), (FileTransfer, True, False)):
        engine = VLLMServerEngine(["http://127.0.0.1:1"], made())
        (server,) = engine.servers
        engine._context = EngineContext("", policy, byte_tokenizer(), 64, 8, 0, streams=streams)
        engine._run, engine._syncs = "run", 1
        monkeypatch.setattr(engine, "_check", lambda *_: None)
        monkeypatch.setattr(engine, "_restore_server", lambda _: restored.append(True))
        monkeypatch.setattr(server, "version", lambda: "")
        restored.clear()
        if waits:
            with pytest.raises(UserError, match="lost its weights, which training is changing: it gets them with"):
                engine._take_back(server)
            monkeypatch.setattr(server, "version", lambda held=engine.label: held)
            assert not restored
        engine._take_back(server)  # it was only out of reach
        assert restored


def test_caches_are_kept_unless_the_option_says_otherwise() -> None:
    for options, empties in (({}, False), ({"recompute_cache": True}, True)):
        engine = VLLMServerEngine(["http://127.0.0.1:1"], FileTransfer(), **options)
        assert [server.recompute_cache for server in engine.servers] == [empties]
        assert ("cache_salt" in engine._weight_fields()) is not empties, "else other weights' blocks would be used"


def test_copies_that_differ_are_named() -> None:
    same, other = {"tp0:norm": {"a"}, "tp0:head": {"b"}}, {"tp0:norm": {"a"}, "tp0:head": {"c"}}
    assert differing_copies({"http://a": same, "http://b": dict(same)}) == ""
    assert "http://a and http://c hold different weights after a sync (tp0:head)" in differing_copies(
        {"http://a": same, "http://b": dict(same), "http://c": other}
    )
    split = {"tp0:norm": {"a"}, "tp0:head": {"d"}, "tp1:head": {"e"}}
    assert differing_copies({"http://a": same, "http://b": split}) == "", "split over two GPUs"
    assert "http://a: its replicas hold" in differing_copies({"http://a": {"tp0:norm": {"a", "b"}}})


@pytest.mark.slow
def test_after_a_sync_a_server_holds_what_a_server_of_the_exported_model_holds(
    served: Served,
    make_engine: Callable[..., VLLMServerEngine],
    tiny_model_folder: Path,
    policy: Policy,
    tmp_path: Path,
) -> None:
    engine = make_engine()
    start_engine(engine, policy)
    change(policy, 0.2)
    engine.sync(policy)
    shutil.copytree(tiny_model_folder, tmp_path / "exported")
    policy.model.save_pretrained(tmp_path / "exported")
    with Served(tmp_path / "exported", tmp_path / "log") as exported:
        both = make_engine(urls=[served.url, exported.url])
        wait_for(both.servers, 2)
        both.check_copies()
        change(policy, 0.2)
        engine.sync(policy)
        with pytest.raises(UserError, match=f"{served.url} and {exported.url} hold different weights"):
            both.check_copies()
        engine.close()


@pytest.mark.slow
def test_servers_that_are_away_or_serve_something_else_are_refused(
    make_engine: Callable[..., VLLMServerEngine],
    policy: Policy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    untied_model_folder: Path,
    served: Served,
) -> None:
    def refused(said: str, **options: Any) -> None:
        with pytest.raises(UserError, match=said):
            start_engine(make_engine(**options), policy)

    refused("name at least one server", urls=[])
    refused("must begin with http:// or https://", urls=["localhost:8000"])
    refused(r"does not answer within 1 s .*lit-rlvr serve", urls=["http://127.0.0.1:9"], timeout=1)
    refused("the environment variable NO_KEY is not set", api_key_env="NO_KEY")
    with pytest.raises(
        UserError, match=rf"serves {served.folder} \(model_type llama, .*{untied_model_folder} \(.*qwen2"
    ):
        start_engine(make_engine(), load_policy(str(untied_model_folder)))
    settings = VLLMServer.settings
    for change_, said in (
        ({"max_model_len": 100}, "start it with --max-model-len 512"),
        ({"logprobs_mode": "raw_logprobs"}, "--logprobs-mode processed_logprobs"),
        ({"quantization": "awq"}, "its weights are quantised by awq.*lit-rlvr serve --quantize fp8"),
    ):
        monkeypatch.setattr(VLLMServer, "settings", lambda self, change_=change_: settings(self) | change_)
        refused(said)
    monkeypatch.setattr(VLLMServer, "settings", lambda self: settings(self) | {"quantization": "fp8_per_channel"})
    in_8_bits = make_engine()
    start_engine(in_8_bits, policy)
    assert in_8_bits.quantized
    monkeypatch.undo()
    monkeypatch.setenv("SERVER_KEY", "another")
    wrong = make_engine(api_key_env="SERVER_KEY")
    start_engine(wrong, policy)
    wrong.sync(policy)
    with pytest.raises(UserError, match="requires an API key") as raised:
        wrong.generate(PROMPTS, SAMPLING, SEEDS)
    assert "another" not in str(raised.value)
    (tmp_path / "file").touch()
    monkeypatch.setenv("SERVER_KEY", KEY)
    with monkeypatch.context() as gpu:
        gpu.setattr(torch.cuda, "is_available", lambda: True)
        context = EngineContext("", policy, byte_tokenizer(), 512, 64, 0, deterministic=True)
        with pytest.raises(UserError, match="lit-rlvr serve --deterministic"):
            make_engine().start(context)
    make_engine().start(EngineContext("", policy, byte_tokenizer(), 512, 64, 0, dtype=torch.bfloat16))
    assert "computes in float32 and the trainer in bfloat16" in caplog.text
    lost = make_engine(transfer=FileTransfer(tmp_path / "file" / "weights"))
    start_engine(lost, policy)
    with pytest.raises(UserError, match=r"FileTransfer\.folder:"):
        lost.sync(policy)
    with pytest.raises(UserError, match="there is no GPU here; use FileTransfer"):
        NCCLTransfer()._connect([])


@pytest.mark.slow
def test_a_teacher_on_a_server_gives_the_gradients_of_one_in_this_process(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a server with other tokens is refused."""
    student, other = (save_model(tiny_llama(1), tmp_path / name) for name in ("student", "other"))
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["user"]})
    tokenizer.save_pretrained(other)
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    with Served(tiny_model_folder, tmp_path / "log") as server:
        here, there = (
            fit(student, tmp_path / "run", algorithm=OPD, teacher=Teacher(model))[1].gradients[0]
            for model in (str(tiny_model_folder), server.url)
        )
        with pytest.raises(UserError, match=f"model.teacher.model: {server.url} has other tokens than the policy: tok"):
            fit(other, tmp_path / "run", algorithm=OPD, teacher=Teacher(server.url))
    assert_same(there, here)


@pytest.mark.slow
def test_another_server_takes_over_and_the_killed_one_is_used_again(
    served: Served,
    make_engine: Callable[..., VLLMServerEngine],
    tiny_model_folder: Path,
    policy: Policy,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The second has two processes that take requests, which share its engine's weights."""
    prompts = [make_prompt(random_ids(20, p), f"p{p}") for p in range(16)]
    seeds, sampling = [[8 * p + g for g in range(8)] for p in range(16)], Sampling(max_tokens=100)
    with Served(tiny_model_folder, tmp_path / "log", "--api-server-count", "2") as second:
        engine = make_engine(urls=[served.url, second.url])
        synced = SyncedEngine(engine)
        synced.start(EngineContext(str(tiny_model_folder), policy, byte_tokenizer(), 512, 192, 0))
        synced.sync_weights(policy, 1, prompts, sampling)
        whole = synced.generate(prompts, sampling, seeds)
        killing = threading.Timer(0.3, second.kill)
        killing.start()
        assert synced.generate(prompts, sampling, seeds) == whole
        killing.join()
        change(policy, 0.1)
        synced.sync_weights(policy, 2, prompts, sampling)
        assert second.url in caplog.text and "the other servers take over its completions" in caplog.text
        assert [server.url for server in engine._lost] == [second.url]
        second.start()
        wait_for([VLLMServer(second.url, None, 300.0)], 1)
        changed = synced.generate(prompts, sampling, seeds)
        until(lambda: not engine._lost)
        assert engine.servers[1].version() == engine.label
        assert synced.generate(prompts, sampling, seeds) == changed != whole
        synced.close()


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def from_yaml(served: Served, folder: Path | None = None) -> list[str]:
    """The options that a user adds to the command line; without a folder the weights go through memory."""
    engine = {
        "urls": f"[{served.url}]",
        "api_key_env": "SERVER_KEY",
        "timeout": 300,
        "transfer": "FileTransfer",
        "recompute_cache": "true",
    }
    options = [x for name, value in engine.items() for x in (f"--rollout.engine.init_args.{name}", str(value))]
    folder_of = ["--rollout.engine.init_args.transfer.init_args.folder", str(folder)] if folder else []
    return ["--rollout.engine", "VLLMServerEngine", *options, *folder_of, "--rollout.safeguards.probe_every", "1"]


@pytest.mark.exhaustive
def test_a_run_that_keeps_its_cache_is_replayed_with_what_was_logged(
    served: Served, run_folder: Path, lit_rlvr: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_KEY", KEY)
    command = [*FIT, *from_yaml(served), "--rollout.engine.init_args.recompute_cache", "false"]
    command += ["--rollout.staleness", "2", "--trainer.max_steps", "8", "--rollout.sampling.max_tokens", "700"]
    command += ["--data.init_args.prompts_per_rollout", "2", "--rollout.group_size", "2"]  # training takes no time
    command += ["--rollout.sampling.banned_token_ids", str([*ENDS])]  # and none ends early
    lit_rlvr(*command, status=0)
    lit_rlvr(*command, "--rollouts-from", "run", *to("again"), status=0)
    shares = [[row["train/staleness/stale_cache"] for row in metrics(run_folder / run)] for run in ("run", "again")]
    assert shares[0] == shares[1] and max(float(share) for share in shares[0] if share) > 0
    assert summary(run_folder / "run")["weights_sha256"] == summary(run_folder / "again")["weights_sha256"]


@pytest.mark.slow
def test_a_trainer_killed_in_an_update_goes_on_where_its_checkpoint_is(
    served: Served, run_folder: Path, lit_rlvr: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the server paused, with requests of its own; no group is lost or trained on twice."""
    monkeypatch.setenv("SERVER_KEY", KEY)
    command = [*FIT, *from_yaml(served), "--rollout.staleness", "2", "--trainer.max_steps", "6"]
    command += ["--checkpoint.every", "1", "--run.save_prompts", "4"]
    command += ["--data.init_args.high", "12"]  # 124 prompts: none comes twice
    killed = launch([*command, "--rollout.engine.init_args.transfer", "tiny_engines.KilledInItsFourthUpdate"], Path())
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert httpx.get(f"{served.url}/is_paused", headers={"Authorization": f"Bearer {KEY}"}).json()["is_paused"]
    lit_rlvr(*command, "--ckpt_path", "last", status=0)
    assert summary(run_folder / "run")["resumed_from_step"] == 3
    trained = [(row["id"], row["sample"]) for row in completions(run_folder / "run")]
    assert len(trained) == len({*trained}) == 6 * 4 * 4


@pytest.mark.exhaustive
def test_one_and_two_processes_train_on_a_server(
    served: Served, run_folder: Path, lit_rlvr: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_KEY", KEY)
    result = lit_rlvr(*FIT, *from_yaml(served), *to("one"), status=0)
    assert summary(run_folder / "one")["engine"] == "vllmserver" and KEY not in result.err
    assert KEY not in (run_folder / "one/config.yaml").read_text()
    assert "weights go through" not in result.err and not list(own_folder.MEMORY.glob("lit-rlvr-weights-*"))
    in_two_processes(run_folder, [*FIT, *STRATEGIES["fsdp2"], *from_yaml(served, run_folder / "weights"), *to("two")])
    sampled, wanted = ([row["completion"] for row in completions(run_folder / name)] for name in ("two", "one"))
    assert sampled == wanted


@pytest.mark.exhaustive
def test_weights_reach_all_parts_of_a_model_that_is_split_over_two_workers(
    tiny_model_folder: Path, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_KEY", KEY)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")  # a core for each, on one NUMA node
    with Served(tiny_model_folder, tmp_path / "log", "--tensor-parallel-size", "2") as split:
        engine = VLLMServerEngine(
            [split.url], FileTransfer(tmp_path / "weights"), "SERVER_KEY", 900, recompute_cache=True
        )
        start_engine(engine, policy)
        assert engine.servers[0].workers() == 2
        for seed in (1, 2):
            change(policy, 0.3, seed)
            engine.sync(policy)
            assert_logprobs_are_the_policys(policy, engine.generate(PROMPTS, SAMPLING, SEEDS), PROMPTS, SAMPLING)


@pytest.mark.slow
@pytest.mark.parametrize("any_vlm_folder", ["qwen2.5-vl"], indirect=True)
def test_images_on_a_server_are_those_of_the_trainer(
    in_vllm: None, vlm_context: EngineContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_KEY", KEY)
    policy, prompts = vlm_context.policy, mixed_prompts(Path(vlm_context.folder))
    sampling = Sampling(max_tokens=6).with_banned(policy.placeholder_ids)
    encoded: list[Any] = []
    png_url = vllm_server.png_url
    monkeypatch.setattr(vllm_server, "png_url", lambda image: encoded.append(image) or png_url(image))
    with Served(Path(vlm_context.folder), tmp_path / "log") as served:
        engine = VLLMServerEngine(
            [served.url], FileTransfer(tmp_path / "weights"), "SERVER_KEY", 300, recompute_cache=True
        )
        engine.start(vlm_context)
        for _ in range(2):
            engine.sync(policy)
            groups = engine.generate(prompts, sampling, SEEDS[:3])
            found = differences(policy, prompts, groups, sampling)
            assert max(found.values()) <= 5e-5, found
            change(policy, 0.1)
        assert len(encoded) == 2 * 3, "once for all completions of a prompt"
        engine.sync(policy)
        banned = (*sampling.banned_token_ids, *policy.eos_token_ids)  # none ends early
        prompts, sampling = 6 * prompts, replace(sampling, max_tokens=150, banned_token_ids=banned)
        held, groups = generate_during_updates(engine, policy, prompts, sampling, updates=2)
        assert any(len({*completion.labels}) > 1 for group in groups for completion in group)
        assert_logprobs_are_their_versions(held, groups, prompts, sampling)
        engine.close()


@pytest.mark.exhaustive
def test_a_server_adds_adapters_itself(
    make_engine: Callable[..., VLLMServerEngine],
    tiny_model_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It gets the weights once and then adapters, also after a restart; without --enable-lora they are merged."""
    save_adapter(tiny_model_folder, tmp_path / "first", r=3)
    policy = adapted(tiny_model_folder, Lora(adapter="continue"), tmp_path / "first")
    reference = policy.before_training()
    with Served(tiny_model_folder, tmp_path / "log", "--enable-lora", "--max-lora-rank", "8") as served:
        engine = make_engine(urls=[served.url])
        (server,), folder = engine.servers, tmp_path / "weights"
        with caplog.at_level("INFO", "lit_rlvr"):
            start_engine(engine, policy)
        assert "later ones only the adapters" in caplog.text
        for seed in (1, 2, 3):
            engine.sync(policy)
            assert check_engine(engine, policy, PROMPTS, PROBE) <= 1e-4
            engine.sync(reference)
            assert check_engine(engine, reference, PROMPTS, PROBE) <= 1e-4
            engine.sync(policy)
            change_adapters(policy, seed)
            with pytest.raises(UserError, match="stale or wrong weights"):
                check_engine(engine, policy, PROMPTS, PROBE)
        engine.sync(policy)
        kept = [model["id"] for model in server.get("/v1/models")["data"] if model["parent"]]
        assert kept == [engine.label] and len([*folder.iterdir()]) == 2, "the weights and the last adapters"
        served.kill()
        served.start()
        with pytest.raises(ServerError):
            engine.generate(PROMPTS, SAMPLING, SEEDS)
        engine.start(engine._context)
        engine.restore(policy)
        assert check_engine(engine, policy, PROMPTS, PROBE) <= 1e-4
        settings = VLLMServer.settings
        monkeypatch.setattr(VLLMServer, "settings", lambda self: settings(self) | {"adapters": AdapterLimits(0, None)})
        with pytest.raises(
            UserError, match=r"takes no adapters any more; start it with --enable-lora --max-lora-rank 8"
        ):
            engine.start(engine._context)
        engine.close()
        with caplog.at_level("INFO", "lit_rlvr"):
            start_engine(other := make_engine(urls=[served.url]), policy)
        assert f"merged in; start {served.url} with --enable-lora --max-lora-rank 8 --api-server-count 1" in caplog.text
        other.sync(policy)
        assert check_engine(other, policy, PROMPTS, PROBE) <= 1e-4
        other.close()


def all_of(policy: Policy) -> Weights:
    return lambda everything: policy.named_weights()


def test_files_are_split_and_hold_what_was_sent(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Server:
        def load(self, folder: Path, version: str) -> None:
            assert (folder, version) == (tmp_path / "v", "v") and sorted(folder.iterdir())

    monkeypatch.setattr("lit_rlvr.engines.transfer.files.FILE_BYTES", 100_000)
    FileTransfer(tmp_path).send([Server()], all_of(policy), torch.bfloat16, "v")  # type: ignore[list-item]
    files = sorted((tmp_path / "v").iterdir())
    found = {name: weight for path in files for name, weight in load_file(path).items()}
    assert len(files) > 1 and all(path.stat().st_size < 110_000 for path in files)
    assert found.keys() == dict(policy.named_weights()).keys()
    assert all(torch.equal(found[name], weight.bfloat16()) for name, weight in policy.named_weights())


class Server:
    """A server that keeps what it loads; `restart` empties it."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.label, self.held = "zeros", {}

    def version(self) -> str:
        return self.label

    def load(self, folder: Path, version: str) -> None:
        self.label, self.loaded = version, {}
        for path in folder.glob("*.safetensors"):
            self.loaded |= load_file(path)
        self.held |= self.loaded


@pytest.mark.parametrize("layers", [None, ["q_proj"]], ids=["all layers", "q"])
def test_of_a_model_with_adapters_only_what_changes_is_sent_again(
    layers: list[str] | None, tiny_model_folder: Path, tmp_path: Path
) -> None:
    policy = load_policy(str(tiny_model_folder))
    add_adapters(policy.model, Lora(rank=2, layers=layers))
    again, servers, sending = changing_weights(policy.model), [Server(), Server()], FileTransfer(tmp_path)
    assert again is not None

    def weights(everything: bool) -> Iterator[tuple[str, torch.Tensor]]:
        return policy.named_weights(None if everything else again)

    for k in range(4):
        for name, parameter in policy.model.named_parameters():
            if ".lora_" in name:
                parameter.data += 0.1 * (k + 1)
        if k == 2:
            servers[1].restart()
        sending.send(servers, weights, torch.float32, f"v{k}", frozen=True)  # type: ignore[arg-type]
        wanted = dict(policy.named_weights())
        assert servers[0].loaded.keys() == (wanted.keys() if k == 0 else again)
        for server in servers:
            assert server.label == f"v{k}" and server.held.keys() == wanted.keys()
            assert all(torch.equal(server.held[name], weight) for name, weight in wanted.items()), k
    servers[0].restart()
    sending.restore(servers[0], "v3")  # type: ignore[arg-type]
    assert all(torch.equal(servers[0].held[name], weight) for name, weight in wanted.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v0", "v3"]
    sending.close()
    assert not [*tmp_path.iterdir()]


def test_adapters_follow_the_weights_that_they_are_added_to(tiny_model_folder: Path, tmp_path: Path) -> None:
    """The first version holds both; later ones hold the adapters, and a restarted server gets the weights again."""
    policy, servers, sending = adapted(tiny_model_folder), [Server(), Server()], FileTransfer(tmp_path)
    base = dict(policy.without_adapters().named_weights())

    def weights(everything: bool) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(base.items()) if everything else policy.adapter_weights(torch.float32)

    for k in range(3):
        change_adapters(policy, k)
        if k == 2:
            servers[1].restart()
        sending.send(servers, weights, torch.float32, f"v{k}", True, policy.adapter_config)  # type: ignore[arg-type]
        adapters = dict(policy.adapter_weights(torch.float32))
        for server in servers:
            assert server.label == f"v{k}" and server.loaded.keys() == adapters.keys()
            assert all(torch.equal(server.held[name], weight) for name, weight in (base | adapters).items()), k
        assert {path.name for path in tmp_path.iterdir()} == {"v0-base", f"v{k}"}
        assert json.loads((tmp_path / f"v{k}" / "adapter_config.json").read_text())["lora_alpha"] == 6
    sending.close()
    assert not [*tmp_path.iterdir()]


def test_what_nccl_is_told_is_what_it_gets(policy: Policy) -> None:
    """vLLM sizes its buffers by the metadata, and may make any number of passes."""
    source = RepeatedWeights()
    source.set(all_of(policy), torch.bfloat16)
    told = [(meta.name, meta.dtype, meta.shape) for meta in source.metadata()]
    for _ in range(2):
        assert [(name, weight.dtype, tuple(weight.shape)) for name, weight in source] == told
    change(policy, 0.1)
    assert all(torch.equal(got, w.bfloat16()) for (_, got), (_, w) in zip(source, policy.named_weights(), strict=True))


def test_all_ranks_learn_that_the_first_could_not_connect_over_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.weight_transfer import nccl_engine

    told: list[str | bool | None] = []
    made: list[tuple[int, int, str]] = []

    class Server:
        timeout = 1.0

        def __init__(self, answers: bool, host: str = "127.0.0.1") -> None:
            self.answers, self.url = answers, f"http://{host}:1"

        def workers(self) -> int:
            if not self.answers:
                raise ServerError("status 500")
            return 2

        def pause(self) -> None:
            pytest.fail("it goes on")

    def connect(info: Any, client: Any, source: Any) -> object:
        made.append((info.rank, info.world_size, info.master_address))
        if info.rank == 0:
            raise RuntimeError("NCCL error: unhandled system error")
        return object()

    def gather_by(gather: Any) -> None:
        for module in (collectives, nccl):
            monkeypatch.setattr(module, "gather_objects", gather)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nccl_engine.NCCLTrainerWeightTransferEngine, "trainer_init", connect)
    gather_by(lambda said: (told.append(said), [said])[1])
    routes = {"127.0.0.1": "127.0.0.1", "192.0.2.7": "192.0.2.1"}
    monkeypatch.setattr(network, "route_to", lambda host, _: (routes[host], host))
    sending, two = NCCLTransfer(), [Server(True), Server(True, "192.0.2.7")]
    for servers, error in (([two[0], Server(False)], ServerError), (two, RuntimeError)):
        with pytest.raises(error):
            sending.send(servers, lambda everything: (), torch.float32, "1")  # type: ignore[arg-type]
    assert told == [False, "status 500", False, "NCCL error: unhandled system error"]
    assert made == [(0, 5, "192.0.2.1")], "one group, at the address that both servers reach"
    monkeypatch.setattr(nccl, "rank", lambda: 1)
    gather_by(lambda said: [said if said is False else told[3], said])
    with pytest.raises(ServerError, match="unhandled system error"):
        sending.send([Server(False)], lambda everything: (), torch.float32, "1")  # type: ignore[list-item]
    gather_by(lambda said: [None, said])
    sending._connect([Server(False)])  # type: ignore[list-item]
    assert made[1:] == [(1, 1, "")] * 2 and sending._sender is not None, "it asks no server anything"
