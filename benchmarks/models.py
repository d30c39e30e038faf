"""Do both halves of the loop give a model's own log-probabilities, for a tiny random model of each architecture?

Columns: whether completions share a prompt; the largest differences, in nats, of the policy from the model's own
forward pass, of the Hugging Face engine from the policy, and of merged adapters from adapters; whether `lit-rlvr plan`
counts the parameters, and the trained ones with all weights and with adapters, exactly; for models of text, the largest
difference of a weight between six steps by FSDP2 on two processes and on one process, and whether a run that is stopped
after three steps and resumed ends in the same bits. The models are those of tests/policy/test_models.py and
tests/helpers/tiny_vlms.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import passive  # noqa: F401  # before torch
import torch
from common import make_parser, print_result, print_table, say
from torch import Tensor

from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.options import Lora
from lit_rlvr.policy.adapters import add_adapters
from lit_rlvr.policy.loading import load_model_config, load_policy
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.verify import verify_or_fall_back
from lit_rlvr.sampling import Sampling
from lit_rlvr.sizing.memory import shape_of
from lit_rlvr.types import Prompt

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / name) for name in ("helpers", "policy")]
import test_models  # noqa: E402
from test_policy_images import make_rollout  # noqa: E402
from tiny import make_prompt, plain_logprobs, save_model, start_engine  # noqa: E402
from tiny_runs import apart, fit_in_shards, summary  # noqa: E402
from tiny_vlms import KINDS, differences, mixed_prompts, slow  # noqa: E402

LORA = Lora(rank=2)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=[*test_models.MODELS, *KINDS], help="models to compare")
    only = parser.parse_args().only or [*test_models.MODELS, *KINDS]
    rows: dict[str, dict[str, Any]] = {}
    for name in only:
        say(name)
        with TemporaryDirectory() as folder:
            runs = {} if name in KINDS else in_runs(name, Path(folder))
            rows[name] = measure(*(vision(name, Path(folder)) if name in KINDS else text(name))) | runs
    columns = [*dict.fromkeys(column for row in rows.values() for column in row)]
    print_table(["model", *columns], [[name, *(row.get(c, "-") for c in columns)] for name, row in rows.items()])
    print_result(models=rows)


Plain = Callable[[Policy, Prompt, Sequence[int]], Tensor]
"""The slow way: the log-probabilities of a completion by the model's own forward pass."""


Model = tuple[Any, Policy, list[Prompt], Plain]
"""Config, policy, prompts and the slow way."""


def text(name: str) -> Model:
    policy = Policy(test_models.build(name), test_models.ENDS)
    verify_or_fall_back(policy)
    prompts = [make_prompt(ids, str(p)) for p, ids in enumerate(test_models.PROMPTS)]
    return (
        policy.model.config,
        policy,
        prompts,
        lambda policy, prompt, ids: plain_logprobs(policy.model, prompt.token_ids, ids)[0],
    )  # type: ignore[arg-type]


def vision(name: str, folder: Path) -> Model:
    path = str(KINDS[name](folder))
    return load_model_config(path), load_policy(path), mixed_prompts(folder), slow


@torch.no_grad()
def measure(config: Any, policy: Policy, prompts: list[Prompt], plain: Plain) -> dict[str, Any]:
    """Return a row of the table."""
    rollout, everything = make_rollout(prompts), list(range(9))
    ours = policy.logprobs(rollout, everything)[0]
    wanted = [plain(policy, p, c.token_ids) for p, g in zip(prompts, rollout.completions, strict=True) for c in g]
    start_engine(engine := HFEngine(), policy)
    sampling = Sampling(max_tokens=6).with_banned(policy.placeholder_ids)
    groups = engine.generate(prompts, sampling, [[10 * p, 10 * p + 1] for p in range(len(prompts))])
    row = {
        "shared": policy.shared_prefix,
        "policy": max(float((x[: len(y)] - y).abs().max()) for x, y in zip(ours, wanted, strict=True)),
        "engine hf": max(differences(policy, prompts, groups, sampling).values()),
    }
    merged, size = deepcopy(policy.model), sum(p.numel() for p in policy.parameters())
    full, few = (shape_of(config, lora=lora) for lora in (None, LORA))
    exact = full.parameters == size and full.trained == _trained(policy)
    add_adapters(policy.model, LORA)
    exact &= few.trained == _trained(policy)
    for name, weight in policy.named_parameters():
        if ".lora_B" in name:
            weight.normal_(std=0.1)
    adapted = policy.logprobs(rollout, everything)[0]
    merged.load_state_dict(dict(policy.named_weights()), strict=False)
    other = Policy(merged, policy.eos_token_ids, policy.shared_prefix, policy.media_token_ids)
    row["LoRA"] = float((other.logprobs(rollout, everything)[0] - adapted).abs().max())
    return row | {"plan exact": exact}


def in_runs(name: str, folder: Path) -> dict[str, Any]:
    """Return the columns of a text model's runs on two processes."""
    fit_in_shards(folder, save_model(test_models.build(name), folder / "model"))
    digests = {summary(folder / run)["weights_sha256"] for run in ("whole", "parts")}
    return {"FSDP2": apart(folder / "whole", folder / "one"), "resume exact": len(digests) == 1}


def _trained(policy: Policy) -> int:
    return sum(p.numel() for p in policy.parameters() if p.requires_grad)


if __name__ == "__main__":
    main()
