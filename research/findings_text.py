"""The texts of docs/findings.md and research/findings.md around their tables."""

SHORT_OPENING = """
# Findings: the papers' claims on a tiny model

We trained a Llama of a third of a million parameters {runs} times on sums of two to five numbers, on two processor
cores, and tested the claims of three papers. What we saw holds for this model and these tasks only.
[The details](../research/findings.md) have the rules, all tables, figures and readings, and what limits each study.

- **A-GRAE** does not beat GRPO at a learning rate chosen for GRPO: it ends {agrae_behind} lower at k = 1. Where hard
  problems stay unsolved, each at its best of four rates, its lead is {regime_agrae_1} ({regime_agrae_1_interval}).
- **APMPO** keeps a little more entropy than GRPO. Its lead in accuracy is {apmpo_lead} where few tokens are clipped
  (the paper prints at least {apmpo_printed}). With four epochs over each rollout it cannot be told from GRPO
  ({gate_lead}, {gate_lead_interval}). With one update per rollout, as in its Algorithm 1, it is GRPO.
- **AAPO** leads GRPO in groups of two at equal steps by {margin_lead} ({margin_lead_interval}), at a second look, by
  the mean of the last three validations, as registered; by the last one alone it cannot be told ({margin_last},
  {margin_last_interval}, {margin_last_p}). The paper prints at least {margin_printed}.
  In groups of six it ends where GRPO does ({six_lead}, {six_lead_interval}).
  AAPO's reference answers cost as many samples again.
- **Losses**: at its best learning rate no loss's lead over GRPO can be told from 0, and {best_pairs} pairs could tell
  only large ones, of {best_shown}. {best_told} ends below GRPO.
- **W-REINFORCE** collapses at the two higher of three rates. In a later study, with GRPO's clip, as in its recipe,
  none of three runs did.

## The claims

A claim is a difference of two cells over the same seeds, written down before the results were in. p is that of the
exact sign-flip test, after Holm's correction over the claims of a study.

- *Seen*: the claimed sign and p < 0.05. *Not seen*: the other sign and p < 0.05. *Cannot tell*: anything else.
- *Smaller than printed* was found afterwards: a lead as large as the smallest that the paper prints is rejected.
- The first studies (ten pairs) share one starting model and one set of problems; the others have three of each.
- Claims that hold by construction, or that this model cannot test, stand in the details alone.
"""
"""The short page up to its table of claims; findings_numbers.py fills in the fields."""

SHORT_LOSSES = """
## The losses

Accuracy on sums of two numbers after 150 steps, two updates per rollout, each loss at its best of three learning rates
(by two seeds on another start): two fresh seeds on each of three starting models. FIPO, TOPR and DRO are from a later
study, next to GRPO's runs there. The intervals are not corrected. Corrected tests tell W-REINFORCE alone from GRPO;
the intervals of GPG, AAPO, FIPO and TOPR leave 0 out, and the sign-flip test does not confirm them. Details: {best};
{more}.
"""

OPENING = """
# The studies behind the findings: rules, tables and readings

We trained a Llama of a third of a million parameters {runs} times on sums of two to five numbers, on two processor
cores, and asked which claims of three papers show. What we saw holds for this model and these tasks only.

**A-GRAE** (suppress the advantages of right answers; favour hard prompts as the model gets better)

- Found afterwards, so without a verdict: while right answers are suppressed, the entropy is higher than GRPO's in the
  first half of training, by {entropy_1} nats in the first quarter ({entropy_seeds}); in the last quarter it is
  {entropy_last} lower. More prompts are unsolved in the last quarter than in the first, by {unsolved} of 32
  ({unsolved_seeds}); with GRPO fewer are, by {unsolved_grpo}. Favouring hard prompts goes with more at k = 16, by
  {hard_16} ({hard_seeds}). All three need fresh seeds.
- Does not hold: the entropy does not rise, and A-GRAE does not beat GRPO at a learning rate chosen for GRPO. It ends
  {agrae_behind} lower at k = 1 ({agrae} against {grpo}); the suppression alone ends {group_behind} lower.
- Does not hold where hard problems stay unsolved: A-GRAE's lead is {regime_agrae_1} ({regime_agrae_1_interval},
  {regime_pairs} pairs), and {regime_half_1} with a milder suppression ({regime_half_1_interval}). Each runs at the best
  of four learning rates, by two seeds on another start, where A-GRAE led; GRPO's is the lowest of the four.
- Cannot be said: whether the sample level alone helps ({sample_level} at k = 1; the paper prints at least
  {sample_level_printed}); whether A-GRAE leads at k = 32 where hard problems stay unsolved
  ({regime_agrae_32}, {regime_agrae_32_interval}); whether runs collapse more often (0 of 10 and 0 of {regime_pairs}
  here, 3 of 10 in the paper).

**APMPO** (a power mean over tokens, and a clip that widens as rewards get steadier)

- Holds: it keeps a little more entropy than GRPO, {apmpo_entropy} nats of {grpo_entropy}.
- Does not hold where {apmpo_clipped_above} of GRPO's tokens are clipped above and {apmpo_clipped_below} below (in the
  last rollout): {apmpo_smaller} of its {apmpo_accuracy} gains in accuracy are smaller than the smallest gain that the
  paper prints. Its lead over GRPO is {apmpo_lead} (printed: at least {apmpo_printed}).
- Cannot be said, with four epochs over each rollout, where the clip binds: whether it leads GMPO ({gate_gmpo},
  {gate_gmpo_interval}, p {gate_gmpo_adjusted} after correction), or GRPO ({gate_lead}, {gate_lead_interval};
  {gate_intact} without the pair in which GRPO collapsed). In its favour, found afterwards: by the mean of all three
  validations it leads GMPO by {gate_three_gmpo} (p {gate_three_gmpo_p}).
- Cannot be said: the other gains; whether it helps that the clip adapts (over a constant upper clip of 0.33:
  {gate_static}, {gate_static_interval}); more entropy than DAPO or GMPO; diversity, because our answers have 8 tokens.
  The paper's Algorithm 1 takes one update per rollout, and then APMPO *is* GRPO; we took four.

**AAPO** (add the margin over a reference model's rewards to the advantage)

- So by construction, and no finding: fewer advantages are 0, which follows from the formula.
- Holds at a second look: in groups of two, at equal steps, it leads GRPO by {margin_lead} ({margin_lead_interval}), and
  AAPO without the margin by {margin_margin} ({margin_margin_interval}). Both claims were "cannot tell" when 18 of 30
  planned pairs were in; with {margin_pairs} both have p {margin_p} after correction. For two looks p has to be below
  0.0294 (Pocock's bound).
- Does not hold: the size; the paper prints at least {margin_printed}. In groups of six AAPO ends where GRPO does
  ({six_lead}, {six_lead_interval}), and a lead as large as the printed one is rejected ({six_below}).
- Cannot be said: whether it helps that the reference answers the same prompt. AAPO's lead
  over one with its rewards on other prompts is {margin_own} ({margin_own_interval}), and the whole margin brings
  {margin_margin}. Nor what it does in longer runs and with rewards other than 0 and 1.

**Eighteen losses, each at the best of three learning rates by two seeds** ({best_runs} runs, on sums of two numbers):
no loss's lead over GRPO can be told from 0, but {best_pairs} pairs could tell only large ones, of {best_shown}.
{best_told} ends below GRPO ({best_told_p} after Holm's correction of t-tests; sign-flip {best_told_flip}, the least
that so many pairs can give). Of {best_only_before}, and of FIPO in a later study, it cannot be said: their t-intervals
leave 0 out before any correction ({best_only_before} below GRPO, FIPO above it by {more_fipo_apart}, with
{more_fipo_tokens} times its tokens), but the sign-flip test gives {best_only_before_flip} and {more_fipo_flip}.

**W-REINFORCE** ends at 0 at the two higher rates; at the chosen ones no run of any loss collapsed. In another study, at
the middle rate, one of ten cells collapsed, in three of three runs: with right answers at a tenth, a second update, no
clip, and a start where most answers are wrong. With GRPO's clip, as in its recipe, none of three runs did.

The details follow: how to read the tables, a table for each paper, and where the losses' gradients differ.
"""
"""The first screen of the page; findings_numbers.py fills in the fields."""

INTRODUCTION = """
## How to read this page

Do these algorithms do what their papers say, at an equal budget and with enough seeds to tell? The models and machines
of the papers are out of reach here. What two processor cores can do is train a tiny Llama, many times, on a task that
it half masters: sums and differences of three numbers, worked out one step a line
([`MultiStepArithmetic`](../datamodules/toys/arithmetic.py)).

In the first study of each paper a supervised warm start brings it to 22 % of sampled answers right, pass@64 to 98 %;
GRPO brings pass@1 to 33 to 38 %. Rewards are 0 or 1, validation is on 128 held-out problems at temperature 1, with 64
samples each in these studies and 8 to 32 in the later ones.

So this page says what holds *at this scale*. A claim that is seen here may fail on a large model, and the other way
round; a claim about learning dynamics that follows from the mathematics should show here as well.

**Claims.** Each claim is a difference of two cells over the same seeds (the same prompts in the same order, the
same first completions). p is that of the two-sided sign-flip permutation test, which counts all choices of signs; the
second value is after Holm's correction over all registered claims of the study. The registered claims, their measures
and these rules were written before the results were in, and the registered verdicts stay as they came out.

There are two exceptions, both in [APMPO where ratios leave the clip](#apmpo-where-ratios-leave-the-clip): git shows
that its measure changed in the commit that brought its results, and a verdict was *seen* as long as p came from 10,000
random choices of signs. It is *cannot tell* since all are counted. No other verdict changed with the counting.

| registered verdict | meaning |
|---|---|
| seen | the claimed sign, and corrected p < 0.05 |
| not seen | the other sign, and corrected p < 0.05 |
| cannot tell | anything else; the table then has the difference that the runs could show |

What runs *could show* is the difference that as many pairs show with a probability of 0.8, before the correction. For
ten pairs it is one standard deviation of the differences; among fifteen claims 1.5.

**Found afterwards**, from the same results: the column *now*, wherever it differs from the registered verdict, and the
tables of further claims, which have no verdict, because a claim that is picked after looking needs fresh seeds.

- *Smaller than printed, in this regime*: no test could tell the claim, but a one-sided t-test rejects that the true
  difference is as large as the smallest one that the paper prints for the same measure (p after Holm's correction over
  all such claims of the paper). The smallest is over the paper's models; A-GRAE prints no averages, so there it is over
  the test sets, too. A percentage point there is taken for a percentage point here.
- *Cannot be tested here* is followed by its reason.

**Intervals** of means are Student's 95 % intervals over seeds. Those of the first edition, percentile bootstrap
intervals, are too narrow with ten seeds: four of them left 0 out where p was above 0.05. The interquartile means and
probabilities of improvement still have them (Agarwal et al. 2021), so read these as rough.

**What the seeds stand for.** All seeds of the first studies share one warm start and one set of 128 validation
problems. So a p-value is about what training adds to this one model on these problems, not about other models or tasks.
The later studies with claims, and that of eighteen losses, have three warm starts, each with problems of its own. There
a claim is seen, or not seen, only if the difference has the same sign in each of the three.

**What was not the papers'.** The constants of the losses are theirs, but for this:

| | papers | here |
|---|---|---|
| learning rate | A-GRAE and APMPO 1e-6; AAPO not stated | 1e-4, at which plain GRPO learns; 3e-5 for AAPO's margin |
| updates per rollout | A-GRAE 4 (1024 by 256 prompts); APMPO 1 (Algorithm 1), that is GRPO; AAPO 1 | 2; 4; 1 |
| limit on the gradient's norm | not stated | 1; none for AAPO's margin |
| KL term | APMPO 0.001; A-GRAE and AAPO not stated | none |
| temperature of validation | A-GRAE 0.6 with top-p 0.95; APMPO 0.6; AAPO not stated | 1 |
| prompts x completions | A-GRAE 1024 x 8; APMPO 512 x 8; AAPO 8 x 6 to 32 x 8 | 32 x 8; 32 x 8; 32 x 2 to 32 x 10 |

**New studies** take at least three warm starts (`data.init_args.seed` draws the problems too), validate ten times or
more in a run, compare AAPO at equal steps first and at equal samples second, correct over three primary claims of a
paper, and call all others exploratory.

`python research/findings.py` makes this page and [the short one](../docs/findings.md) from the studies' results in
`research/results`; `--take NAME=DIR` takes new ones.
The registered claims in short:
"""

CHOICE_OF_RATES = (
    "First the accuracy of every cell at each learning rate (`studies/claims/{name}`, two seeds each). The rate in "
    "bold has the highest mean; the seeds and problems below are others:"
)

READINGS = {
    "agrae": """ What stands out: the cells that suppress positive advantages, which are negative-dominant
training, A-GRAE's group level and A-GRAE as a whole, end below GRPO at every k. Of the two strengths tried the stronger
ends lower: a factor of 0.1 is {negative_behind} behind at k = 1, one of 0.3 to 0.4 {group_behind}. In [the later
study](#a-grae-where-hard-problems-stay-hard) this order is not the same at every k. With right answers rewarded ten
times as much we saw no loss, also at a large k. The sample level alone is GRPO within the differences that ten seeds
show; it may also be as good as the paper's smallest gain.

What agrees with the paper and was not registered:

- The entropy of negative-dominant training is higher than GRPO's in both first quarters, by {entropy_1} and {entropy_2}
  nats. It crosses GRPO's near {crossing} of training (interpolated between quarters), and the registered measure is
  that of the last quarter. But it falls in every quarter; in fig. 3 it rises, except at the very beginning.
- Hard-focused training is better than GRPO at a large k (at k = 16 by {hard_16}, in {hard_seeds} seeds), as in table 6.
  At k = 1 it is not better here; in table 6 it is worse on MATH and better on AIME 2025 and AMC23.

"The most correct answers" means also more than GRPO:
there neither easy-focused early nor hard-focused late is ahead, and late GRPO has the most of the three.

The registered claim about stability was two in one, and its measure, the last minus the best quarter, cannot be
negative. Taken apart: under negative-dominant training more prompts are unsolved in the last quarter than in the first,
by {unsolved} of 32 ({unsolved_seeds} seeds). The rise is steady, not sudden as in 4.2. A collapse is another matter:
none of 10 runs here, 3 of 10 in the paper (D.5), which ten runs cannot tell apart (Fisher's exact test, p = 0.21).

What limits this:

- The learning rate was chosen on plain GRPO, and `max_grad_norm` is 1, which cuts the cells differently: the gradients'
  norms are {grpo_norms} for GRPO, {positive_norms} for positive-dominant and {negative_norms} for negative-dominant
  training. AdamW does not see a constant factor, but a cut gradient counts as much as any other and an uncut one by its
  norm.
- Before training pass@64 is 0.98, so a gain at a large k could hardly show, only a loss.
- The paper's runs end with most prompts solved; here {grpo_right} of GRPO's samples are right in the last quarter, and
  the proficiency omega that scales A-GRAE's positive advantages is 0.3 in the first and 0.4 in the last. A-GRAE's alpha
  is that of MATH, 1; a smaller one suppresses less, and was not tried.
- The accuracy before training is the mean over all runs, taken as exact.
""",
    "apmpo": """
What stands out: the six losses end within {spread} of each other at k = 1. Ten seeds cannot tell them apart, but
{smaller} of the {accuracy_claims} differences in accuracy are smaller than the smallest one that the paper prints for
any of its three models. The other {left} could be as large as that.

**The paper's own algorithm is GRPO.** Algorithm 1 copies the policy into the old policy (line 2) and then takes one
gradient step (line 34); K.1 counts a single forward and backward pass for the update in a training step (eq. 76). So
every ratio is 1 when the gradient is taken, no token is clipped, and the power mean has the gradient of the plain mean:
whatever p and eps_ada are, the step is GRPO's. We took four updates per rollout, so this section tests APMPO as it
would have to be run to differ from GRPO.

The adaptive parts do what they are made for: as more samples are right, the exponent falls to {exponent} and the upper
clip rises to {upper_clip} (means of the last quarter). But with rewards of 0 and 1 the deviation is a function of the
mean, sigma = sqrt(mu (1 - mu)), so the stability score is sqrt(mu / (1 - mu)) and measures the share of right answers,
not their stability. For the same reason the ablation "only sigma" (table 7) has a score of 2 or more, and a clip of
{only_sigma} or more at all times.

APMPO ends with {apmpo_entropy} nats more entropy than GRPO, which is seen. Six registered claims are about the
diversity of answers. They cannot be tested here: an answer has {length} tokens of arithmetic.

What limits this: a clip matters only where ratios leave it. In the last rollout {clipped_above} of GRPO's tokens are
clipped above and {clipped_below} below; the shares over all of training were not kept (new results have them by
quarter). So the gradients of all six point nearly the same way, as [measured below](#where-do-the-losses-differ), where
more updates or a higher rate do not separate APMPO from GRPO before GRPO stops learning.
""",
    "aapo": """
**This study has no valid verdict on whether AAPO is better;** [the next one](#aapos-margin-at-equal-steps) was made for
that. At equal steps AAPO is ahead of GPG by
{ahead_of_gpg} at G = 2, in 10 of 10 seeds. The paper compares at equal training data (6.2), which is at equal steps if
the batches are. Not all of that is its margin:

- At G = 2 GRPO has no margin either, and is ahead of GPG by {grpo_ahead_of_gpg} (p {grpo_ahead_p}). With one update
  their gradients point the same way: in a pair with one right answer GRPO's advantages are 1 and -1, GPG's 0.5 and
  -0.5, and in all other pairs both are 0. They differ in length alone.
- `max_grad_norm` is 1. The mean norms of the quarters are {grpo_norms} for GRPO and {aapo_norms} for AAPO, so most of
  their steps are cut to 1. GPG's are {gpg_norms}, so hardly any of its steps is. AdamW does not see a constant factor,
  but cut gradients count alike and uncut ones by their norm.
- AAPO and GRPO are cut alike. AAPO's lead over GRPO is {ahead_of_grpo} at G = 2, [{ahead_low}, {ahead_high}], p
  {ahead_p}: ten seeds do not tell.

At G = 6 and 10 all differences at equal steps are within {near} and smaller than the smallest one that the paper prints
({printed_grpo} over GRPO and {printed_gpg} over GPG, both for its 1.5B model; p {near_p} or less, uncorrected). At G =
2 this is not rejected (p {smallest_grpo} and {smallest_gpg}). The runs were not made for this comparison, and the cut
is in all of it.

At equal samples, which was registered here, AAPO's reference answers cost as many samples as the training ones, so it
takes half the steps and ends below GRPO and, at G = 6 and 10, GPG. AAPO keeps a larger pass@64 at G = 2 ({pass_64}
against {pass_64_grpo}).

The margin takes a third of the zero advantages away at G = 2, a fifth at G = 6, little at G = 10, where few groups are
all alike. That is not learned: an advantage with the margin is 0 only where both parts are.

6.4 claims more, that no instance of all responses having zero advantage occurred. It counts the responses of a device,
and our table counts those of a group: {no_signal} of the groups have zeros only for G = 2, 6 and 10, because with
rewards of 0 and 1 a group that is all right or all wrong has no margin where the reference's answers are the same.

A device holds four groups of a step in the paper's 1.5B and 7B runs (C.2). If groups were independent, four at once
would have zeros only in {device} of the steps here. So our table does not contradict 6.4, unless its device means a
micro-batch, which is one group. The paper does not say which rewards figure 2 had; the continuous ones of its 1.5B run
are rarely equal.

The loss is not mostly positive (D.4): in {positive_losses} quarters of training its mean is. D.4's runs have those
continuous rewards, too.

**The variance of the loss (D.4) cannot be compared here.** GPG's advantages are not divided by the deviation (eq. 3,
F = 1) and AAPO's are, which makes AAPO's loss and gradient larger. Its variance is {variance_ratios} times GPG's for
G = 2, 6 and 10; divided by the square of the ratio of the gradients' norms it is {rescaled} times GPG's. In the paper
it is 0.92 times GPG's.

Against GRPO there is nothing to compare: with one update per rollout GRPO's loss is minus the mean advantage, 0 but for
rounding, whatever its gradient does. The paper takes one update, too (Algorithm 1), so its GRPO's 3.53e-3 must come
from elsewhere, such as a mean over tokens of unequally long answers or a KL term.

What limits this, besides the cut: the reference is the model that training starts from, so its answers get easier to
beat as training goes on; the paper's runs are longer. The deviation is that of the population. At G = 2 it makes A
larger by sqrt(2) than the sample's, which the released code takes, and the margin smaller in comparison.
""",
    "losses_best": """
**{pairs} pairs tell no loss ahead of GRPO, which is not to say that none is.** Of the intervals of the differences
{above} is above 0. The largest lead is {largest_lead}. To be found with a probability of 0.8 in a single t-test, it
would have to be {shown}, depending on how the loss scatters. The sign-flip test cannot go below p = {least_p}, before
any correction for {losses} losses. [FIPO](#three-more-losses-each-at-its-best-learning-rate) came later.

**{told} ends below it.** The t-intervals of {below} are below 0; after Holm's correction of all {compared} t-tests
{told} remains ({told_p}). The sign-flip test, before any correction, gives {told_flip} for {told} and
{only_before_flip} for each of {only_before}, of which it so cannot be said. The three have no ratio, so the second of
two updates on a rollout is off-policy for them.

**No run collapsed at these rates.** At the two higher ones W-REINFORCE did, in both runs of each;
[why](#why-w-reinforce-collapses) is asked below.

DAPO ends highest ({dapo} against {grpo}), from {dapo_tokens} times GRPO's tokens, because it samples again for groups
that are all right or all wrong. AAPO's reference answers cost it as much.

**The order follows the rate as much as the loss.** For {at_highest} losses the best rate was the highest, {highest},
and they end at {ends_at_highest}; the others end at {ends_below}. Each rate was chosen with two seeds on one other
starting model, and for these losses a still higher one may be better. So read the table as what eighteen losses do at a
rate that suits them, not as a ranking.

All take two updates per rollout, because with one most of them have GRPO's gradient. Each has the advantage and the
aggregation of its paper. Clip-Cov and KL-Cov choose 1 % of the tokens, more than their paper, because an optimizer step
has 450.

The intervals of the accuracy are wide because the three starting models differ ({starts} right before training); those
of the differences compare runs from the same start.
""",
    "losses_more": """
**FIPO** has DAPO's options, so it samples again for groups that are all right or all wrong. It ends at {fipo}, and
its lead over GRPO is {fipo_apart} (t, uncorrected), from {fipo_tokens} times its tokens, as DAPO does above. In one of
{pairs} pairs GRPO is ahead, and the sign-flip test gives {fipo_flip}: whether FIPO leads cannot be said. What FIPO's
weights add to DAPO was not measured apart.

**TOPR and DRO** end at {topr} and {dro}; their lead over GRPO is {topr_apart} (sign-flip {topr_flip}), and {dro_apart}
({dro_flip}). Both are made for
completions of another policy, and here these are at most one update old. TOPR has the paper's advantages, 1 and -1,
with which most completions of these starts have a negative one. At the highest of three rates both of its runs
collapsed.

What limits this: {pairs} pairs, no correction, and one rate each, chosen with two seeds on one other start. The study
ran on another machine than the one above, where the same seeds gave GRPO other runs; so compare within this table.
""",
    "w_reinforce": """
A run has collapsed if it ends below half of the accuracy before training. The cells: a weight of a tenth or 1 for right
answers (wrong ones have -1), or a tenth minus the mean of the batch (centred); 1 or 2 updates per rollout; and GRPO's
clip, as in the recipe, or none. With one update there is nothing to clip.

**One cell collapsed, which has four things at once**: right answers that count a tenth, a second update on a rollout,
no clip, and a start where most answers are wrong. There {collapsed} of {together} runs collapsed, and {elsewhere} of
the {others} others. With any one of the four taken away, none of three runs did, so up to {missed} of such runs may
collapse (Clopper and Pearson):

- With one update per rollout, or with GRPO's clip, the same advantages learned ({one_update} and {clipped} at the end
  from the low start; GRPO: {grpo}).
- So they did with equal weights ({equal}), and with the batch's mean subtracted ({centred}).
- From the high start they learned as they are ({high}; GRPO: {grpo_high}).

What collapsed in the comparisons of losses above and below had no clip, which the recipe has. An explanation that fits,
and was not tested: with {right} right, the mean advantage is about {mean_advantage}, so nearly every token is
pushed down. Unclipped, the second update pushes tokens further that the first one has already made unlikely.

With one update per rollout the same steps take twice the samples. The high start is a longer warm start of the same
model.
""",
    "aapo_margin": """
The three registered claims are the primary ones of `aapo_margin.yaml`, which was written before the first run. Ten
seeds for each start were planned; {seeds} were run, {pairs} pairs in all, because time was short. That number was
settled when the results of six were in, with which all three claims were "cannot tell". So this is a second look. In
place of p < 0.05 Pocock's bound asks for p < 0.0294 in each of two looks, and for p < 0.0221 in each of three, which
all planned pairs would have made. The corrected p of the first two claims is {p} and below both.

**AAPO is ahead of GRPO, by less than printed.** In groups of two, at equal steps, the mean of its last three
validations is {aapo_end} and GRPO's {grpo_end}: {lead}, {lead_interval}. By the last validation alone it cannot be told
({last}, {last_interval}, {last_p}). A lead as large as the smallest that the paper prints, {printed}, is rejected
({below}).

**The lead comes with the margin; we did not see that the reference makes it.** AAPO without its margin differs from
GRPO in the aggregation alone, of which we saw no effect ({aggregation} for GRPO's, {aggregation_interval}); with the
margin it ends {margin} higher, {margin_interval}. AAPO cannot be told from one that takes the reference's rewards on
another prompt ({own}, {own_interval}), and the interval reaches to three quarters of what the margin adds.

A margin that is the same for all
prompts adds nearly as much ({constant}, {constant_interval}), which was found afterwards. An explanation that fits: a
right answer gets a bonus and a wrong one a penalty in every pair, also where both are alike and GRPO learns nothing.

With the sample's deviation, which the released code takes, the margin weighs more against the rest. That changes
{sample}, {sample_interval}. The pairs could have shown differences of {could_show}.

What limits this: groups of two, in which the margin has the most to do; rewards of 0 and 1; 300 steps from the model
that is also the reference; one learning rate, chosen with GRPO. All cells take the same steps, for which AAPO samples
twice as many answers.
""",
    "aapo_margin_6": """
All 18 registered pairs were run before any was read. **In groups of six AAPO ends where GRPO does**: {lead},
{lead_interval}. A lead as large as the smallest that the paper prints, {printed}, is rejected ({below}).

**We saw nothing of the margin.** Over AAPO without it: {margin}, {margin_interval}. Over reference rewards of
other prompts: {own}, {own_interval}. The pairs could have shown differences of {could_show}, and in groups of two the
margin brings about twice as much. An explanation that fits: in larger groups fewer are all alike, so GRPO's own
advantages leave the margin less to do.

What limits this is what limits the study before, but for the size of the groups.
""",
    "apmpo_gate": """
The first study clipped few tokens. Here each rollout is trained on in four epochs of whole minibatches, and
{above} of GRPO's tokens are clipped above and {below} below, as means of the quarters of training.

**APMPO cannot be told from GMPO, nor from GRPO.** Over GMPO: {gmpo}, {gmpo_interval}. Its p over all 2^{pairs} choices
of signs is {gmpo_p}, and {gmpo_adjusted} after correction, so by the registered rule it is *cannot tell*. This page
said *seen* before: with 10,000 random choices p was 0.0142, corrected 0.043, and other random ones give 0.012 to 0.019.

Over GRPO: {lead}, {lead_interval}, which includes the smallest gain that the paper prints, {printed}. One of GRPO's
runs collapsed, and that pair is the lead: without it {intact}, {intact_interval}. In the third picture GRPO's line
falls because of this run.

**In APMPO's favour**, found afterwards: by the mean of all three validations it leads GMPO by {three_gmpo},
{three_gmpo_interval}, p {three_gmpo_p}. By the same measure GMPO is behind GRPO by nearly as much ({three_gmpo_grpo},
{three_gmpo_grpo_interval}, p {three_gmpo_grpo_p}), and APMPO over GRPO is {three_lead}, {three_lead_interval}.

**We did not see that adapting the clip helps.** Over an upper clip that stays at 0.33: {static}, {static_interval}. The
pairs could have shown a difference of {could_show}.

What limits this: `val_check_interval` counts rollouts, so there were three validations instead of the twelve that were
registered, and the measure is the last one alone instead of a mean of three. We noted that this was settled before a
result was read; git cannot confirm it, because the measure changed in the commit that brought the results (e4c3e06).
The learning rate was chosen with GRPO, one seed on another start.
""",
    "agrae_regime": """
All {pairs} registered pairs were run before any was read. Sums of two and three numbers are nearly solved, those of
four and five hardly ever. Before training {starts} of the samples are right; GRPO ends at {grpo}, and at {grpo_32} with
k = 32.

**A-GRAE ends below GRPO at k = 1, each at the rate chosen for it.** Its lead is {agrae_1}, {agrae_1_interval}, with the
same sign in each of the three starts. With alpha 0.5, a milder suppression, it is {half_1}, {half_1_interval}. For both
a lead as large as the smallest that the paper prints is rejected ({below}). At k = 32 it cannot be told ({agrae_32},
{agrae_32_interval}); the interval includes that lead, {printed_32}.

**Which half.** The lead of the group level alone is {group_1} ({group_1_interval}), that of the sample level {sample_1}
({sample_1_interval}). Both comparisons were exploratory. By length, A-GRAE ends a little lower on sums of two,
three and five numbers, and only the last of these intervals leaves 0 out; on those of four and five no cell gains
anything that shows.

What limits this: a cell's rate had the highest mean of two seeds on other problems, where A-GRAE was ahead
({chosen_agrae} at {rate_agrae} against {chosen_grpo} at {rate_grpo}). GRPO's rate is the lowest that was tried, so a
still lower one may suit it better, and it is half of A-GRAE's. At GRPO's rate A-GRAE had {agrae_at_rate_grpo} in those
two seeds; we did not ask how it ends there on fresh ones. No cell learns the long sums in 300 steps, so there is little
to gain by favouring hard prompts.
""",
    "losses_image": """
GRPO's own five runs end between {grpo_runs}, further apart than most losses are, so at k = 1 nothing stands out from
them but W-REINFORCE's collapse. At k = 8 {above} of the eleven losses end above the model before training: GSPO
(0.817), DAPO, APMPO, AAPO, GRPO-LEAD, GMPO and CISPO, of which DAPO and AAPO took half the steps. GRPO, Dr. GRPO and
GPG end below it: they have become surer of fewer answers.
""",
    "mechanism": """
Before losses are compared by their results, it helps to know where their gradients differ at all. Every loss is
measured on GRPO's own runs: the same rollouts, minibatches and weights. A cosine of 1 means that the loss pushes in
GRPO's direction; AdamW hardly sees a constant ratio of norms.

**Where GRPO learns.** In the first rollout {right_first} of the samples are right. In the last quarter of {rollouts}
rollouts more are at {learning} settings: {learning_settings}. At all others {right_elsewhere} or fewer are, most of
them with a collapse. The following is about the {learning} settings at which it learns.

**APMPO's paper.** The power mean pushes nearly in GRPO's direction: PMPO's cosine is at least {pmpo_where_it_learns}
there, and at least {pmpo_at_all} at all {settings} settings. What differs is the wider upper clip, in FAC as much as in
APMPO ({apmpo}), the mean over tokens of DAPO ({dapo}), and the geometric mean of GMPO ({gmpo}). More updates or a
higher rate do not separate APMPO from GRPO: its cosine is {apmpo_at_all} or more at all {settings} settings. At most
{most_clipped} of the tokens are clipped at any of them.

With {measured} rollouts a point the picture ranks losses: GMPO, and CISPO ({cispo}) still more, are further from GRPO
than FAC, APMPO and DAPO, by several standard errors of at most {errors}. The three are within {close} of each other.

**A-GRAE's paper.** The group level differs at every rate, because it changes which answers count: negative-dominant
training has {negative}, positive-dominant {positive}, the group level {group_level} and A-GRAE {agrae}. Hard- and
easy-focused training have {focused}. The sample level is nearly GRPO ({sample_level}) with a norm of
{sample_level_norm} times GRPO's, which AdamW takes away again.

**AAPO's paper.** GPG has {gpg}, AAPO {aapo}. Both lack the ratio and the clip. What the margin adds was not measured
apart.

**The scale of the noise.** GRPO's own gradients on two minibatches of a rollout have a cosine of {in_a_row} at most,
and of 0 or less at {nothing_in_common} of the {settings} settings. So a single step is nearly all noise: if the noise
of two minibatches is independent, what they have in common is at most about {signal} of a gradient's norm, and nothing
that we measured at the {nothing_in_common}.

**A cosine near 1 is not a small difference.** FAC's mean cosine of {fac_cosine} leaves {fac_rest} of its gradient
orthogonal to GRPO's, as 0.987 leaves 0.16. That is as much as minibatches have in common at most, or more. Whether a
loss ends elsewhere depends on whether this rest points the same way again and again, which a cosine does not say.

**For new studies.** The group level of A-GRAE and the two dominant cells differ enough at the rate of the claims. The
power mean of APMPO does not on this task at any setting; it may need longer answers, whose ratios spread within a
sequence. AAPO's margin should be compared with AAPO without it.

What limits this: these are the first {rollouts} rollouts after the warm start, on GRPO's trajectory, not on the loss's
own, and one in {every} of them was measured. A mean over a rollout's steps includes the first one, on which all ratios
are 1. A ratio of norms of 0.00 means that GSPO clipped all sequences of some minibatch.

The bars and the numbers after ± are standard errors over the rollouts measured, taken as independent. In a minibatch
with one group that has a gradient, a loss that only weighs groups has a cosine of 1; the table says how many groups of
a minibatch have one.
""",
}
"""Study -> the reading of its table, written when the results were in; findings_numbers.py fills in the fields."""
