"""Every metric that a run logs: what it means, its range, and what to do when it moves.

`python docs/scripts/metrics_page.py > docs/metrics.md` writes the page from this table, and the charts of `report` and
`watch` show its sentences. Add a metric here when you log it; a test compares what runs log.
"""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import NamedTuple


class Metric(NamedTuple):
    """A metric of a run.

    Args:
        name: its column in metrics.csv; `<...>` stands for a name that the run decides.
        meaning: what it is.
        range: the values that it can have.
        advice: what to do when it moves.
        trl, verl: the metric of TRL 1.16 and of verl 0.9.0 that is nearest; "-" = they have none.
    """

    name: str
    meaning: str
    range: str
    advice: str
    trl: str = "-"
    verl: str = "-"


METRICS: dict[str, tuple[Metric, ...]] = {
    "Rollouts": (
        Metric(
            "rollout/reward",
            "mean reward of the completions that have one: the weighted sum of all rewards",
            "that of your rewards",
            "Should rise. Flat: look at `train/no_signal`. Rises while the accuracy falls: the reward is gamed",
            "`reward`",
            "`critic/score/mean`",
        ),
        Metric(
            "rollout/lowest_reward",
            "lowest reward of a completion",
            "those of your rewards",
            "That of `rollout/highest_reward`: every completion has the same reward; look at `lit-rlvr check`",
        ),
        Metric("rollout/highest_reward", "highest reward of a completion", "those of your rewards", "As above"),
        Metric(
            "rollout/prompts_at_lowest",
            "share of prompts of which every completion has the lowest reward",
            "0 to 1",
            "With `rollout/prompts_at_highest` near 1: each prompt is always wrong or always right",
        ),
        Metric(
            "rollout/prompts_at_highest",
            "share of prompts of which every completion has the highest reward",
            "0 to 1",
            "As above",
        ),
        Metric(
            "rollout/accuracy",
            "share of correct completions; a failed check counts as wrong",
            "0 to 1",
            "Should rise. A fall beyond its noise is reported with its likely cause",
        ),
        Metric(
            "rollout/accuracy_error",
            "standard error of the accuracy, by the spread of the prompts' accuracies",
            "0 to 0.5",
            "Large against the changes you look for: more prompts per rollout",
        ),
        Metric(
            "rollout/correct_count",
            "number of correct completions",
            "0 to `rollout/samples`",
            "Near 0: easier prompts, or a warm start",
        ),
        Metric(
            "rollout/unsolved_prompts",
            "number of prompts without a correct completion",
            "0 to `rollout/judged_prompts`",
            "Stays high: easier prompts (`lit-rlvr filter`) or more completions",
        ),
        Metric(
            "rollout/judged_prompts",
            "number of prompts with a completion that counts in accuracies: called right or wrong, or its check failed",
            "0 to the prompts of a rollout",
            "Below them: some rewards return no `correct`",
        ),
        Metric(
            "rollout/samples",
            "completions generated, those of dynamic sampling and of the reference included",
            "above 0",
            "Grows with DAPO's sampling rounds, and with it the time",
        ),
        Metric(
            "rollout/tokens",
            "tokens of these completions",
            "above 0",
            "As `rollout/length`",
            "`num_tokens`, since the start, with prompts",
            "`perf/total_num_tokens`, with prompts",
        ),
        Metric(
            "rollout/tokens_per_second",
            "completion tokens per second of generation",
            "above 0",
            "Falls: longer completions, or another program on the machine ([speed](speed.md))",
            "-",
            "`perf/throughput`, of whole steps",
        ),
        Metric(
            "rollout/length",
            "mean length of a completion, in tokens",
            "0 to `max_tokens`",
            "Grows without accuracy: `Overlong`, or a loss without a length bias (`DrGRPO`, `DAPO`)",
            "`completions/mean_length`",
            "`response_length/mean`",
        ),
        Metric(
            "rollout/truncated",
            "share of completions that were cut off before they ended",
            "0 to 1",
            "Above one half: raise `rollout.sampling.max_tokens`, or reward short answers",
            "`completions/clipped_ratio`",
            "`response_length/clip_ratio`",
        ),
        Metric(
            "rollout/thought_tokens",
            "mean sampled tokens of a completion's thoughts, without the marks; only where some have thoughts",
            "0 to `max_tokens`",
            "Falls to 0: an earlier format is forgotten. Grows without accuracy: `sampling.max_thought_tokens`",
            "-",
            "-",
        ),
        Metric(
            "rollout/answer_tokens",
            "mean of the other tokens: marks, and what is behind the thoughts",
            "0 to `max_tokens`",
            "-",
            "-",
            "-",
        ),
        Metric(
            "rollout/unclosed_thoughts",
            "share of completions whose thoughts never end, which have no answer; also of those that "
            "`at_budget: end` ended",
            "0 to 1",
            "High: raise `rollout.sampling.max_tokens`, or set `max_thought_tokens`",
            "-",
            "-",
        ),
        Metric(
            "rollout/closed_thoughts",
            "share of completions whose thoughts `max_thought_tokens` closed: the model did not; 0 with "
            "`at_budget: end`",
            "0 to 1",
            "High while `unclosed_thoughts` is low: the model has not learnt to end its thoughts",
            "-",
            "-",
        ),
        Metric(
            "rollout/entropy",
            "mean of -log p over the sampled tokens: the sampler's entropy, of all completions",
            "0 to log V",
            "Falls to a tenth: the policy no longer explores. Rises fourfold: the steps are too large",
            "-",
            "`rollout_corr/rollout_log_ppl`, a mean over completions",
        ),
        Metric(
            "rollout/sampling_rounds",
            "rounds of dynamic sampling",
            "1 to `max_sampling_rounds`",
            "At its limit: too few prompts have a signal",
        ),
        Metric(
            "rollout/live_groups",
            "groups with a signal that dynamic sampling found",
            "0 to the prompts sampled",
            "0: no prompt has a signal; see `train/no_signal`",
        ),
        Metric(
            "rollout/turns",
            "mean number of turns of an episode",
            "1 to `max_turns`",
            "At `max_turns`: episodes do not end by themselves",
            "-",
            "`training/num_turns/mean`",
        ),
        Metric(
            "rollout/tool_calls",
            "mean number of tool calls of an episode",
            "0 or more",
            "Falls to 0: the tools do not help, or their form is not learnt",
            "`tools/call_frequency`",
            "`tool_call_counts/mean`",
        ),
        Metric(
            "rollout/tool_errors",
            "mean number of failed tool calls of an episode",
            "0 to `rollout/tool_calls`",
            "Near `rollout/tool_calls`: read the errors in `completions.jsonl`",
            "`tools/failure_frequency`, per call",
        ),
        Metric(
            "rollout/agent/sequences",
            "with an `Agent`: mean number of sequences of an episode, each with a prompt of its own",
            "1 or more",
            "Far above 1: the agent changes its earlier messages, or its turns are cut off; more is computed",
        ),
        Metric(
            "rollout/agent/forked_tokens",
            "with an `Agent`: mean number of prompt tokens of an episode that were rendered anew",
            "0 or more",
            "Grows: see `rollout/agent/sequences`",
        ),
        Metric(
            "rollout/agent/auxiliary",
            "with an `Agent`: mean number of completions of an episode that are marked as auxiliary, and not trained",
            "0 or more",
            "-",
        ),
        Metric(
            "rollout/agent/lost",
            "with an `Agent`: mean number of completions of an episode that its client did not wait for",
            "0",
            "Above 0: the client's timeout is too short; such completions are not trained",
        ),
        Metric(
            "rollout/agent/refused",
            "with an `Agent`: mean number of requests of an episode that were refused",
            "0",
            "Above 0: the agent asks for what the run does not do, or its budget is too small",
        ),
        Metric(
            "rollout/agent/timeout",
            "with an `Agent`: share of episodes that did not end in time; their reward is 0",
            "0 to 1",
            "Above 0.1: raise `timeout`, or lower `max_turns`",
        ),
        Metric(
            "rollout/agent/crashed",
            "with an `Agent`: share of episodes whose program failed without a reward; they are left out of the loss",
            "0",
            "Above 0: read the errors in `completions.jsonl`",
        ),
        Metric(
            "rollout/agent/silent",
            "with an `Agent`: share of episodes without a completion; they are left out of the loss",
            "0",
            "Above 0: the program does not use `OPENAI_BASE_URL`, or it fails before its first call",
        ),
        Metric(
            "rollout/retired_prompts",
            "with `data.curriculum`: share of training prompts that are retired: their success is outside the band",
            "0 to 1",
            "Near 1: few prompts are left, which repeat; a wider `curriculum.band`, or easier or harder prompts",
        ),
        Metric(
            "rollout/queue/running",
            "with `rollout.staleness`: groups whose completions are being generated when a step begins",
            "0 or more",
            "0: generation is faster than training",
        ),
        Metric(
            "rollout/queue/finished",
            "... groups that are finished and wait",
            "0 or more",
            "0 all the time: training waits; more servers",
            "`sample/rollout_queue_size`, of samples",
        ),
        Metric(
            "rollout/queue/dropped",
            "... groups dropped since the last step because of `safeguards.max_group_seconds`",
            "0 or more",
            "Above 0: raise `safeguards.max_group_seconds` or lower `max_tokens`",
        ),
        Metric(
            "rollout/queue/finished_length",
            "... mean length of the completions that finished since the last step",
            "0 to `max_tokens`",
            "Above `rollout/length`: long completions train later",
        ),
    ),
    "Rewards": (
        Metric(
            "reward/status/error",
            "share of completions whose check failed; they are out of the loss",
            "0 to 1",
            "Above 0: read `failed_rewards.jsonl`, mend the reward",
        ),
        Metric(
            "reward/status/timeout",
            "share whose check was stopped after its time limit; reward 0",
            "0 to 1",
            "Grows: a slow check, or answers made to be slow",
        ),
        Metric(
            "reward/status/parse_fail",
            "share in which no answer was found; reward 0",
            "0 to 1",
            "Above one half: ask for the form of answer that the reward reads",
        ),
        Metric(
            "reward/status/unjudged",
            "share that no reward judges (None); they are out of the loss, unless there is a teacher",
            "0 to 1",
            "1: the iteration is not trained on, unless there is a teacher",
        ),
        Metric(
            "reward/<name>/parse_fail",
            "share in which this reward found no answer",
            "0 to 1",
            "As above",
        ),
        Metric(
            "reward/<name>/kappa",
            "agreement of this reward's verdicts with those of the first reward in the config that reports `correct`, "
            "beyond chance (Cohen's kappa)",
            "-1 to 1",
            "Below 0.6: the judge and the rule mean different things; falls: the judge is being gamed",
        ),
        Metric(
            "reward/<name>/of_right",
            "... mean of this reward over the completions that the earlier reward calls right",
            "the reward's",
            "Should stay far above `of_wrong`",
        ),
        Metric(
            "reward/<name>/of_wrong",
            "... and over those that it calls wrong",
            "the reward's",
            "Rises: the judge pays wrong answers",
        ),
        Metric(
            "reward/<name>/disputed",
            "share of answers that `MathAnswer` calls wrong and its second opinion right; they are paid",
            "0 to 1",
            "Above 0: read the completions with the criterion `disputed`",
        ),
        Metric(
            "reward/<name>/prompt_<mode>",
            "share of completions that follow all instructions of their row, `strict` or `loose`",
            "0 to 1",
            "`loose` far above `strict`: the model frames its answer with a first or last line, or asterisks",
        ),
        Metric(
            "reward/<name>/instruction_<mode>",
            "share of instructions that their completions follow, `strict` or `loose`",
            "0 to 1",
            "Far above the two by prompt: rows ask for several, `partial: true` pays each",
        ),
        Metric(
            "reward/<name>/failed",
            "share of a judge's questions that its server did not answer; their completions are out of the loss",
            "0 to 1",
            "Above 0: read `failed_rewards.jsonl`; lower `server.max_concurrent`, raise `server.timeout`",
        ),
        Metric(
            "reward/<name>/unreadable",
            "share of a judge's answers without the scores asked for; their completions are out of the loss",
            "0 to 1",
            "Above 0: `server.structured: true`, a higher `server.max_tokens`, or another judge",
        ),
        Metric(
            "reward/<name>/place_bias",
            "with a `GroupJudge`: what an answer that is shown at two places gains at the first one",
            "-1 to 1",
            "Far from 0: the judge goes by places; take another one, or `PairwiseJudge`",
        ),
        Metric(
            "reward/<name>/split",
            "with a `GroupJudge`: share of groups too long for one call, whose answers are compared in several",
            "0 to 1",
            "High: raise `max_characters`, if the judge's context allows it",
        ),
        Metric(
            "reward/<name>/asked_again",
            "share of a judge's questions that were asked more than once, because an answer could not be read",
            "0 to 1",
            "High: as for `unreadable`; each costs a call",
        ),
        Metric(
            "reward/<name>/cached",
            "share of a judge's questions answered before, at no cost; with staleness it depends on timing",
            "0 to 1",
            "Near 1: the completions repeat",
        ),
        Metric(
            "reward/<name>/seconds",
            "mean seconds of a call of a judge, with the waits before further tries",
            "0 or more",
            "Grows: its server is full",
        ),
        Metric(
            "reward/<name>/calls",
            "calls of this judge so far, by the file of its answers; with staleness they depend on timing",
            "0 or more",
            "Limit: `server.max_calls`",
        ),
        Metric(
            "reward/<name>/tokens",
            "tokens of its questions and answers so far",
            "0 or more",
            "Limit: `server.max_total_tokens`",
        ),
        Metric(
            "reward/<name>/cost",
            "US dollars for them, by `server.prompt_price` and `completion_price`",
            "0 or more",
            "Should end within what you planned",
        ),
        Metric(
            "reward/<name>/<key>",
            "mean of a further number that the reward returns",
            "the reward's",
            "As your reward means it",
        ),
        Metric(
            "reward/<name>",
            "mean of this reward before its weight, over the completions that have it; or of what a reward logs so",
            "the reward's",
            "One rises and the others fall: change their weights",
            "`rewards/<name>/mean`; what `log_metric` logs",
        ),
    ),
    "Training": (
        Metric(
            "train/no_signal",
            "share of prompts whose advantages are all 0, mostly because all rewards of the group are equal; 0 with "
            "`teacher.beta`, which trains on every prompt",
            "0 to 1",
            "Above one half: other prompts (`lit-rlvr filter`), more completions, or mend the reward",
            "`frac_reward_zero_std`, of completions",
        ),
        Metric(
            "train/zero_advantage",
            "share of completions with advantage 0",
            "0 to 1",
            "As `train/no_signal`",
        ),
        Metric(
            "train/advantage",
            "mean advantage",
            "near 0",
            "Far from 0: the estimator has no baseline, as `reinforce`",
            "-",
            "`critic/advantages/mean`",
        ),
        Metric(
            "train/advantage_positive_mass",
            "mean of the positive part of the advantages",
            "0 or more",
            "Near 0: nothing is pushed up",
        ),
        Metric(
            "train/advantage_negative_mass",
            "mean of the negative part, as a positive number",
            "0 or more",
            "Far above the positive one: watch the entropy",
        ),
        Metric(
            "train/loss",
            "loss of the step, a mean over the updates of a rollout",
            "any",
            "Says little: its value is near 0 by construction. Look at the reward",
            "`loss`",
            "`actor/loss`",
        ),
        Metric(
            "train/grad_norm",
            "norm of the gradient before it is clipped to `optim.max_grad_norm`",
            "0 or more",
            "Jumps: a smaller `lr`. 0: no signal",
            "`grad_norm`",
            "`actor/grad_norm`",
        ),
        Metric(
            "train/noise_scale",
            "prompts of an optimizer step with which its gradient is half signal and half noise, a running average; "
            "at least as many, where the signal is within its error. From the second step on; only of steps with two "
            "or more micro-batches on all processes together, because one has nothing to be compared with: lower "
            "`compute.tokens_per_microbatch`. It is an estimate, which varies with the cut into micro-batches",
            "above 0",
            "Above eight times `train/step_prompts` while the accuracy does not rise: larger "
            "`data.prompts_per_rollout`. Below one: smaller ones, or more updates per rollout",
        ),
        Metric(
            "train/step_prompts",
            "prompts of an optimizer step on all processes, with and without a signal; with dynamic sampling those it "
            "keeps. With `train/noise_scale`",
            "2 or more",
            "Compare it with `train/noise_scale`",
        ),
        Metric(
            "train/entropy",
            "exact entropy of the policy on the tokens that are trained, in nats per token",
            "0 to log V",
            "As `rollout/entropy`; `loss.entropy_coef`, `DAPO`'s wider clip",
            "`entropy`",
            "`actor/entropy`",
        ),
        Metric(
            "train/kl",
            "with `kl.coef`: estimated divergence from the reference, in nats per token",
            "0 or more (k1: any)",
            "Grows without reward: raise `kl.coef` or lower `lr`",
            "`kl`",
            "`actor/kl_loss`, `actor/reward_kl_penalty`",
        ),
        Metric(
            "train/teacher_kl",
            "with `teacher`: sampled reverse KL divergence from the teacher, in nats per token",
            "0 or more on average",
            "Should fall. Rises: lower `lr`. Flat at once: the teacher sees other prompts than it was trained on",
            "-",
            "-",
        ),
        Metric(
            "train/teacher_divergence",
            "with `teacher.beta`: divergence from the teacher over the vocabulary, in nats per token",
            "0 or more",
            "As `train/teacher_kl`, without the noise of sampled tokens",
            "-",
            "-",
        ),
        Metric(
            "train/lr",
            "learning rate of the step",
            "0 or more",
            "With `lr: auto` the run moves it",
            "`learning_rate`",
            "`actor/lr`",
        ),
        Metric(
            "train/kl_step",
            "with `lr: auto`: divergence of the policy after the step from that before it, in nats per token",
            "0 or more",
            "0.01 is usual; above 0.05 a step was too large",
        ),
        Metric(
            "train/step_cosine",
            "with `lr: auto`: cosine of the gradient and the step before",
            "-1 to 1",
            "Above 0 the steps are too short, below too long; the rate follows",
        ),
        Metric(
            "train/skipped_steps",
            "optimizer steps skipped since the start: a value was not finite, or no completion had a reward",
            "0 or more",
            "Above 0: read `skipped/`; a smaller `lr`, or `trainer.precision: 32-true`",
        ),
        Metric(
            "train/engine_difference",
            "mean of |log p of the trainer - log p of the engine|, in nats",
            "0 or more",
            "Doubles: the engine drifts; `rollout.safeguards.probe_every`, the trainer's precision",
            "`sampling/sampling_logp_difference/mean`",
            "`training/rollout_probs_diff_mean`, of probabilities",
        ),
        Metric(
            "train/expert_flips",
            "with `rollout.replay_routes`: share of tokens and layers whose router would choose other experts than the "
            "engine's, before the first update of a rollout",
            "0 to 1",
            "0.003 to 0.02 in tiny models in bfloat16, which the replay undoes. Grows: as `train/engine_difference`",
        ),
        Metric(
            "train/expert_balance",
            "with `model.loss.balance_coef`: loss of the use of experts within completions, averaged over layers",
            "1 to experts / experts of a token",
            "1 = even. Grows: routers prefer few experts; raise the coefficient",
        ),
        Metric(
            "train/observation_nll",
            "with `model.loss.observation_coef`: -log p of the tokens that the environment answered, in nats",
            "0 to ln V",
            "Falls: the policy knows what its actions lead to",
        ),
        Metric(
            "train/effective_sample_size",
            "(sum of w)^2 / (tokens x sum of w^2), with w the ratio of the trainer to the engine",
            "0 to 1",
            "Falls: the engine computes another policy; keep the importance correction",
        ),
        Metric(
            "train/importance_dropped",
            "with a correction that drops tokens: share of tokens with weight 0",
            "0 to 1",
            "Grows: widen the bounds, or `token_truncate`",
            "-",
            "`rollout_corr/rollout_rs_masked_fraction`",
        ),
        Metric(
            "train/staleness/mean",
            "mean age of the tokens that are trained, in iterations",
            "0 to `rollout.staleness`",
            "At the limit: training is faster than generation",
            "`sample/staleness_mean`, of samples",
            "`training/off_policy/trajectory_staleness_worst/mean`",
        ),
        Metric(
            "train/staleness/max",
            "age of the oldest of these tokens",
            "0 to `rollout.staleness`",
            "As above",
            "`sample/staleness_max`",
            "`training/off_policy/trajectory_staleness_worst/max`",
        ),
        Metric(
            "train/staleness/stale_cache",
            "with the engine's `recompute_cache: false`: share of these tokens that follow keys and values of older "
            "weights",
            "0 to 1",
            "Grows while `train/effective_sample_size` falls: `recompute_cache: true`",
        ),
        Metric(
            "train/staleness/ess",
            "effective sample size of the importance correction's weights",
            "0 to 1",
            "Below 0.3: lower `rollout.staleness` or `lr`",
            "-",
            "`rollout_corr/rollout_is_eff_sample_size`",
        ),
        Metric(
            "train/staleness/wait",
            "seconds that a step waited for groups which would be too old after it",
            "0 or more",
            "Grows: lower `max_tokens`, or raise `rollout.staleness`",
        ),
    ),
    "Several data sets": (
        Metric(
            "train/<set>/prompts",
            "share of the prompts that are of the set (a name in `data.train` or of `Mixture`)",
            "0 to 1",
            "About its weight, or its share of all rows",
        ),
        Metric(
            "train/<set>/reward",
            "`rollout/reward` of the set's completions",
            "that of its rewards",
            "As `rollout/reward`",
        ),
        Metric(
            "train/<set>/accuracy",
            "`rollout/accuracy` of the set's completions",
            "0 to 1",
            "Falls while another set's rises: give the set more weight",
        ),
        Metric(
            "train/<set>/no_signal",
            "`train/no_signal` of the set's prompts",
            "0 to 1",
            "Near 1: its prompts are too easy or too hard; less weight, or a `curriculum`",
        ),
    ),
    "What some losses and advantages add": (
        Metric(
            "train/clip_low",
            "share of tokens without a gradient because the lower bound clips their ratio (`CISPO`: whose weight it "
            "raises; `DPPO`: that it drops)",
            "0 to 1",
            "0 with one update per rollout (not `DPPO`). Grows: fewer updates per rollout, or a smaller `lr`",
            "`clip_ratio/low_mean`",
            "`actor/pg_clipfrac`, both bounds",
        ),
        Metric(
            "train/clip_high",
            "the same for the upper bound",
            "0 to 1",
            "As above; falls with a wider `clip_high`",
            "`clip_ratio/high_mean`",
            "`actor/pg_clipfrac`, both bounds",
        ),
        Metric(
            "train/clip_cov",
            "`ClipCov`: share of tokens that lose their gradient",
            "0 to `clip_share`",
            "0: no covariance lies between the bounds",
        ),
        Metric("train/kl_cov", "`KLCov`: share of tokens with the penalty", "about `penalty_share`", "Constant"),
        Metric(
            "train/m2po_dropped",
            "`M2PO`: share of tokens dropped",
            "0 to 1",
            "Grows with the age of the tokens; raise `threshold`",
        ),
        Metric(
            "train/influence",
            "`FIPO`: mean factor of a token by what follows it",
            "`influence_low` to `influence_high`",
            "At a bound: another `half_life`",
        ),
        Metric(
            "train/squared_log_ratio",
            "`DRO`: mean squared log-ratio of a completion to its sampler",
            "0 or more",
            "Grows: raise `beta` or lower `lr`",
        ),
        Metric(
            "train/taper",
            "`TOPR`: mean factor of a completion, below 1 where wrong ones are unlikely by now",
            "0 to 1",
            "Falls: the rollouts are old",
        ),
        Metric(
            "train/phi",
            "`VESPO`: mean weight of a completion",
            "0 or more",
            "Far from 1: the rollouts are old",
            "`vespo/phi_seq_mean`",
        ),
        Metric(
            "train/p",
            "`APMPO`: exponent of the power mean, a mean over prompts",
            "0 to 1 for rewards from 0 to 1",
            "Falls from 1 (GRPO) towards 0 (GMPO) as rewards rise",
        ),
        Metric(
            "train/fss",
            "`APMPO`: feedback stability, mean reward / (deviation + delta)",
            "0 or more",
            "Rises as groups agree",
        ),
        Metric("train/eps_ada", "`APMPO`: adaptive upper clip", "`eps_min` to `eps_max`", "Follows `train/fss`"),
        Metric(
            "train/margin",
            "`AAPO`: mean reward above the reference completions",
            "`delta_low` to `delta_high`",
            "Should rise; 0 = no better than the reference",
        ),
        Metric(
            "train/zero_advantage_base",
            "`AAPO`: `train/zero_advantage` without the margin",
            "0 to 1",
            "As `train/no_signal`",
        ),
        Metric(
            "train/omega",
            "`agrae`: the policy's proficiency",
            "`omega_floor` to 1",
            "Rises with the accuracy; at `alpha` positive advantages count in full",
        ),
    ),
    "Validation": (
        Metric(
            "val/accuracy",
            "mean of the sets' accuracies",
            "0 to 1",
            "The number to judge a run by; falls while the training accuracy rises: learnt by heart",
        ),
        Metric(
            "val/<set>/accuracy",
            "share of correct completions of a set",
            "0 to 1",
            "As above",
            "`eval_reward`, of rewards",
            "`val-core/<data_source>/acc/mean@N`",
        ),
        Metric(
            "val/<set>/accuracy_error",
            "standard error of the accuracy, by the spread of the questions",
            "0 to 0.5",
            "A difference below twice its size says nothing; more questions make it smaller",
        ),
        Metric(
            "val/<set>/guess",
            "share of the most frequent reference answer",
            "0 to 1",
            "The accuracy of a model that always gives this answer; constant",
        ),
        Metric(
            "val/<set>/reward",
            "mean reward of the completions that have one",
            "those of your rewards",
            "As `rollout/reward`",
            "`eval_reward`",
        ),
        Metric(
            "val/<set>/same_answer",
            "share of the most frequent answer; an answer is the reference that a completion ends with, else its end",
            "0 to 1",
            "Should stay near `val/<set>/guess`; far above it, the policy gives one answer whatever is asked",
        ),
        Metric(
            "val/<set>/same_answer_reward",
            "mean reward of the completions with the most frequent answer",
            "those of your rewards",
            "Near `val/<set>/reward`: the reward pays for a constant answer",
        ),
        Metric(
            "val/accuracy_before_warm_start",
            "accuracy before the warm start, at step 0; the mean over sets of at most 128 of each set's questions",
            "0 to 1",
            "`val/accuracy` at step 0 minus this is what the warm start gained",
        ),
        Metric(
            "val/<set>/fall_error",
            "standard error of the difference to the set's best validation so far, by question",
            "0 to 0.5",
            "A difference below twice its size says nothing",
        ),
        Metric(
            "val/<set>/accuracy/<category>", "the same for one category of the set", "0 to 1", "Shows what is learnt"
        ),
        Metric(
            "val/<set>/pass@<k>",
            "unbiased pass@k: a right one among k completions (`evaluation.samples` above 1)",
            "0 to 1",
            "Large k falls while k = 1 rises: diversity is lost (`agrae`, `pass_at_k`)",
            "-",
            "`val-core/<data_source>/acc/best@N/mean`",
        ),
        Metric("val/<set>/greedy", "accuracy of greedy completions (`evaluation.greedy`)", "0 to 1", "As the accuracy"),
        Metric(
            "val/<set>/loss",
            "`SFT`: mean of -log p over the tokens that the set's rows show the model to write",
            "0 or more",
            "Should fall; rises while `train/loss` falls: learnt by heart",
            "`eval_loss`",
            "`val/loss`",
        ),
        Metric("val/loss", "`SFT`: mean of the sets' losses", "0 or more", "As above"),
        Metric(
            "val/<set>/length",
            "mean length of a completion, in tokens",
            "0 to `max_tokens`",
            "As `rollout/length`",
            "`eval_completions/mean_length`",
        ),
        Metric(
            "val/<set>/truncated",
            "share cut off",
            "0 to 1",
            "Raise `rollout.evaluation.sampling.max_tokens`",
            "`eval_completions/clipped_ratio`",
        ),
        Metric(
            "val/<set>/entropy",
            "mean of -log p over the sampled tokens, if it samples",
            "0 to log V",
            "As `rollout/entropy`",
            "`eval_entropy`",
        ),
        Metric(
            "val/<set>/fall_z",
            "how certain it is that the same questions are answered worse than at the best "
            "validation, as a normal quantile",
            "0 or more",
            "Above 1.96 at the second validation, 3.3 at the eleventh: the run reports a fall",
        ),
    ),
    "Time": (
        Metric("step", "optimizer steps so far", "0 or more", "-", "`step`", "`training/global_step`"),
        Metric("epoch", "passes over the data, from 0", "0 or more", "-", "`epoch`", "`training/epoch`"),
        Metric(
            "time/rollout",
            "seconds of the first half of an iteration: all of those that follow",
            "above 0",
            "Much more than `time/train`: a faster engine, `rollout.staleness`",
        ),
        Metric(
            "time/sync",
            "seconds to give the engine the weights, with the probe",
            "0 or more",
            "Grows: `NCCLTransfer`, a larger `safeguards.probe_every`",
            "`perf/weight_sync_s`, asynchronous",
            "`timing_s/update_weights`",
        ),
        Metric(
            "time/generate",
            "seconds of generation; with `rollout.staleness` the wait for groups",
            "0 or more",
            "Shorter completions, vLLM, more servers",
            "-",
            "`timing_s/gen`",
        ),
        Metric(
            "time/score",
            "seconds that rewards take after generation has ended",
            "0 or more",
            "Large: a slow reward",
            "-",
            "`timing_s/reward`",
        ),
        Metric(
            "time/environment",
            "seconds of generation spent waiting for environments",
            "0 or more",
            "Large: a slow environment",
        ),
        Metric(
            "time/reference",
            "seconds for completions of the reference (`AAPO`)",
            "0 or more",
            "`reference_rollouts: pool`",
        ),
        Metric(
            "time/engine_idle",
            "with `rollout.staleness`: seconds that generation waited for prompts",
            "0 or more",
            "Large: training is the slower half",
        ),
        Metric(
            "time/train",
            "seconds of the second half: advantages and optimizer steps",
            "above 0",
            "[Speed](speed.md)",
            "-",
            "`timing_s/update_actor`",
        ),
        Metric(
            "time/checkpoint",
            "seconds to save a checkpoint, where one was saved",
            "above 0",
            "`checkpoint.minutes`",
            "-",
            "`timing_s/save_checkpoint`",
        ),
        Metric(
            "time/checkpoint_write",
            "seconds to write a sharded checkpoint in the background",
            "above 0",
            "A faster disk",
        ),
    ),
}
"""Title -> metrics. Of two names that fit, the first counts."""


def _pattern(name: str) -> str:
    """Return the regular expression of the columns that a metric's name stands for."""
    parts = re.split(r"<(\w+)>", name)  # texts and the names in brackets, by turns
    pattern = ""
    for text, bracketed in zip_longest(parts[::2], parts[1::2]):
        pattern += re.escape(text)
        if bracketed in ("key", "category"):
            pattern += ".+"
        elif bracketed is not None:
            pattern += "[^/]+"
    return pattern


def find_metric(name: str) -> Metric | None:
    """Return the entry for a column of metrics.csv; None if there is none."""
    for metrics in METRICS.values():
        for metric in metrics:
            if re.fullmatch(_pattern(metric.name), name):
                return metric
    return None
