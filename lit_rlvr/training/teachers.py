"""The teachers that a policy imitates on its own completions: which one scores a row, and behind which prompt."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.common.log import log
from lit_rlvr.distributed.collectives import to_device
from lit_rlvr.engines.client import VLLMServer, run_coroutine, wait_for
from lit_rlvr.errors import UserError
from lit_rlvr.options import Teacher, TeacherPrompt, is_url
from lit_rlvr.policy.logprobs import TeacherHead
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.sources import resolve_model, weights_version
from lit_rlvr.sampling import Sampling
from lit_rlvr.speech.thoughts import MARK
from lit_rlvr.training.reference import Reference
from lit_rlvr.training.terms import Term
from lit_rlvr.types import Prompt, Rollout, Sample, cut_sequences

AT_ONCE = 64
"""Sequences that a rank lets a server score at the same time."""
SERVER_SECONDS = 600.0
"""Seconds to wait for a server to start, and for its answers."""
KEY = "VLLM_API_KEY"
"""The environment variable with the key of teachers' servers, as vLLM names it."""


class Demonstration(TeacherPrompt):
    """The policy's prompt and a demonstration from a column of the data, which the policy does not see (Shenfeld et al.
    2026, SDFT, arXiv 2601.19897).

    Example:
        ```yaml
        model:
          class_path: OPD
          init_args:
            teacher: {prompt: {class_path: Demonstration, init_args: {column: solution}}}
        ```

    Args:
        column: the column with the demonstration: a text or one message of the assistant; or several messages, such as
            examples of other prompts, which then precede the prompt as turns.
        template: the text of the user's turn around a demonstration in text; `{prompt}` and `{demonstration}` stand for
            the two.
    """

    def __init__(
        self,
        column: str,
        template: str = "{prompt}\n\nThis is an example of a response to the question:\n\n{demonstration}\n\n"
        "Now answer with a response of your own.",
    ) -> None:
        self.column = column
        self.template = template
        for name in ("{prompt}", "{demonstration}"):
            if name not in template:
                raise UserError(f"model.teacher.prompt.template: there is no {name} in {template!r}")

    def ask(self, sample: Sample) -> Sample:
        # These import every data set.
        from lit_rlvr.common.columns import lookup
        from lit_rlvr.datamodules.reading.cells import BadRow, as_text
        from lit_rlvr.datamodules.reading.chat import break_up, find_tokens, wrapped_prompt
        from lit_rlvr.datamodules.reading.conversations import as_conversation, without_nulls
        from lit_rlvr.rewards.forms import as_messages

        value = without_nulls(lookup(sample.row, self.column))
        media = find_tokens(["<image>", "<video>"])
        messages = as_messages(sample.prompt)
        is_list_of_texts = isinstance(value, list) and all(isinstance(part, str) for part in value)
        try:
            turns = None if is_list_of_texts else as_conversation(value)
        except BadRow as error:
            raise BadRow(error.reason, self.column) from error
        if turns is not None:
            are_texts = all(isinstance(turn["content"], str) for turn in turns)
            if not turns or not are_texts or turns[-1]["role"] != "assistant":
                raise BadRow(
                    "a demonstration is a text, or messages with texts that end with the assistant's", self.column
                )
            if len(turns) > 1:
                turns = [turn | {"content": break_up(turn["content"], media)} for turn in turns]
                rules = sum(message["role"] in ("system", "developer") for message in messages[:1])
                return replace(sample, prompt=[*messages[:rules], *turns, *messages[rules:]])
            value = turns[0]["content"]  # the answer to this very prompt
        text = break_up(as_text(value, self.column), media)
        return replace(sample, prompt=wrapped_prompt(messages, self.template, demonstration=text))


def teacher_folder(model: str) -> str:
    """Return the folder or hub id of a teacher; an adapter is merged into its base model.

    Raises:
        UserError: there is no such model.
    """
    try:
        return resolve_model(model, adapter="any")
    except UserError as error:
        raise UserError(f"model.teacher.model: {str(error).removeprefix('model: ')}") from error


Score = Callable[[Rollout, Policy, list[int]], Tensor]
"""Returns the log-probabilities (B, T) of some rows under a policy, 0 in the others."""


class TeacherTerm(Term):
    """The divergence from the teachers.

    It is `logp - teacher_logp`, a sample of the reverse KL divergence: as an advantage of a policy gradient it descends
    that divergence of each token, given those before it. With `beta` it is the divergence over the vocabulary, in the
    loss. Source: Lu et al. 2025 (On-Policy Distillation, Thinking Machines); MiniLLM (arXiv 2306.08543), eq. 4, its
    first term; `vocabulary_divergence`.

    Args:
        options: `model.teacher`.
    """

    option = "model.teacher"

    def __init__(self, options: Teacher) -> None:
        super().__init__(options.coef)
        if options.beta is None:
            self.place = "advantages"
            self.needs = ("teacher_logp",)
            self.metric = "teacher_kl"
        else:
            self.needs = ("divergence",)
            self.metric = "teacher_divergence"

    def cost(self, x: Any) -> Tensor:
        if self.place == "loss":
            divergence: Tensor = x.divergence
        else:
            divergence = x.logp - x.teacher_logp
        return divergence


class Teachers:
    """The teachers of a run, by the value of `column`: what each is asked, and what it answers.

    Args:
        options: `model.teacher`; None = there is no teacher.

    Attributes:
        held: those in this process.
        servers: the others.
    """

    def __init__(self, options: Teacher | None) -> None:
        self.options = options
        self.held: dict[str, Reference] = {}
        self.servers: dict[str, VLLMServer] = {}
        self._data: Any = None  # the DataModule, which makes prompts
        self._prompted: set[int] = set()  # the tokens of all prompts

    @property
    def in_loss(self) -> bool:
        """Whether the loss has the divergence over the vocabulary as a term."""
        return self.options is not None and self.options.beta is not None

    def renew(self, policy: Policy, iteration: int) -> None:
        """Let averaged teachers follow the policy, after each iteration.

        Collective: call it on every rank.
        """
        for teacher in self.held.values():
            teacher.renew(policy, iteration)

    @property
    def averaged(self) -> dict[str, Reference]:
        """The teachers whose weights change and are their own."""
        averaged = {}
        for label, teacher in self.held.items():
            if teacher.update_every:
                averaged[label] = teacher
        return averaged

    @property
    def policies(self) -> list[Policy]:
        policies = []
        for reference in self.held.values():
            policies.append(reference.policy)
        return policies

    def prepare(self, data: Any, sampling: Sampling) -> list[Prompt]:
        """Take the data that it scores; return its prompts, or refuse rows without a teacher or that it cannot score.

        Raises:
            UserError: names such rows, or what a server cannot score.
        """
        from lit_rlvr.datamodules.reading.cells import BadRow  # imports every data set
        from lit_rlvr.datamodules.reading.rows import abbreviate
        from lit_rlvr.datamodules.reading.split import FAR_TOO_LONG

        if self.options is None:
            return []
        self._data = data
        teacher_prompts = []
        bad_rows = []
        prompts = data.prompts.get("train", [])
        max_tokens = FAR_TOO_LONG * data.reading.max_prompt_tokens
        for prompt in prompts:
            try:
                label = self._label(prompt.sample)
                if label not in (self.options.models or {"": ""}):
                    raise BadRow(f"{label!r} names no teacher of model.teacher.model", str(self.options.column))
                teacher_prompts.append(self.asked(prompt))
                if len(teacher_prompts[-1].token_ids) >= max_tokens:  # `encode` reads no further
                    raise BadRow(
                        f"{max_tokens} tokens or more; raise data.init_args.reading.max_prompt_tokens, an eighth of it",
                        "the teacher's prompt",
                    )
            except BadRow as error:
                bad_rows.append(str(BadRow(error.reason, error.field, prompt.sample.source or prompt.sample.id)))
        if bad_rows:
            raise UserError(
                f"model.teacher: {len(bad_rows)} of {len(prompts)} rows cannot be used: {abbreviate(bad_rows)}"
            )
        images = any(prompt.sample.images for prompt in teacher_prompts)
        if any(map(is_url, self.options.models.values())) and (sampling.temperature != 1 or images):
            raise UserError(
                "model.teacher.model: a server scores without images and at temperature 1; give the teacher's folder"
                + ("" if images else ", or set rollout.sampling.temperature to 1")
            )
        marks = set()
        for text, token in data.tokenizer.get_added_vocab().items():
            if MARK.fullmatch(text):
                marks.add(token)
        self._prompted = marks | {token for prompt in teacher_prompts for token in prompt.token_ids}
        return teacher_prompts

    def check_tokens(self, differing: dict[int, str]) -> None:
        """Refuse a teacher with other names of tokens than the policy if prompts have such tokens; else say so.

        Args:
            differing: the result of `differing_tokens`.

        Raises:
            UserError: names a token.
        """
        prompted = sorted(differing.keys() & self._prompted)
        if prompted:
            raise UserError(
                f"model.teacher.model: {differing[prompted[0]]}, and prompts or thoughts have it; use a teacher with "
                "the same tokens, or a chat template without this one"
            )
        if differing:
            log.warning(
                "model.teacher.model: %d added tokens have other names (%s); no prompt has one",
                len(differing),
                next(iter(differing.values())),
            )

    def connect(self) -> None:
        """Wait for the servers, and compare their tokens with the policy's in some prompts and all special tokens.

        Raises:
            UserError: a server does not answer, or its tokens are others.
        """
        models = {} if self.options is None else self.options.models
        servers = {}
        key = KEY if os.environ.get(KEY) else None
        for label, url in models.items():
            if is_url(url):
                servers[label] = VLLMServer(url, key, SERVER_SECONDS)
        self.servers = servers
        if not self.servers:
            return
        assert self._data is not None, "`check` knows the data"
        wait_for([*self.servers.values()], len(self.servers))
        tokenizer = self._data.tokenizer
        texts = []
        for prompt in self._data.prompts["train"][:8]:
            texts.append(tokenizer.decode(prompt.token_ids))
        for server in self.servers.values():
            check_server_tokens(server, tokenizer, ["".join(tokenizer.all_special_tokens), *texts])

    def versions(self) -> dict[str, str]:
        """Return "teacher", with the value of `column` if there is one, -> the version of its weights, or its URL."""
        models = {} if self.options is None else self.options.models
        versions = {}
        for label, model in models.items():
            if is_url(model):
                versions[f"teacher {label}".rstrip()] = model
            else:
                versions[f"teacher {label}".rstrip()] = weights_version(teacher_folder(model))
        return versions

    def move(self, device: torch.device) -> None:
        """Move the weights to the training device."""
        for reference in self.held.values():
            reference.move(device)

    def logprobs(self, rollout: Rollout, rows: list[int], score: Score) -> Tensor:
        """Return the log-probabilities (B, T) of some rows, each under its own teacher; 0 in the others.

        Collective: call it on every rank.
        """
        inputs = replace(rollout, prompts=[self.asked(prompt) for prompt in rollout.prompts])
        labels = []
        for prompt in rollout.prompts:
            labels.append(self._label(prompt.sample))
        logp = torch.zeros(rollout.mask.shape)
        for label in [*self.held, *self.servers]:
            own_rows = []
            for i in rows:
                if labels[i // rollout.group_size] == label:
                    own_rows.append(i)
            if label in self.held:
                scored = score(inputs, self.held[label].policy, own_rows)
                logp = to_device(logp, scored.device) + scored
            else:
                logp = logp + to_device(server_logprobs(self.servers[label], inputs, own_rows), logp.device)
        return logp

    def teach(self, rollout: Rollout, rows: list[int]) -> TeacherHead:
        """Return what `Policy.forward_rows` needs of some rows' teacher for the divergence from it.

        Collective if the weights are sharded: call it on every rank.
        """
        assert self.options is not None and self.options.beta is not None
        prompts = list(rollout.prompts)
        for p in {i // rollout.group_size for i in rows}:
            prompts[p] = self.asked(prompts[p])
        inputs = replace(rollout, prompts=prompts)
        return self.held[""].policy.teach(inputs, rows, self.options.beta, self.options.top_k)

    def _label(self, sample: Sample) -> str:
        """Return the value of `column`, "" without one."""
        from lit_rlvr.common.columns import lookup
        from lit_rlvr.datamodules.reading.cells import as_text

        assert self.options is not None
        if self.options.column is None:
            return ""
        return as_text(lookup(sample.row, self.options.column), self.options.column)

    def asked(self, prompt: Prompt) -> Prompt:
        """Return the prompt that the teacher gets in place of the policy's."""
        assert self.options is not None and self._data is not None, "`check` knows the data"
        if self.options.prompt is None:
            return prompt
        return replace(self._data.encode(self.options.prompt.ask(prompt.sample)), pixels=prompt.pixels)


def check_server_tokens(server: VLLMServer, tokenizer: Any, texts: list[str]) -> None:
    """Refuse a server whose tokens of some texts are not those of the policy's tokenizer.

    Raises:
        UserError: names the first token that differs.
    """
    for text in texts:
        server_ids = server.post("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
        token_ids = tokenizer(text, add_special_tokens=False).input_ids
        if server_ids != token_ids:
            n = next((n for n, (a, b) in enumerate(zip(server_ids, token_ids, strict=False)) if a != b), 0)
            raise UserError(
                f"model.teacher.model: {server.url} has other tokens than the policy: token {n} of {text[:60]!r}; "
                "serve a model with the same tokenizer"
            )


def server_logprobs(server: VLLMServer, rollout: Rollout, rows: list[int]) -> Tensor:
    """Return the log-probabilities (B, T) of some rows that a server gives; 0 in the others."""
    size = rollout.group_size
    logp = torch.zeros(rollout.mask.shape)
    pairs = []
    for i in rows:
        pairs.append((rollout.prompts[i // size], rollout.completions[i // size][i % size]))
    sequences = []
    for prompt, completion in pairs:
        for part in cut_sequences(completion.token_ids, completion.sequence_lengths):
            sequences.append([*prompt.token_ids, *part])
    scores = iter(run_coroutine(server.score(sequences, AT_ONCE)))
    for i, (prompt, completion) in zip(rows, pairs, strict=True):
        parts = islice(scores, len(completion.sequence_lengths))
        after = []
        for values in parts:
            after += values[len(prompt.token_ids) :]
        logp[i, : len(after)] = torch.tensor(after)
    return logp * rollout.mask
