"""The seeds of completions."""

import pytest
from tiny import make_prompt

from lit_rlvr.rollout.generate import completion_seeds


def test_every_completion_has_a_seed_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [make_prompt([5], name) for name in "abc"]
    seen: set[int] = set()
    for run_seed in (0, 1):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(run_seed))
        for iteration in range(30):
            for group in completion_seeds(prompts, [0] * 3, 4, "rollout", iteration):
                seen |= set(group)
        for group in completion_seeds(prompts, [0] * 3, 4, "validation", "set"):
            seen |= set(group)
    assert len(seen) == 2 * 31 * 3 * 4


def test_seeds_belong_to_the_prompt_and_not_to_its_place() -> None:
    prompts = [make_prompt([5], name) for name in "abc"]
    forward = completion_seeds(prompts, [0] * 3, 4, "rollout", 7)
    assert completion_seeds(prompts[::-1], [0] * 3, 4, "rollout", 7) == forward[::-1]
    assert completion_seeds(prompts[1:], [0] * 2, 4, "rollout", 7) == forward[1:]
    assert completion_seeds(prompts[:1], [0], 8, "rollout", 7)[0][:4] == forward[0]
    twice = completion_seeds([prompts[0], prompts[1], prompts[0]], [0, 0, 1], 4, "rollout", 7)
    assert twice[:2] == forward[:2] and not set(twice[2]) & set(twice[0])
