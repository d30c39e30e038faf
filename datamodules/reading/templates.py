"""Named prompts of the papers, for the options `system_prompt` and `template`.

The texts are the papers'. Markup lost in a PDF is restored: the braces of \\boxed{}, and the <think> tags in A-GRAE's
prompt for images ("enclosed within tags" in print).
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from lit_rlvr.errors import UserError

SYSTEM_PROMPTS: dict[str, str] = {
    # AAPO, appendix C.2: training DeepSeek-R1-Distill-Qwen-1.5B
    "aapo-1.5b": (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
        "The assistant first thinks about the reasoning process in the mind and then provides the user with the "
        "answer, and put your final answer within \\boxed{}. The reasoning process and answer are enclosed within "
        "<think></think> and <answer></answer> tags, respectively, i.e., <think>reasoning process here </think>"
        "<answer>answer here </answer>. Note that respond by English, NOT use other languages."
    ),
    # AAPO, appendix C.2: training Qwen2.5-Math-7B
    "aapo-7b": (
        "You are a helpful AI Assistant, designed to provided well-reasoned and detailed responses. You FIRST think "
        "about the reasoning process as an internal monologue and then provide the user with the answer. The "
        "reasoning process MUST BE enclosed within <think> and </think> tags."
    ),
    # AAPO, appendix C.3: evaluation of the Qwen models on all benchmarks
    "aapo-eval": (
        "Solve the following math problem efficiently and clearly. The last line of your response should be of the "
        "following format: 'Therefore, the final answer is: $\\boxed{ANSWER}$. I hope it is correct' (without "
        "quotes) where ANSWER is just the final number or expression that solves the problem. Think step by step "
        "before answering."
    ),
    # A-GRAE, appendix C.2: MATH
    "agrae-math": "Please reason step by step, and put your final answer within \\boxed{ }.",
    # A-GRAE, appendix C.2: Geo3K and the medical sets
    "agrae-vision": (
        "This is a multiple-choice question. You FIRST think about the reasoning process as an internal monologue "
        "and then provide the final choice from the given options. The reasoning process MUST BE enclosed within "
        "<think> </think> tags. The final answer MUST BE put in \\boxed{ }."
    ),
    # LiveCodeBench, for chat models
    "livecodebench": (
        "You are an expert Python programmer. You will be given a question (problem specification) and will generate a "
        "correct Python program that matches the specification and passes all tests. You will NOT return anything "
        "except for the program."
    ),
}

TEMPLATES: dict[str, str] = {
    # the sentence of A-GRAE's MATH runs, in the user's turn: for chat templates that refuse a system prompt
    "boxed": "{prompt}\nPlease reason step by step, and put your final answer within \\boxed{}.",
    # placed below schema and question
    "sql": "{prompt}\n\nAnswer with one SQLite query in a ```sql block.",
}


def named(value: str, registry: Mapping[str, str], option: str) -> str:
    """The registered text of that name, else the value itself.

    Raises:
        UserError: the value looks like a misspelt registered name.
    """
    if value in registry:
        return registry[value]
    nearest = get_close_matches(value, registry, 1)
    if nearest and " " not in value:
        raise UserError(f"{option}: no prompt is named {value!r}, did you mean {nearest[0]!r}?")
    return value
