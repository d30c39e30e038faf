"""`lit-rlvr serve --model M`: starts a vLLM server for `VLLMServerEngine`, with the settings that it needs.

The command passes other options to vLLM unchanged: --max-model-len, --tensor-parallel-size, --data-parallel-size, ...
With --enable-lora --max-lora-rank R, later weight updates of a run with `model.lora` hold only its adapters.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from typing import Any, NoReturn

import torch

from lit_rlvr.common.log import log
from lit_rlvr.common.packages import missing_compiler, require, vllm_package
from lit_rlvr.common.sockets import open_socket
from lit_rlvr.engines.dispatch import raise_descriptor_limit
from lit_rlvr.engines.vllm import FP8, GPU_SEQUENCES, graph_options
from lit_rlvr.engines.vllm_cache import use_writable_folders
from lit_rlvr.errors import UserError
from lit_rlvr.policy.families import family_of
from lit_rlvr.policy.loading import load_image_processor, load_model, load_model_config, load_tokenizer
from lit_rlvr.policy.sources import resolve_model

HOST = "127.0.0.1"
"""Address that only this machine reaches: anyone who reaches a server can replace its weights."""
PORT = 8000
"""vLLM's default port."""
ADDRESS_OPTIONS = ("--uds", "--config")
"""Options of vLLM that can set another address."""
GRAPH_OPTIONS = ("--config", "--compilation-config", "-cc", "--cudagraph-capture-sizes", "--enforce-eager")
"""Options of vLLM that can say for how many sequences it captures CUDA graphs."""


class ServeParser(argparse.ArgumentParser):
    """A parser that reports an error as one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def run_command(command: str, arguments: list[str]) -> None:
    """Run the command line of `serve`; this process becomes the server."""
    options, others = make_parser(command).parse_known_args([_hyphenated(word) for word in arguments])
    names = set()
    for word in others:
        names.add(word.partition("=")[0])
    require("vllm", "serve", vllm_package())
    _check_options(options, names)
    quantization = [f"--quantization={FP8}"] if options.quantize else []
    vllm_options = [
        *quantization,
        *_address(options, names),
        *vllm_sequence_options(options.max_num_seqs, names),
        *others,
    ]
    line = server_line(options.model, options.dtype, options.nccl, vllm_options, options.config_overrides)
    _set_environment(options, names)
    raise_descriptor_limit()  # a request holds a socket
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *line])


def make_parser(command: str) -> ServeParser:
    """Return the parser of our options; vLLM's own stay unknown to it."""
    parser = ServeParser(
        prog=f"lit-rlvr {command}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="like `model` of a run: a folder, a hub id or a name")
    parser.add_argument(
        "--config-overrides",
        type=json.loads,
        metavar="JSON",
        help="changes of the model's config, as model.config_overrides of the run",
    )
    parser.add_argument(
        "--dtype",
        default="bfloat16" if torch.cuda.is_available() else "float32",
        choices=("float32", "bfloat16"),
        help="data type to compute in, like the trainer's; by default bfloat16 on a GPU and float32 on a CPU",
    )
    parser.add_argument(
        "--deterministic", action="store_true", help="batch-invariant kernels (GPU), for rollout.deterministic"
    )
    parser.add_argument(
        "--quantize", choices=("fp8",), help="generate with layers in 8 bits (GPU), as VLLMEngine.quantize"
    )
    parser.add_argument("--nccl", action="store_true", help="receive weights over NCCL (NCCLTransfer) instead of files")
    parser.add_argument(
        "--max-num-seqs",
        type=int,
        help=f"sequences generated at once; {GPU_SEQUENCES} by default on a GPU, with CUDA graphs for as many",
    )
    parser.add_argument("--host", help=f"address to listen on; {HOST} by default, 0.0.0.0 for all of them")
    parser.add_argument("--port", type=int, help=f"port to listen on; {PORT} by default")
    return parser


def _check_options(options: argparse.Namespace, names: set[str]) -> None:
    """Refuse options that cannot work here, or contradict each other.

    Args:
        options: our options.
        names: the names of vLLM's options that are given.
    """
    if options.deterministic and not torch.cuda.is_available():
        raise UserError("--deterministic: vLLM has batch-invariant kernels for GPUs only; leave it out")
    if options.quantize and not torch.cuda.is_available():
        raise UserError("--quantize fp8: it needs a GPU; leave it out")
    if options.quantize and options.dtype == "float32":
        raise UserError("--quantize fp8: its layers give 16-bit results; use --dtype bfloat16")
    if "--quantization" in names:
        raise UserError("--quantization: use --quantize fp8")


def _address(options: argparse.Namespace, names: set[str]) -> list[str]:
    """Return vLLM's options for the address to listen on, if it is free; the arguments are as for `_check_options`."""
    host = options.host
    is_ours = not names & {*ADDRESS_OPTIONS}
    if host is None and is_ours:
        host = HOST
    if options.port is not None or is_ours:
        open_socket(host or "", PORT if options.port is None else options.port).close()  # vLLM would load first
    given = []
    if host is not None:
        given.append(f"--host={host}")
    if options.port is not None:
        given.append(f"--port={options.port}")
    return given


def _set_environment(options: argparse.Namespace, names: set[str]) -> None:
    """Set the variables that vLLM reads; the arguments are as for `_check_options`."""
    use_writable_folders()
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # lets us replace its weights
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ["PYTORCH_CUDA_ALLOC_CONF"] = ""  # GPUs cannot share memory that the trainer's setting allocates
    if "--enable-lora" in names:
        os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if options.deterministic:
        os.environ["VLLM_BATCH_INVARIANT"] = "1"
    missing = None if torch.cuda.is_available() else missing_compiler()
    if missing is not None:
        log.info("%s, so nothing is compiled and generation is slower", missing)
        os.environ["TORCHDYNAMO_DISABLE"] = "1"


def _hyphenated(word: str) -> str:
    """Return an argument with its option's name as vLLM lists it.

    vLLM takes --max_model_len for --max-model-len, too. Keys after a dot, as in --lora-config.max_lora_rank, stay.
    """
    name = re.match(r"--[^.=]*", word)
    if name is None:
        return word
    return name[0].replace("_", "-") + word[name.end() :]


def vllm_sequence_options(sequences: int | None, names: set[str]) -> list[str]:
    """Return vLLM's options of how many sequences it generates at once, and on a GPU captures CUDA graphs for.

    Args:
        sequences: what the user asked for.
        names: names of the other options given.
    """
    is_free = torch.cuda.is_available() and not {name.partition(".")[0] for name in names} & {*GRAPH_OPTIONS}
    if sequences is None and is_free:
        sequences = GPU_SEQUENCES
    if sequences is None:
        options = {}
    else:
        options = {"max_num_seqs": sequences} | (graph_options(sequences) if is_free else {})
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]


def server_line(
    model: str, dtype: str, nccl: bool, others: list[str], overrides: dict[str, Any] | None = None
) -> list[str]:
    """Return the command line of the server process, after loading the model's files once to check them.

    Args:
        model: the model, by name, folder or hub id.
        dtype: data type of the weights.
        nccl: whether weights arrive by NCCL.
        others: further options of vLLM.
        overrides: changes of the model's config.

    Raises:
        UserError: vLLM could not load them.
    """
    folder = resolve_model(model, overrides, "any")
    family = family_of(load_model_config(folder))
    load_tokenizer(folder)
    if family is not None:
        load_image_processor(folder)
    load_model(folder, getattr(torch, dtype), device="meta")
    line = [
        "-m", "lit_rlvr.engines.server_process", "--model", folder, "--served-model-name", model,
        "--dtype", dtype,
        "--enable-scale-out", "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm",
    ]  # fmt: skip
    if not torch.cuda.is_available():
        # Seeded sampling on a CPU fails on a prompt that vLLM computes in chunks. A group shares whole blocks of its
        # prompt, so they are small. By default vLLM would take most of the memory.
        line += [
            "--enforce-eager",
            "--block-size",
            "32",
            "--no-enable-chunked-prefill",
            "--kv-cache-memory-bytes",
            str(1 << 30),
        ]
    if nccl:
        line += ["--weight-transfer-config", json.dumps({"backend": "nccl"})]
    options = {} if family is None else family.vllm_options()
    for name, value in options.items():
        flag = name.replace("_", "-")
        if value is True:
            line.append(f"--{flag}")
        elif value is False:
            line.append(f"--no-{flag}")
        else:
            line += [f"--{flag}", json.dumps(value)]
    return [*line, *others]
