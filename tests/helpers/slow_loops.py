"""Every advantage and every loss once more: nested loops over plain numbers, written from the papers' formulas.

Losses are sums over completions of terms that depend on that completion's log-probabilities alone, computed
with 60 digits, so that a gradient is a central difference that is exact to far more digits than are compared.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from mpmath import mp, mpf

mp.dps = 60
STEP = mpf(10) ** -20
Matrix = Sequence[Sequence[float]]


def slow_divergence(student: Sequence[float], teacher: Sequence[float], beta: float, top_k: int | None = None) -> mpf:
    """GKD's divergence at one token, from logits; -inf in both = a token that is left out."""
    kept = [v for v, logit in enumerate(student) if logit > -math.inf]
    s, t = ([mp.exp(mpf(logits[v])) for v in kept] for logits in (student, teacher))
    s, t = ([mass / mp.fsum(masses) for mass in masses] for masses in (s, t))
    order = sorted(range(len(s)), key=lambda v: -s[v])
    first, rest = order[:top_k], order[len(s) if top_k is None else top_k :]
    s, t = ([p[v] for v in first] + ([mp.fsum(p[v] for v in rest)] if rest else []) for p in (s, t))
    b = mpf(beta)
    middle = [b * q + (1 - b) * p for p, q in zip(s, t, strict=True)]
    forward, reverse = (
        mp.fsum(p * mp.log(p / m) for p, m in zip(own, middle, strict=True) if p) for own in (t, s)
    )  # at beta 0 the mixture is the student, at 1 the teacher
    return forward if beta == 0 else reverse if beta == 1 else b * forward + (1 - b) * reverse


# ---- advantages: lists of groups of rewards in, lists of groups of advantages out ------------------------------


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float], unbiased: bool = False) -> float:
    """Return the standard deviation, by default that of the population."""
    mu = mean(values)
    return math.sqrt(math.fsum((v - mu) ** 2 for v in values) / (len(values) - (1 if unbiased else 0)))


def is_degenerate(group: Sequence[float]) -> bool:
    """Return whether all rewards of a group are equal."""
    return max(group) - min(group) <= 1e-8


def slow_grpo(
    r: Matrix, c: Matrix, eps: float = 1e-6, unbiased_std: bool = False, scale: str = "group", **_: Any
) -> list[list[float]]:
    result = []
    batch = deviation([value for group in r for value in group], unbiased_std)
    for group in r:
        if is_degenerate(group):
            result.append([0.0] * len(group))
        else:
            mu, sd = mean(group), batch if scale == "batch" else deviation(group, unbiased_std)
            result.append([(value - mu) / (1 if scale == "none" else sd + eps) for value in group])
    return result


def slow_gdpo(
    r: Matrix,
    c: Matrix,
    parts: dict[str, Matrix] | None = None,
    weights: dict[str, float] | None = None,
    eps: float = 1e-4,
    unbiased_std: bool = True,
    **_: Any,
) -> list[list[float]]:
    parts = parts or {"reward": r}
    weights = weights or dict.fromkeys(parts, 1.0)
    sums: list[list[float | None]] = []
    dead = []
    for p, group in enumerate(r):
        sums.append([None] * len(group))
        dead.append(True)
        for name, part in parts.items():
            known = [value for value in part[p] if not math.isnan(value)]
            spread = known and max(known) - min(known) > 1e-8
            sd = deviation(known, unbiased_std) if spread else 0.0
            dead[p] = dead[p] and not spread
            for g, value in enumerate(part[p]):
                if not math.isnan(value):
                    term = weights[name] * (value - mean(known)) / (sd + eps) if spread else 0.0
                    sums[p][g] = (sums[p][g] or 0.0) + term
    everything = [value for row in sums for value in row if value is not None]
    mu, sd = mean(everything), deviation(everything, unbiased_std)
    return [
        [0.0 if value is None or dead[p] else (value - mu) / (sd + eps) for value in row] for p, row in enumerate(sums)
    ]


def slow_dr_grpo(r: Matrix, c: Matrix, **_: Any) -> list[list[float]]:
    return [[0.0] * len(g) if is_degenerate(g) else [v - mean(g) for v in g] for g in r]


def slow_gpg(
    r: Matrix, c: Matrix, f_norm: str = "one", rescale_valid: bool = True, eps: float = 1e-6, **_: Any
) -> list[list[float]]:
    valid = sum(not is_degenerate(group) for group in r)
    alpha = len(r) / valid if rescale_valid and valid > 0 else 1.0
    result = []
    for group in r:
        norm = 1.0 if f_norm == "one" else deviation(group) + eps
        result.append([0.0 if is_degenerate(group) else alpha * (v - mean(group)) / norm for v in group])
    return result


def slow_rloo(r: Matrix, c: Matrix, **_: Any) -> list[list[float]]:
    result = []
    for group in r:
        if is_degenerate(group):
            result.append([0.0] * len(group))
            continue
        result.append([v - mean([u for j, u in enumerate(group) if j != i]) for i, v in enumerate(group)])
    return result


def slow_maxrl(r: Matrix, c: Matrix, **_: Any) -> list[list[float]]:
    result = []
    for group in r:
        mu = mean(group)
        result.append([0.0] * len(group) if mu <= 0 or is_degenerate(group) else [v / mu - 1 for v in group])
    return result


def slow_opo(r: Matrix, c: Matrix, lengths: Matrix, **_: Any) -> list[list[float]]:
    """The baseline as the mean over tokens, each with the reward of its completion."""
    result = []
    for group, length in zip(r, lengths, strict=True):
        tokens = [v for v, n in zip(group, length, strict=True) for _ in range(int(n))]
        baseline = mean(tokens) if tokens else 0.0
        result.append([0.0 if is_degenerate(group) else v - baseline for v in group])
    return result


def slow_reinforce_pp(
    r: Matrix, c: Matrix, lengths: Matrix, group_baseline: bool = False, **_: Any
) -> list[list[float]]:
    """verl's masked_whiten, token by token."""
    scores = slow_dr_grpo(r, c) if group_baseline else r
    tokens = [
        v
        for row, length in zip(scores, lengths, strict=True)
        for v, n in zip(row, length, strict=True)
        for _ in range(int(n))
    ]
    if is_degenerate([v for row in scores for v in row]):
        return [[0.0] * len(row) for row in scores]
    sd = math.sqrt(deviation(tokens, unbiased=True) ** 2 + 1e-8)
    return [[(v - mean(tokens)) / sd for v in row] for row in scores]


def slow_pass_at_k(r: Matrix, c: Matrix, k: int = 2, **_: Any) -> list[list[float]]:
    """By the definition: every subset of k completions, each one's reward standardised over all of them."""
    result = []
    for group in c:
        subsets = list(combinations(range(len(group)), k))
        rewards = [max(group[i] for i in subset) for subset in subsets]
        if not subsets or min(rewards) == max(rewards):
            result.append([0.0] * len(group))
            continue
        mu, sd = mean(rewards), deviation(rewards)
        scores = [(reward - mu) / sd for reward in rewards]
        holding = [[s for s, subset in zip(scores, subsets, strict=True) if i in subset] for i in range(len(group))]
        result.append([mean(found) for found in holding])
    return result


def slow_grpo_passk(r: Matrix, c: Matrix, scale: str = "none", **_: Any) -> list[list[float]]:
    """The best reward with and without each completion."""
    result = []
    for group in r:
        sd = deviation(group, unbiased=True) + 1e-6 if scale == "group" and len(group) > 1 else 1.0
        gaps = [max(group) - max([v for j, v in enumerate(group) if j != i] or group) for i in range(len(group))]
        result.append([gap / sd for gap in gaps])
    return result


def slow_reinforce(
    r: Matrix, c: Matrix, positive_weight: float = 0.1, negative_weight: float = 1.0, **_: Any
) -> list[list[float]]:
    return [[positive_weight if right == 1 else -negative_weight for right in group] for group in c]


def slow_aapo(
    r: Matrix,
    c: Matrix,
    s: Matrix,
    base: str = "grpo",
    delta_low: float = -0.2,
    delta_high: float = 0.28,
    clip: bool = True,
    margin: str = "paired",
    **rest: Any,
) -> list[list[float]]:
    result = []
    for group, other, before in zip(r, s, SLOW[base](r=r, c=c, s=s, **rest), strict=True):
        row = []
        for g, reward in enumerate(group):
            m = reward - (other[g] if margin == "paired" else mean(other))
            if clip:
                m = min(max(m, delta_low), delta_high)
            row.append(before[g] + m)
        result.append(row)
    return result


def slow_agrae(
    r: Matrix,
    c: Matrix,
    base: str = "grpo",
    alpha: float = 1.0,
    sample_level: bool = True,
    group_level: bool = True,
    omega_from: str = "correct",
    p_from: str = "correct",
    omega_floor: float = 0.0,
    omega: float | None = None,
    **rest: Any,
) -> list[list[float]]:
    if omega is None:
        source = c if omega_from == "correct" else r
        omega = mean([value for group in source for value in group])
    omega = max(omega, omega_floor)
    result = []
    for i, group in enumerate(SLOW[base](r=r, c=c, **rest)):
        p = mean((c if p_from == "correct" else r)[i])
        row = []
        for a in group:
            if sample_level and 0 < p < 1:
                a = omega / 2 * a / math.sqrt(p) + (1 - omega) / 2 * a / math.sqrt(1 - p)
            if group_level and a > 0:
                a *= min(1.0, omega / alpha)
            row.append(a)
        result.append(row)
    return result


def _slow_control(change: Callable[[float, float], float]) -> Callable[..., list[list[float]]]:
    def control(r: Matrix, c: Matrix, base: str = "grpo", **rest: Any) -> list[list[float]]:
        return [[change(a, mean(c[i])) for a in group] for i, group in enumerate(SLOW[base](r=r, c=c, **rest))]

    return control


Steps = Sequence[Sequence[Sequence[float]]]
"""A number for each turn of each completion of each prompt."""


def slow_returns(r: Matrix, rewards: Steps, discount: float) -> list[list[list[float]]]:
    """The discounted return of each turn; what the turns of a completion lack of its reward counts in the last one."""
    result = []
    for group, of_group in zip(r, rewards, strict=True):
        result.append([])
        for value, own in zip(group, of_group, strict=True):
            given = [*own]
            given[-1] += value - math.fsum(own)
            result[-1].append(
                [math.fsum(discount ** (j - k) * given[j] for j in range(k, len(given))) for k in range(len(given))]
            )
    return result


def _compared(values: Sequence[float], eps: float, scale: str, unbiased_std: bool) -> list[float]:
    if len(values) < 2 or is_degenerate(values):
        return [0.0] * len(values)
    divisor = 1.0 if scale == "none" else deviation(values, unbiased_std) + eps
    return [(value - mean(values)) / divisor for value in values]


def slow_gigpo_turns(
    r: Matrix,
    rewards: Steps,
    states: Steps,
    step_weight: float = 1.0,
    discount: float = 0.95,
    scale: str = "group",
    eps: float = 1e-6,
    unbiased_std: bool = False,
) -> list[list[list[float]]]:
    returns = slow_returns(r, rewards, discount)
    result = []
    for p, group in enumerate(r):
        episodes = _compared(group, eps, scale, unbiased_std)
        result.append([[value] * len(returns[p][g]) for g, value in enumerate(episodes)])
        for state in {state for own in states[p] for state in own}:
            at = [(g, k) for g, own in enumerate(states[p]) for k, other in enumerate(own) if other == state]
            for (g, k), value in zip(
                at, _compared([returns[p][g][k] for g, k in at], eps, scale, unbiased_std), strict=True
            ):
                result[p][g][k] += step_weight * value
    return result


def slow_step_returns_turns(
    r: Matrix, rewards: Steps, lengths: Steps, base: str = "grpo", discount: float = 1.0
) -> list[list[list[float]]]:
    """`base` on one group for each turn of each prompt that some completion has; such groups differ in size."""
    returns = slow_returns(r, rewards, discount)
    groups, at, long = [], [], []
    for p, of_group in enumerate(returns):
        for k in range(max(len(own) for own in of_group)):
            having = [g for g, own in enumerate(of_group) if len(own) > k]
            groups.append([of_group[g][k] for g in having])
            long.append([lengths[p][g][k] for g in having])
            at.append([(p, g, k) for g in having])
    found = SLOW[base](groups, groups, lengths=long)
    result = [[[0.0] * len(own) for own in of_group] for of_group in returns]
    for places, values in zip(at, found, strict=True):
        for (p, g, k), value in zip(places, values, strict=True):
            result[p][g][k] = value
    return result


def slow_gigpo(r: Matrix, c: Matrix, step_weight: float = 1.0, **options: Any) -> list[list[float]]:
    """With completions of one turn, whose state is the prompt."""
    options = {name: options[name] for name in ("eps", "scale", "unbiased_std") if name in options}
    return [[(1 + step_weight) * value for value in group] for group in slow_grpo(r, c, **options)]


def slow_step_returns(r: Matrix, c: Matrix, base: str = "grpo", discount: float = 1.0, **rest: Any) -> Any:
    """With completions of one turn."""
    return SLOW[base](r, c, **rest)


def slow_grpo_lead(
    r: Matrix,
    c: Matrix,
    lengths: Matrix,
    alpha: float = 0.05,
    weight_min: float = 0.4,
    weight_max: float = 1.5,
    slope: float = 10,
    center: float = 0.75,
    **_: Any,
) -> list[list[float]]:
    def weight(x: float) -> float:
        return weight_min + (weight_max - weight_min) / (1 + math.exp(slope * (x - center)))

    shaped = []
    for right, length in zip(c, lengths, strict=True):
        chosen = [n for n, ok in zip(length, right, strict=True) if ok == 1]
        row = []
        for n, ok in zip(length, right, strict=True):
            row.append(math.exp(-alpha * (n - mean(chosen)) / (deviation(chosen) + 1e-6)) if ok == 1 else -1.0)
        shaped.append(row)
    result = []
    for right, group in zip(c, slow_grpo(shaped, c), strict=True):
        p = mean(right)
        result.append([a * weight(p) if a > 0 else a * weight(1 - p) for a in group])
    return result


SLOW: dict[str, Callable[..., list[list[float]]]] = {
    "grpo": slow_grpo,
    "dr_grpo": slow_dr_grpo,
    "gpg": slow_gpg,
    "rloo": slow_rloo,
    "maxrl": slow_maxrl,
    "opo": slow_opo,
    "reinforce_pp": slow_reinforce_pp,
    "pass_at_k": slow_pass_at_k,
    "grpo_passk": slow_grpo_passk,
    "none": lambda r, c, **_: [[0.0] * len(group) for group in r],
    "reinforce": slow_reinforce,
    "aapo": slow_aapo,
    "agrae": slow_agrae,
    "positive_dominant": _slow_control(lambda a, p: 10 * a if a > 0 else a),
    "negative_dominant": _slow_control(lambda a, p: a / 10 if a > 0 else a),
    "hard_focused": _slow_control(lambda a, p: 0.5 * a / math.sqrt(p) if 0 < p < 1 else a),
    "easy_focused": _slow_control(lambda a, p: 0.5 * a / math.sqrt(1 - p) if 0 < p < 1 else a),
    "gdpo": slow_gdpo,
    "grpo_lead": slow_grpo_lead,
    "gigpo": slow_gigpo,
    "step_returns": slow_step_returns,
}


# ---- losses ----------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """A frozen batch as plain lists; row p * G + g."""

    arrays: dict[str, np.ndarray]
    group_size: int
    max_tokens: int
    logp: list[list[mpf]] = field(init=False)
    old: list[list[mpf]] = field(init=False)
    ref: list[list[mpf]] = field(init=False)
    rollout: list[list[mpf]] = field(init=False)
    mask: list[list[bool]] = field(init=False)

    def __post_init__(self) -> None:
        sampled = "rollout_logp" if "rollout_logp" in self.arrays else "old_logp"
        self.logp, self.old, self.ref, self.rollout = (
            [[mpf(float(v)) for v in row] for row in self.arrays[name]]
            for name in ("logp", "old_logp", "ref_logp", sampled)
        )
        self.mask = self.arrays["mask"].tolist()

    @property
    def lengths(self) -> list[int]:
        return [sum(row) for row in self.mask]

    def tokens(self, i: int) -> list[int]:
        return [t for t, used in enumerate(self.mask[i]) if used]

    def share(self, i: int, aggregation: str) -> mpf:
        """What each token of row i counts."""
        rows, n = len(self.mask), self.lengths
        if aggregation == "sequence_mean":
            return 1 / (mpf(rows) * n[i])
        if aggregation == "token_mean":
            return 1 / mpf(sum(n))
        if aggregation == "constant":
            return 1 / (mpf(rows) * self.max_tokens)
        if aggregation == "token_sum":
            return 1 / mpf(rows)
        first = i // self.group_size * self.group_size
        return 1 / (mpf(rows // self.group_size) * sum(n[first : first + self.group_size]))


Term = Callable[[int, Sequence[mpf]], mpf]


def clip(value: mpf, low: mpf, high: mpf) -> mpf:
    return min(max(value, low), high)


def surrogate(w: mpf, a: mpf, low: mpf, high: mpf, dual: float | None = None) -> mpf:
    value = min(w * a, clip(w, 1 - low, 1 + high) * a)
    return max(value, dual * a) if dual is not None and a < 0 else value


def clipped_terms(
    case: Case, a: Sequence[mpf], aggregation: str, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Term:
    """GRPO, DAPO, Dr. GRPO, GRPO-LEAD."""

    def term(i: int, logp: Sequence[mpf]) -> mpf:
        total = mpf(0)
        for t in case.tokens(i):
            w = mp.exp(logp[t] - case.old[i][t])
            total += surrogate(w, a[i], mpf(clip_low), mpf(clip_high), dual_clip)
        return -case.share(i, aggregation) * total

    return term


def plain_terms(case: Case, a: Sequence[mpf], aggregation: str) -> Term:
    """GPG, AAPO, W-REINFORCE."""
    return lambda i, logp: -case.share(i, aggregation) * sum(logp[t] * a[i] for t in case.tokens(i))


def gmpo_terms(case: Case, a: Sequence[mpf], clip_low: float, clip_high: float, dual_clip: float | None = None) -> Term:
    def term(i: int, logp: Sequence[mpf]) -> mpf:
        sign = mp.sign(a[i])
        total = mpf(0)
        for t in case.tokens(i):
            d = logp[t] - case.old[i][t]
            q = sign * min(sign * d, sign * clip(d, mpf(-clip_low), mpf(clip_high)))
            if dual_clip is not None and sign < 0:
                q = min(q, mp.log(dual_clip))
            total += q
        return -a[i] * mp.exp(total / case.lengths[i]) / len(case.mask)

    return term


def power_terms(
    case: Case,
    a: Sequence[mpf],
    powers: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    dual_clip: float | None = None,
) -> Term:
    """APMPO, literally: powers of magnitudes. `powers`, `low`, `high`: one number per row."""

    def term(i: int, logp: Sequence[mpf]) -> mpf:
        if a[i] == 0:
            return mpf(0)
        p = mpf(powers[i])
        total = mpf(0)
        for t in case.tokens(i):
            w = mp.exp(logp[t] - case.old[i][t])
            total += abs(surrogate(w, a[i], mpf(low[i]), mpf(high[i]), dual_clip)) ** p
        return -mp.sign(a[i]) * (total / case.lengths[i]) ** (1 / p) / len(case.mask)

    return term


def gspo_terms(case: Case, a: Sequence[mpf], clip_low: float, clip_high: float, dual_clip: float | None = None) -> Term:
    def term(i: int, logp: Sequence[mpf]) -> mpf:
        s = mp.exp(sum(logp[t] - case.old[i][t] for t in case.tokens(i)) / case.lengths[i])
        return -surrogate(s, a[i], mpf(clip_low), mpf(clip_high), dual_clip) / len(case.mask)

    return term


def gspo_token_terms(
    case: Case, a: Sequence[Any], aggregation: str, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Term:
    """`a` has an advantage of each row, or a list of those of its tokens."""

    def term(i: int, logp: Sequence[mpf]) -> mpf:
        whole = mp.fsum(case.logp[i][t] - case.old[i][t] for t in case.tokens(i)) / case.lengths[i]
        total = mpf(0)
        for t in case.tokens(i):
            u = mp.exp(whole) * mp.exp(logp[t]) / mp.exp(case.logp[i][t])  # fixed, but for its numerator
            own = a[i][t] if isinstance(a[i], list) else a[i]
            total += surrogate(u, own, mpf(clip_low), mpf(clip_high), dual_clip)
        return -case.share(i, aggregation) * total

    return term


def luspo_terms(case: Case, a: Sequence[mpf], clip_low: float, clip_high: float) -> Term:
    def term(i: int, logp: Sequence[mpf]) -> mpf:
        return case.lengths[i] * gspo_terms(case, a, clip_low, clip_high)(i, logp)

    return term


def sapo_terms(case: Case, a: Sequence[mpf], aggregation: str, tau_pos: float, tau_neg: float) -> Term:
    def term(i: int, logp: Sequence[mpf]) -> mpf:
        tau = mpf(tau_pos if a[i] > 0 else tau_neg)
        total = mpf(0)
        for t in case.tokens(i):
            w = mp.exp(logp[t] - case.old[i][t])
            total += 4 / tau / (1 + mp.exp(-tau * (w - 1))) * a[i]
        return -case.share(i, aggregation) * total

    return term


def fipo_terms(
    case: Case,
    a: Sequence[mpf],
    low: float = 1.0,
    high: float = 1.2,
    half_life: float = 32.0,
    safe: float = 4.0,
    dual: float | None = 10.0,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> Term:
    far = mp.inf if dual is None else mpf(dual)

    def ratio_of(i: int, t: int) -> mpf:
        return mp.exp(case.logp[i][t] - case.old[i][t])  # of the batch, not of `logp`

    def influence(i: int, t: int) -> mpf:
        after = [k for k in case.tokens(i) if k >= t and ratio_of(i, k) <= far]
        future = sum(mpf(2) ** (-(k - t) / mpf(half_life)) * mp.log(ratio_of(i, k)) for k in after)
        found = clip(mp.exp(future), mpf(low), mpf(high))
        return clip(found, mpf(0.8), mpf(1)) if a[i] < 0 and ratio_of(i, t) > safe else found

    def term(i: int, logp: Sequence[mpf]) -> mpf:
        if a[i] < 0 and sum(ratio_of(i, t) > far for t in case.tokens(i)) > 1:
            return mpf(0)
        total = mpf(0)
        for t in case.tokens(i):
            w = mp.exp(logp[t] - case.old[i][t])
            total += influence(i, t) * surrogate(w, a[i], mpf(clip_low), mpf(clip_high), dual)
        return -case.share(i, "token_mean") * total

    return term


def topr_terms(case: Case, a: Sequence[mpf], aggregation: str = "token_sum") -> Term:
    def term(i: int, logp: Sequence[mpf]) -> mpf:
        frozen = sum(case.logp[i][t] - case.rollout[i][t] for t in case.tokens(i))  # of the batch, not of `logp`
        alpha = min(mp.exp(frozen), mpf(1)) if a[i] < 0 else mpf(1)
        return -case.share(i, aggregation) * alpha * a[i] * sum(logp[t] for t in case.tokens(i))

    return term


def dro_terms(case: Case, a: Sequence[mpf], beta: float) -> Term:
    """The squared error of `beta log w` as an estimate of A, without the constant."""

    def term(i: int, logp: Sequence[mpf]) -> mpf:
        log_w = sum(logp[t] - case.rollout[i][t] for t in case.tokens(i))
        if beta == 0:
            return -a[i] * log_w / len(case.mask)
        return ((a[i] - mpf(beta) * log_w) ** 2 - a[i] ** 2) / (2 * mpf(beta)) / len(case.mask)

    return term


def vespo_terms(case: Case, a: Sequence[mpf], k_pos: float, lambda_pos: float, k_neg: float, lambda_neg: float) -> Term:
    def term(i: int, logp: Sequence[mpf]) -> mpf:
        frozen = sum(case.logp[i][t] - case.rollout[i][t] for t in case.tokens(i))  # of the batch, not of `logp`
        w = mp.exp(clip(frozen, mp.log(mpf("1e-8")), mpf(20)))
        k, rate = (mpf(k_neg), mpf(lambda_neg)) if a[i] < 0 else (mpf(k_pos), mpf(lambda_pos))
        phi = mp.exp(rate) * w**k * mp.exp(-rate * w)
        return -case.share(i, "token_mean") * phi * a[i] * sum(logp[t] for t in case.tokens(i))

    return term


def dppo_terms(case: Case, a: Sequence[mpf], divergence: str, low: float, high: float, drift: float = 0.0) -> Term:
    def dropped(i: int, t: int) -> bool:
        pi, mu = mp.exp(case.logp[i][t]), mp.exp(case.rollout[i][t])
        far = abs(pi - mu)
        if divergence == "kl":
            far = mu * mp.log(mu / pi) + (1 - mu) * mp.log((1 - mu) / (1 - pi)) if pi < 1 else mp.inf
        return bool(far > high) if a[i] > 0 and pi > mu else bool(far > low) if a[i] < 0 and pi < mu else False

    def term(i: int, logp: Sequence[mpf]) -> mpf:
        total = mpf(0)
        for t in case.tokens(i):
            d = logp[t] - case.rollout[i][t]
            total += (0 if dropped(i, t) else mp.exp(d) * a[i]) - drift * d**2
        return -case.share(i, "token_mean") * total

    return term


def all_tokens(case: Case) -> list[tuple[int, int]]:
    return [(i, t) for i in range(len(case.mask)) for t in case.tokens(i)]


def slow_covariances(case: Case, a: Sequence[mpf]) -> dict[tuple[int, int], mpf]:
    where = all_tokens(case)
    mean_a = sum(a[i] for i, _ in where) / len(where)
    mean_old = sum(case.old[i][t] for i, t in where) / len(where)
    return {(i, t): (a[i] - mean_a) * (case.old[i][t] - mean_old) for i, t in where}


def slow_chance(case: Case, where: tuple[int, int]) -> float:
    """The fractional part of the golden ratio times the log-probability in thousandths."""
    i, t = where
    return math.fmod(abs(round(1000 * float(case.old[i][t]))) * 0.6180339887498949, 1)


def highest(values: dict[tuple[int, int], mpf], count: int, case: Case) -> set[tuple[int, int]]:
    """The `count` tokens of the largest values, at least one; of equal ones those of the largest chance."""
    return set(sorted(values, key=lambda where: (-values[where], -slow_chance(case, where)))[: max(1, count)])


def clip_cov_terms(
    case: Case, a: Sequence[mpf], clip_low: float, clip_high: float, share: float, low: float, high: float
) -> Term:
    between = [where for where, value in slow_covariances(case, a).items() if low < value < high]
    between.sort(key=lambda where: -slow_chance(case, where))
    silent = set(between[: max(1, int(share * len(all_tokens(case))))])

    def term(i: int, logp: Sequence[mpf]) -> mpf:
        total = mpf(0)
        for t in case.tokens(i):
            if (i, t) not in silent:
                total += surrogate(mp.exp(logp[t] - case.old[i][t]), a[i], mpf(clip_low), mpf(clip_high))
        return -case.share(i, "token_mean") * total

    return term


def kl_cov_terms(case: Case, a: Sequence[mpf], share: float, coefficient: float) -> Term:
    covariance = slow_covariances(case, a)
    penalised = highest(covariance, int(share * len(covariance)), case)

    def term(i: int, logp: Sequence[mpf]) -> mpf:
        total = mpf(0)
        for t in case.tokens(i):
            d = logp[t] - case.old[i][t]
            total += mp.exp(d) * a[i] - (coefficient * abs(d) if (i, t) in penalised else 0)
        return -case.share(i, "token_mean") * total

    return term


def m2po_terms(case: Case, a: Sequence[mpf], threshold: float) -> Term:
    moment = {(i, t): (case.old[i][t] - case.rollout[i][t]) ** 2 for i, t in all_tokens(case)}
    kept = sorted(moment, key=lambda where: (moment[where], -slow_chance(case, where)))
    while len(kept) > 1 and sum(moment[where] for where in kept) / len(kept) >= threshold:
        kept.pop()

    def term(i: int, logp: Sequence[mpf]) -> mpf:
        used = [t for t in case.tokens(i) if (i, t) in set(kept)]
        return -case.share(i, "token_mean") * sum(mp.exp(logp[t] - case.rollout[i][t]) * a[i] for t in used)

    return term


def top_entropy_terms(case: Case, a: Sequence[mpf], aggregation: str, share: float) -> Term:
    """GRPO on the tokens of the highest entropy."""
    entropy = {(i, t): mpf(float(case.arrays["entropy"][i, t])) for i, t in all_tokens(case)}
    kept = highest(entropy, math.ceil(share * len(entropy)), case)

    def term(i: int, logp: Sequence[mpf]) -> mpf:
        total = mpf(0)
        for t in case.tokens(i):
            if (i, t) in kept:
                total += surrogate(mp.exp(logp[t] - case.old[i][t]), a[i], mpf("0.2"), mpf("0.2"))
        return -case.share(i, aggregation) * total

    return term


def cispo_terms(
    case: Case,
    a: Sequence[mpf],
    aggregation: str,
    ratio_cap: float,
    dual_clip: float | None = None,
    ratio_floor: float = 0.0,
) -> Term:
    def term(i: int, logp: Sequence[mpf]) -> mpf:
        total = mpf(0)
        for t in case.tokens(i):
            now = mp.exp(case.logp[i][t] - case.old[i][t])  # of the batch, not of `logp`
            frozen = clip(now, mpf(ratio_floor), mpf(ratio_cap))
            if dual_clip is not None and a[i] < 0:
                frozen = min(frozen, mpf(dual_clip))
            total += frozen * a[i] * logp[t]
        return -case.share(i, aggregation) * total

    return term


def kl_terms(case: Case, aggregation: str, coefficient: float, estimator: str = "k3") -> Term:
    def term(i: int, logp: Sequence[mpf]) -> mpf:
        total = mpf(0)
        for t in case.tokens(i):
            d = case.ref[i][t] - logp[t]
            total += {"k1": -d, "k2": d**2 / 2, "k3": mp.exp(d) - d - 1}[estimator]
        return coefficient * case.share(i, aggregation) * total

    return term


def loss_and_gradient(case: Case, terms: Sequence[Term]) -> tuple[float, np.ndarray]:
    """The sum over rows of all terms, and its derivative by every log-probability (central differences)."""
    total = mpf(0)
    gradient = np.zeros(case.arrays["logp"].shape)
    for i, row in enumerate(case.logp):
        if not case.tokens(i):
            continue
        for term in terms:
            total += term(i, row)
            for t in case.tokens(i):
                up, down = list(row), list(row)
                up[t], down[t] = row[t] + STEP, row[t] - STEP
                gradient[i, t] += float((term(i, up) - term(i, down)) / (2 * STEP))
    return float(total), gradient


# ---- batches ---------------------------------------------------------------------------------------------------


def random_case(
    seed: int, shaped: bool = False, on_policy: bool = False, prompts: int = 7, size: int = 4, sampled: float = 0.0
) -> Case:
    """A batch with degenerate, all-correct and all-wrong groups, rows of length one, masked rows and holes, and
    ratios as far off as e^50 (or none at all). `sampled`: the spread of the differences between `old_logp` and the
    log-probabilities that the tokens were sampled with; 0 = there are none of these."""
    rng = np.random.default_rng(seed)
    width, rows = 6, prompts * size
    lengths = rng.integers(1, width + 1, rows)
    lengths[[0, 5, 9]] = 1
    mask = np.arange(width)[None] < lengths[:, None]
    mask[[2, size * 3]] = False  # fully masked rows
    mask[7, 1::2] = False  # holes
    mask[7, 0] = True
    mask[size * 6 : size * 7] = False  # a whole group masked
    old = -rng.exponential(1.0, (rows, width))
    d = rng.normal(0, 0.35, (rows, width))
    for far in (50, -50, 12, -12, 3, -3):
        d[rng.random(d.shape) < 0.04] = far
    d += rng.normal(0, 1e-3, d.shape)
    d[0, 0], d[4, 0], d[5, 0], d[8, 0], d[12, 1], d[16, 0] = 50, -50, 50, 50, -50, 50
    correct = rng.integers(0, 2, (prompts, size)).astype(float)
    correct[0], correct[1], correct[2] = 1, 0, np.arange(size) == 0
    rewards = correct.copy()
    if shaped:
        rewards = 0.7 * correct + 0.3 * rng.random((prompts, size))
        rewards[3] = 0.4  # the same reward, correct or not
    return Case(
        {
            "logp": old if on_policy else old + d,
            "old_logp": old,
            "ref_logp": old + rng.normal(0, 0.5, (rows, width)),
            "mask": mask,
            "rewards": rewards,
            "correct": correct,
            "reference_rewards": rng.integers(0, 2, (prompts, size)).astype(float),
            "max_completion_length": np.array(9),
            "entropy": np.random.default_rng(seed + 1000).uniform(0, 3, (rows, width)),
        }
        | (
            {"rollout_logp": old - rng.exponential(sampled, old.shape) * (rng.random(old.shape) < 0.5)}
            if sampled
            else {}
        ),
        size,
        9,
    )


def worst_error(ours: np.ndarray, theirs: np.ndarray, floor: float = 1e-30) -> float:
    """Largest relative difference of any element; what is exactly 0 must be 0 up to `floor`."""
    ours, theirs = np.atleast_1d(ours), np.atleast_1d(theirs)
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    return float(np.max(np.abs(ours - theirs) / np.maximum(np.abs(theirs), floor), initial=0.0))


TERMS: dict[str, Callable[[Case, Sequence[mpf]], Term]] = {
    "GRPO": lambda c, a: clipped_terms(c, a, "sequence_mean", 0.2, 0.2),
    "DAPO": lambda c, a: clipped_terms(c, a, "token_mean", 0.2, 0.28),
    "DrGRPO": lambda c, a: clipped_terms(c, a, "constant", 0.2, 0.2),
    "GSPO": lambda c, a: gspo_terms(c, a, 3e-4, 4e-4),
    "GSPOToken": lambda c, a: gspo_token_terms(c, a, "sequence_mean", 3e-4, 4e-4),
    "CISPO": lambda c, a: cispo_terms(c, a, "token_mean", 5.0),
    "SAPO": lambda c, a: sapo_terms(c, a, "sequence_mean", 1.0, 1.05),
    "VESPO": lambda c, a: vespo_terms(c, a, 2, 3, 3, 2),
    "LUSPO": lambda c, a: luspo_terms(c, a, 2e-3, 2.5e-3),
    "DPPO": lambda c, a: dppo_terms(c, a, "tv", 0.2, 0.2),
    "FIPO": lambda c, a: fipo_terms(c, a),
    "TOPR": lambda c, a: topr_terms(c, a),
    "DRO": lambda c, a: dro_terms(c, a, 0.05),
    "GMPO": lambda c, a: gmpo_terms(c, a, 0.4, 0.4),
    "GPG": lambda c, a: plain_terms(c, a, "token_mean"),
    "Reinforce": lambda c, a: plain_terms(c, a, "token_mean"),
}
"""Published loss -> its terms, with the options that its record states."""
