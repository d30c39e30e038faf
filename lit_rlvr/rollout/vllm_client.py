"""One vLLM server, by its HTTP interface."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import torch

from lit_rlvr.errors import UserError, first_line

START = "start it with `lit-rlvr serve --model ...`"
_log = logging.getLogger("lit_rlvr")


class ServerError(Exception):
    """A server is gone, or says that something of its own failed."""


class VLLMServer:
    """What a trainer asks of a server.

    The key goes into the requests' header alone: it is neither kept in a config nor logged.

    Args:
        url: http://host:port
        api_key_env: NAME of the environment variable that holds the server's `--api-key`, if it has one.
        timeout: seconds to wait for it to start, for new weights, and for one completion.
    """

    def __init__(self, url: str, api_key_env: str | None, timeout: float) -> None:
        self.url, self.timeout = url.rstrip("/"), timeout
        self.headers = {}
        if api_key_env is not None:
            if not os.environ.get(api_key_env):
                raise UserError(f"VLLMServerEngine.api_key_env: the environment variable {api_key_env} is not set")
            self.headers["Authorization"] = f"Bearer {os.environ[api_key_env]}"

    def wait(self) -> None:
        """Until it answers.

        Raises:
            UserError: it does not, within `timeout`.
        """
        deadline, said = time.monotonic() + self.timeout, False
        while True:
            try:
                if httpx.get(f"{self.url}/health", headers=self.headers, timeout=5).is_success:
                    return
                reason = "it is not healthy"
            except httpx.HTTPError as error:
                reason = first_line(error)
            if time.monotonic() > deadline:
                raise UserError(f"{self.url} does not answer within {self.timeout:g} s ({reason}); {START}")
            if not said:
                _log.info("waiting for the vLLM server %s", self.url)
                said = True
            time.sleep(0.5)

    def settings(self) -> dict[str, Any]:
        """vLLM's settings of the model: `dtype`, `max_model_len`, `logprobs_mode`, ...

        Raises:
            UserError: it lets nobody change its weights.
        """
        answer = self._ask("GET", "/server_info?config_format=json")
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise UserError(f"{self.url} takes no weights: it runs without VLLM_SERVER_DEV_MODE=1; {START}")
        return dict(self._checked(answer)["vllm_config"]["model_config"])

    def workers(self) -> int:
        """GPUs that hold its weights, or parts of them."""
        return int(self.get("/get_world_size")["world_size"])

    def version(self) -> str:
        """The label of the weights that it holds."""
        return str(self.get("/weight_info")["weight_version"])

    def forget_weights(self) -> None:
        """Zeros for weights, so that none of them can pass for new ones."""
        self.take(lambda: self.post("/weight_checker", {"action": "reset"}), "zeros")

    def load(self, folder: Path, version: str) -> None:
        """Take the weights of a folder that it can read."""
        path = {"weights_path": str(folder)}
        self.take(lambda: self.post("/collective_rpc", {"method": "reload_weights", "kwargs": path}), version)

    def take(self, bring: Callable[[], object], version: str) -> None:
        """New weights, brought while it rests; every cache that older ones made is emptied."""
        self.pause()
        bring()
        self.resume(version)

    def pause(self) -> None:
        """Stop generating, for new weights."""
        self.post("/pause?mode=abort")

    def resume(self, version: str) -> None:
        """Generate with the weights that came since `pause`, without any cache that older ones made."""
        for cache in ("prefix", "mm", "encoder"):
            answer = self.post(f"/reset_{cache}_cache")
            if answer.get("success") is False:
                raise ServerError(f"{self.url}: its {cache} cache could not be emptied")
        self.post("/update_weight_version", {"new_version": version})
        self.post("/resume")

    def get(self, path: str) -> dict[str, Any]:
        return self._checked(self._ask("GET", path))

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._checked(self._ask("POST", path, body))

    async def complete(self, client: httpx.AsyncClient, request: dict[str, Any]) -> dict[str, Any]:
        """One completion of `/inference/v1/generate`: tokens in, tokens out."""
        try:
            answer = await client.post(f"{self.url}/inference/v1/generate", json=request)
        except httpx.HTTPError as error:
            raise ServerError(f"{self.url}: {first_line(error)}") from error
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise UserError(f"{self.url} takes no tokens: it runs without --enable-scale-out; {START}")
        return dict(self._checked(answer)["choices"][0])

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            return httpx.request(method, self.url + path, json=body, headers=self.headers, timeout=self.timeout)
        except httpx.HTTPError as error:
            raise ServerError(f"{self.url}{path}: {first_line(error)}") from error

    def _checked(self, answer: httpx.Response) -> dict[str, Any]:
        path = answer.request.url.path
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise UserError(f"{self.url}: wants an API key; name its environment variable in api_key_env")
        if not answer.is_success:
            said = " ".join(answer.text.split())[:300]
            raise ServerError(f"{self.url}{path}: status {answer.status_code}: {said}")
        return dict(answer.json()) if answer.content else {}


def dtype_of(settings: dict[str, Any]) -> torch.dtype:
    """What a server computes in."""
    return getattr(torch, str(settings["dtype"]).removeprefix("torch."))
