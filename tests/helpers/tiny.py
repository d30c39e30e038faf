"""Models, tokenizers and rollouts small enough to check by hand."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, set_num_threads  # vLLM on a CPU replaces torch.set_num_threads by a function without effect
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from lit_rlvr.engines.base import EngineContext, RolloutEngine
from lit_rlvr.policy import tiny as tiny_vlm
from lit_rlvr.policy.policy import Policy
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt, Rollout, Sample, pad_completions

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>"]
END = SPECIALS.index("<|im_end|>")
ENDS = (END, *range(4, 44))  # so many tokens end a completion, so that random models do end some
VOCAB = len(SPECIALS) + 256
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Give torch `count` threads."""
    before = torch.get_num_threads()
    set_num_threads(count)
    try:
        assert torch.get_num_threads() == count
        yield
    finally:
        set_num_threads(before)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the special tokens in front: id = 4 + place in the byte alphabet."""
    return tiny_vlm.byte_tokenizer(SPECIALS, CHATML, pad="<|endoftext|>")


def tiny_llama(seed: int = 0) -> PreTrainedModel:
    """Two layers, tied embeddings, grouped-query attention; random, but far from uniform."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=VOCAB,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=0,
        **shape,
    )
    return _with_generation(LlamaForCausalLM(config))


def tiny_qwen2(seed: int = 0, **options: Any) -> PreTrainedModel:
    """Two layers, an output embedding of its own, biases in the attention."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(
        vocab_size=VOCAB,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=0,
        **shape,
        **options,
    )
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return _with_generation(model)


def tiny_moe() -> PreTrainedModel:
    """Four of 32 experts in each of four layers, close enough to each other that rounding in 16 bits flips some."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = Qwen3MoeConfig(
        vocab_size=VOCAB,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        num_experts=32,
        num_experts_per_tok=4,
        moe_intermediate_size=32,
        norm_topk_prob=True,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=0,
        **shape,
    )
    return _with_generation(Qwen3MoeForCausalLM(config))


def _with_generation(model: PreTrainedModel) -> PreTrainedModel:
    model.generation_config = GenerationConfig(eos_token_id=list(ENDS), pad_token_id=0)
    return model.eval()


def save_model(model: PreTrainedModel, folder: Path) -> Path:
    """A Hugging Face folder with weights, generation settings and the byte-level tokenizer."""
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def make_prompt(token_ids: Sequence[int], name: str = "p") -> Prompt:
    """Return a prompt of these tokens, whose sample has the id `name` and the answer 1."""
    return Prompt(Sample(name, f"question {name}", "1"), list(token_ids))


def save_adapter(base: Path, folder: Path, added: int = 0, **options: Any) -> Any:
    """Write an adapter that changes a model, as trainers do, perhaps with tokens that they added; return the model with
    it."""
    from peft import LoraConfig, get_peft_model

    config, generator = LoraConfig(**{"r": 2, "target_modules": ["q_proj"]} | options), torch.Generator().manual_seed(0)
    plain = AutoModelForCausalLM.from_pretrained(base)
    if added:
        plain.resize_token_embeddings(VOCAB + added)
    model = get_peft_model(plain, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return model.eval()


def make_rollout(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    rewards: Sequence[Sequence[float]] | None = None,
    sampling: Sampling | None = None,
    rollout_logprobs: Tensor | None = None,
) -> Rollout:
    """A rollout by hand.

    Args:
        prompts: P lists of token ids. completions: P lists of G lists of token ids.
        rewards: (P, G); 0 by default. rollout_logprobs: (B, T); 0 by default.
    """
    groups = [[Completion("", tuple(ids), "stop", (0.0,) * len(ids)) for ids in group] for group in completions]
    token_ids, mask, zeros = pad_completions(groups)
    shape = (len(groups), len(groups[0]))
    scores = torch.zeros(shape) if rewards is None else torch.tensor(rewards)
    return Rollout(
        prompts=[make_prompt(ids, f"p{i}") for i, ids in enumerate(prompts)],
        completions=groups,
        token_ids=token_ids,
        mask=mask,
        rollout_logprobs=zeros if rollout_logprobs is None else rollout_logprobs,
        rewards=scores,
        correct=(scores > 0).float(),
        has_correct=torch.ones(shape, dtype=torch.bool),
        parts={},
        statuses=[["ok"] * shape[1]] * shape[0],
        sampling=sampling or Sampling(),
    )


def random_ids(count: int, seed: int) -> list[int]:
    """Token ids without special tokens."""
    return torch.randint(len(SPECIALS), VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def plain_logprobs(
    model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int], sampling: Sampling | None = None
) -> tuple[Tensor, Tensor]:
    """The slow way: one unpadded sequence through the whole model.

    Returns:
        (n,) log-probabilities of the completion's tokens, and (n, V) of all tokens there.
    """
    sampling = sampling or Sampling()
    ids = torch.tensor([[*prompt, *completion]], device=model.device)
    logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 :]
    logits = logits[: len(completion)] / sampling.temperature
    if sampling.banned_token_ids:
        logits = logits.clone()
        logits[:, list(sampling.banned_token_ids)] = float("-inf")
    everything = logits.log_softmax(-1)  # (n, V)
    return everything[torch.arange(len(completion)), torch.tensor(completion, dtype=torch.long)], everything


def plain_divergence(student: Tensor, teacher: Tensor, beta: float, top_k: int | None = None) -> Tensor:
    """GKD's divergence () at one token, from logits or log-probabilities (V,) of the tokens that both have."""
    kept = student > float("-inf")
    s, t = student[kept].softmax(0), teacher[: len(student)][kept].softmax(0)
    if top_k is not None:
        first, rest = (part.tolist() for part in s.argsort(descending=True).split([top_k, len(s) - top_k]))
        s, t = (torch.stack([*p[first], p[rest].sum()]) for p in (s, t))
    m = beta * t + (1 - beta) * s
    forward, reverse = (t * (t / m).log()).sum(), (s * (s / m).log()).sum()
    return beta * forward + (1 - beta) * reverse if 0 < beta < 1 else reverse if beta else forward


def start_engine(engine: RolloutEngine, policy: Policy, folder: str | Path = "", max_sequences: int = 64) -> None:
    """Start an engine as the rollout callback does."""
    engine.start(EngineContext(str(folder), policy, byte_tokenizer(), 512, max_sequences, 0))
