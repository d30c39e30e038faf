"""Options of an algorithm that contradict each other or its formula."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lit_rlvr.common.init_arguments import class_default
from lit_rlvr.objectives import OWN_STATS
from lit_rlvr.training.terms import NEEDS


def contradictions(module: Any) -> Iterator[str]:
    """Yield a line for each contradiction among the options of an algorithm.

    Args:
        module: an `RLVRModule` with its options and terms.
    """
    yield from _of_terms(module)
    yield from _of_sequences(module)
    yield from _of_kl(module)
    yield from _of_observations(module)
    yield from _of_adapters_and_layers(module)


def _of_terms(module: Any) -> Iterator[str]:
    name = type(module).__name__
    for term in module.terms:
        kind = type(term).__name__
        if term.place not in NEEDS:
            yield f"{term.option}: place = {term.place!r} of {kind} is none of {', '.join(NEEDS)}"
            continue
        unknown = sorted({*term.needs} - {*NEEDS[term.place]})
        if unknown:
            yield f"{term.option}: {kind} cannot need {unknown[0]!r} in the {term.place}"
        elif {"teacher_logp", "divergence"} & {*term.needs} and module.teachers.options is None:
            yield f"{term.option}: {kind} needs a teacher; give model.teacher"
        elif term.place != "loss" and module.demonstrates:
            yield f"{term.option}: {name} has no {term.place}; use a term in the loss"
    taken = [*OWN_STATS]
    for term in module.terms:
        if term.metric in taken:
            yield f"model.terms: the metric {term.metric!r} has another meaning already; give each term one of its own"
        if term.metric:
            taken.append(term.metric)


def _of_sequences(module: Any) -> Iterator[str]:
    """What a loss on whole sequences, or with an aggregation of its own, leaves no choice of."""
    name = type(module).__name__
    loss = module.loss_options
    default = class_default(type(module), "loss").aggregation
    if module.fixes_aggregation and loss.aggregation != default:
        yield f"model.loss.aggregation: {name} is defined with {default}, not {loss.aggregation}; leave it out"
    if not module.sequence_level:
        return
    if loss.top_entropy_quantile < 1:
        yield f"model.loss.top_entropy_quantile: {name} weighs whole sequences; leave it at 1"
    if loss.normalise_by == "sequence":
        yield f"model.loss.normalise_by: {name} weighs whole episodes; leave it at episode"
    if not any(term.place == "advantages" for term in module.terms):
        return
    if module.teachers.options is None:
        yield f"model.terms: a term in the advantages gives each token its own, and {name} weighs whole sequences"
    else:
        yield (
            f"model.teacher: it gives each token an advantage, and {name} weighs whole sequences; "
            "use a loss on tokens, such as GRPO or GSPOToken, or set model.teacher.beta, for a term of the loss"
        )


def _of_kl(module: Any) -> Iterator[str]:
    kl = module.kl
    if kl.in_reward and not kl.coef:
        yield "model.kl.in_reward: there is no KL term; set model.kl.coef above 0"
    if kl.in_reward and kl.bias_correction:
        yield "model.kl.bias_correction: it corrects the loss's KL term, which model.kl.in_reward replaces; set one"
    if kl.reference_update_every and not module.needs_reference:
        yield "model.kl.reference_update_every: nothing needs a reference; set model.kl.coef above 0"
    if module.uses_rollout and module.importance.mode != "none":
        yield (
            f"model.importance.correction: the ratio of {type(module).__name__} is to the policy that sampled each "
            "token already, so a correction would count it twice; leave the option out"
        )


def _of_observations(module: Any) -> Iterator[str]:
    if not module.needs("observation_logp"):
        return
    option = next(term.option for term in module.terms if term.is_of_observations)
    if module.demonstrates:
        name = type(module).__name__
        yield f"{option}: {name} plays no episodes, so nothing is observed; leave the option out"
    for other, conflicts in (("teacher.beta", "divergence"), ("loss.balance_coef", "expert_imbalance")):
        if module.needs(conflicts):
            yield f"{option}: model.{other} counts sampled tokens alone, so both cannot be in one loss; set one"


def _of_adapters_and_layers(module: Any) -> Iterator[str]:
    if module.needs("expert_imbalance") and module.compute.torch_compile is True:
        yield (
            "model.loss.balance_coef: what routers choose is not seen in layers that model.compute.torch_compile "
            "compiles; leave one of them out"
        )
    lora = module.lora
    if lora is not None and lora.dropout and not module.demonstrates:
        yield (
            f"model.lora.dropout: {type(module).__name__} trains on completions that are sampled without dropout, "
            "and with it they would have other probabilities; leave it out, only SFT takes it"
        )
