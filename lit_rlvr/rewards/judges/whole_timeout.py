"""An HTTP client whose timeout holds for a whole call."""

from __future__ import annotations

import asyncio
from typing import Any

from httpx2 import ReadTimeout, Request, Response
from openai import DefaultAsyncHttpxClient


class WholeTimeoutClient(DefaultAsyncHttpxClient):
    """Ends a request after its time, also if the server sends a byte now and then, which httpx's timeout allows.

    Args:
        seconds: the most that a request and its response may take.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(timeout=seconds)
        self.seconds = seconds

    async def send(self, request: Request, **options: Any) -> Response:
        try:
            async with asyncio.timeout(self.seconds):
                return await super().send(request, **options)
        except TimeoutError as error:
            raise ReadTimeout(f"no whole response within {self.seconds:g} s", request=request) from error
