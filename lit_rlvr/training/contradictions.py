"""Options of an algorithm that contradict each other or its formula."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lit_rlvr.common.init_arguments import class_default
from lit_rlvr.training.terms import NEEDS

RESERVED = ("loss", "tokens", "entropy")
"""Sums over tokens that every loss has."""


def contradictions(module: Any) -> Iterator[str]:
    """Yield a line for each contradiction among the options of an algorithm.

    Args:
        module: an `RLVRModule` with its options and terms.
    """
    name = type(module).__name__
    loss = module.loss_options
    kl = module.kl
    lora = module.lora
    for term in module.terms:
        if term.place not in NEEDS:
            yield f"{term.option}: place = {term.place!r} of {type(term).__name__} is none of {', '.join(NEEDS)}"
        elif unknown := sorted({*term.needs} - {*NEEDS[term.place]}):
            yield f"{term.option}: {type(term).__name__} cannot need {unknown[0]!r} in the {term.place}"
        elif {"teacher_logp", "divergence"} & {*term.needs} and module.teachers.options is None:
            yield f"{term.option}: {type(term).__name__} needs a teacher; give model.teacher"
        elif term.place != "loss" and module.demonstrates:
            yield f"{term.option}: {name} has no {term.place}; use a term in the loss"
    metrics = []
    for term in module.terms:
        if term.metric:
            metrics.append(term.metric)
    duplicates = sorted({name for name in metrics if metrics.count(name) > 1 or name in RESERVED})
    if duplicates:
        yield f"model.terms: the metric {duplicates[0]!r} has another meaning already; give each term one of its own"
    default = class_default(type(module), "loss").aggregation
    if module.fixes_aggregation and loss.aggregation != default:
        yield f"model.loss.aggregation: {name} is defined with {default}, not {loss.aggregation}; leave it out"
    if module.sequence_level and loss.top_entropy_quantile < 1:
        yield f"model.loss.top_entropy_quantile: {name} weighs whole sequences; leave it at 1"
    if module.sequence_level and loss.normalise_by == "sequence":
        yield f"model.loss.normalise_by: {name} weighs whole episodes; leave it at episode"
    if module.sequence_level and any(term.place == "advantages" for term in module.terms):
        yield (
            f"model.teacher: it gives each token an advantage, and {name} weighs whole sequences; "
            "use a loss on tokens, such as GRPO or GSPOToken, or set model.teacher.beta, for a term of the loss"
            if module.teachers.options is not None
            else f"model.terms: a term in the advantages gives each token its own, and {name} weighs whole sequences"
        )
    if kl.in_reward and not kl.coef:
        yield "model.kl.in_reward: there is no KL term; set model.kl.coef above 0"
    if kl.in_reward and kl.bias_correction:
        yield "model.kl.bias_correction: it corrects the loss's KL term, which model.kl.in_reward replaces; set one"
    if kl.reference_update_every and not module.needs_reference:
        yield "model.kl.reference_update_every: nothing needs a reference; set model.kl.coef above 0"
    if module.uses_rollout and module.importance.mode != "none":
        yield (
            f"model.importance.correction: the ratio of {name} is to the policy that sampled each "
            "token already, so a correction would count it twice; leave the option out"
        )
    if module.needs("observation_logp"):
        option = next(term.option for term in module.terms if term.is_of_observations)
        if module.demonstrates:
            yield f"{option}: {name} plays no episodes, so nothing is observed; leave the option out"
        for other, conflicts in (("teacher.beta", "divergence"), ("loss.balance_coef", "expert_imbalance")):
            if module.needs(conflicts):
                yield f"{option}: model.{other} counts sampled tokens alone, so both cannot be in one loss; set one"
    if module.needs("expert_imbalance") and module.compute.torch_compile is True:
        yield (
            "model.loss.balance_coef: what routers choose is not seen in layers that model.compute.torch_compile "
            "compiles; leave one of them out"
        )
    if lora is not None and lora.dropout and not module.demonstrates:
        yield (
            f"model.lora.dropout: {name} trains on completions that are sampled without dropout, "
            "and with it they would have other probabilities; leave it out, only SFT takes it"
        )
