"""The texts of findings.md around its tables; a test compares their numbers with the results."""

INTRODUCTION = """
# Findings: the papers' claims on a tiny model

Do these algorithms do what their papers say, at an equal budget and with enough seeds to tell? The models and
machines of the papers are out of reach here. What two processor cores can do is train a Llama of a third of a million
parameters, many times, on a task that it half masters: sums and differences of three numbers, worked out one step a
line ([`MultiStepArithmetic`](../datamodules/toys/arithmetic.py)). A supervised warm start brings it to 22 % of
sampled answers right, pass@64 to 98 %; GRPO brings pass@1 to about 37 %. Rewards are 0 or 1, validation is on 128
held-out problems with 64 samples each, at temperature 1.

So this page says what holds *at this scale*. A claim that is seen here may fail on a large model, and the other way
round; a claim about learning dynamics that follows from the mathematics should show here as well.

**How to read it.** Each claim is a difference of two cells over the same seeds (the same prompts in the same order,
the same first completions). p is that of the two-sided sign-flip permutation test; the second value is after Holm's
correction over all claims of the paper. *Seen*: the claimed sign, and corrected p < 0.05. *Not seen*: the other sign,
and corrected p < 0.05. *Cannot be tested here*: a reason that was found when the results were in is beside it. *Cannot
tell*: anything else; the table then has the difference that as many pairs show with a
probability of 0.8, before the correction. Intervals are 95 % percentile bootstrap intervals over seeds. Ten pairs
show, with a probability of 0.8, a difference of one standard deviation of the differences; among fifteen claims one
of 1.5.

The claims, their measures and these rules were written before the results were in, and nothing was tuned to agree:
the algorithms have the papers' settings, the learning rate is one at which plain GRPO learns without collapsing.
`python benchmarks/findings.py` makes this page from [the studies' results](findings), `--take NAME=DIR` takes new
ones.
"""

READINGS = {
    "agrae": """
What stands out: suppressing positive advantages hurts on this task. Negative-dominant training, and with it A-GRAE's
group level and A-GRAE as a whole, end below GRPO at every k; the more the positive part is suppressed, the lower. Its
entropy is higher than GRPO's in the first third of training, as the paper has it, and falls like all others afterwards
(figure below). The paper sees 3 of 10 negative-dominant runs collapse (D.5); here none does. Rewarding correct answers
ten times as much costs nothing, not even at a large k. The sample level alone is GRPO within the differences that ten
seeds show.

What limits this: before training pass@64 is 0.98, so a gain at a large k could hardly show, only a loss. The paper's
runs end with most prompts solved; here 43 % of GRPO's samples are right in the last quarter, and the proficiency that
scales A-GRAE's positive advantages is 0.3 in the first and 0.4 in the last. A-GRAE's alpha is that of MATH, 1; a
smaller one suppresses less, and was not tried. The accuracy before training is the mean over all runs, taken as exact.
""",
    "apmpo": """
What stands out: the six losses end within 0.019 of each other at k = 1, and ten seeds cannot tell them apart. The
adaptive parts do what they are made for: as more samples are right, the exponent falls to 0.74 and the upper clip rises
to 0.33. APMPO ends with 0.008 nats more entropy than GRPO, which is seen; its answers are as diverse as GRPO's
(self-BLEU-4 and cosine similarity differ by 0.003 at most, in the paper by 0.2).

What limits this: a clip matters only where ratios leave it, and with four updates per rollout at this learning rate
0.1 % of GRPO's tokens are clipped above and 0.6 % below. So all six losses nearly have the same gradient. More updates
or a higher rate would part them; that was not tried, because nothing here is tuned to agree. Answers of 8 tokens of
arithmetic leave little room for diversity.
""",
    "aapo": """
What stands out: the margin does what it is for. At G = 2 it takes a third of the zero advantages away, at G = 6 a
fifth, at G = 10, where few groups are all alike, little. But its reference answers cost as many samples as the training
ones, so at equal samples AAPO takes half the steps and ends below GRPO and GPG.

The paper compares at equal steps. After as many steps as AAPO took in all, GRPO stands at 0.298, 0.315 and 0.305 for
G = 2, 6 and 10 where AAPO ends at 0.309, 0.317 and 0.306, which no claim above tests: the margin is worth little here,
and not twice the samples. AAPO keeps a larger pass@64 at G = 2 (0.965 against 0.943).

What limits this: the variance of the loss cannot be compared with GRPO's here. With one update per rollout GRPO's loss
is minus the mean advantage, 0 but for rounding, whatever its gradient does; the paper's GRPO takes several updates. The
reference is the model that training starts from, so its answers get easier to beat as training goes on; the paper's
runs are longer.
""",
    "losses_text": """
Here nothing is claimed, so nothing is tested: five seeds cannot go below p = 0.06 in the sign-flip test. The intervals
are those of each loss alone; among ten of them one that just excludes 0 is no surprise.

What stands out: GRPO, Dr. GRPO, APMPO, GSPO and GRPO-LEAD end within 0.006 of each other. DAPO and AAPO get half the
optimizer steps from the same samples, because DAPO samples again for groups that are all right or all wrong and AAPO
for its reference answers, and end lower. GPG has no importance ratio, so its second update on a rollout is off-policy
by one step. W-REINFORCE collapses in all five runs: its advantages are +0.1 for right answers and -1 for wrong ones,
whatever the others of a group are, and with 29 % right before training nearly every update pushes an answer down, until
only wrong digits are left.

What limits this: one learning rate for all, at which GRPO learns, and 80 rollouts. The steps that a loss takes at this
rate differ in size, so the order says as much about the rate as about the loss.
""",
    "losses_image": """
GRPO's own five runs end between 0.24 and 0.55, further apart than most losses are, so at k = 1 nothing stands out from
them but W-REINFORCE's collapse. At k = 8 GSPO, and with half the steps DAPO, end above the model before training, GRPO
below it: it has become surer of fewer answers.
""",
    "losses": """
What stands out over both tasks: no loss is better than GRPO as far as five seeds can show. APMPO and GSPO win 60 % of
the pairs of runs, with an interval from a third to nearly nine tenths. AAPO, DAPO and GPG lose about nine of ten pairs,
the first two with half the optimizer steps. W-REINFORCE does not survive a task that the model mostly fails.
""",
}
"""Study -> the reading of its table, written when the results were in."""
