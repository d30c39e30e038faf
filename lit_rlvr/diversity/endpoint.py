"""Queries a language model at an OpenAI-compatible endpoint (`/chat/completions`) with the package openai."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from lit_rlvr.errors import UserError
from lit_rlvr.packages import require

if TYPE_CHECKING:
    from openai import OpenAI


class Reply(NamedTuple):
    """A reply: a text, or the reason why there is none."""

    text: str
    failure: str = ""


@dataclass(frozen=True)
class ChatEndpoint:
    """Asks a model many independent questions; the options are those of `JudgeScore`.

    The key is read when questions are asked, and neither stored nor logged.

    Raises:
        UserError: an option is out of range, the package openai is not installed, or the key is not set.
    """

    base_url: str
    model: str
    api_key_env: str | None
    request: dict[str, Any]
    retries: int
    timeout: float
    concurrency: int

    def __post_init__(self) -> None:
        require("openai", "JudgeScore")
        for name, least in (("retries", 0), ("concurrency", 1)):
            if getattr(self, name) < least:
                raise UserError(f"JudgeScore.{name}: {getattr(self, name)} must be at least {least}")
        if self.timeout <= 0:
            raise UserError(f"JudgeScore.timeout: {self.timeout} must be more than 0 seconds")
        if not self.base_url.startswith(("http://", "https://")):
            raise UserError(f"JudgeScore.base_url: {self.base_url!r} must begin with http:// or https://")
        self._key()

    def ask(self, messages: Sequence[str]) -> list[Reply]:
        """A reply to each message, in order.

        Raises:
            UserError: the endpoint cannot be reached, or refuses the key or the model.
        """
        from openai import OpenAI

        key, retries, timeout = self._key(), self.retries, self.timeout
        with (
            OpenAI(base_url=self.base_url, api_key=key, max_retries=retries, timeout=timeout) as client,
            ThreadPoolExecutor(self.concurrency) as pool,
        ):
            replies = list(pool.map(partial(self._ask, client), messages))
        return [Reply(*(part.replace(key, "[key]") for part in reply)) for reply in replies]

    def _ask(self, client: OpenAI, message: str) -> Reply:
        import openai

        try:
            response = client.chat.completions.with_raw_response.create(
                model=self.model, messages=[{"role": "user", "content": message}], extra_body=self.request
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise UserError(
                f"JudgeScore: {self.base_url} answers HTTP {error.status_code} to model {self.model!r}; "
                "check base_url, model and the key in api_key_env"
            ) from None  # the server's message may repeat the key
        except openai.APITimeoutError:
            return Reply("", f"no reply within {self.timeout:g} s")
        except openai.APIConnectionError as error:
            raise UserError(f"JudgeScore.base_url: {self.base_url} cannot be reached: {error.__cause__}") from error
        except openai.APIStatusError as error:
            return Reply("", str(error).splitlines()[0])
        return Reply(_content(response.text))

    def _key(self) -> str:
        if self.api_key_env is None:
            return "no-key"  # the client requires a key, and would use OPENAI_API_KEY
        key = os.environ.get(self.api_key_env)
        if not key:
            raise UserError(f"JudgeScore.api_key_env: the environment variable {self.api_key_env} is not set")
        return key


def _content(body: str) -> str:
    """The message of a chat completion; the body itself if it is not one."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return f"not a chat completion: {body}"
    return content if isinstance(content, str) else f"a message without text: {body}"
