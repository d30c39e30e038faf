"""A real browser, headless, driven over its DevTools protocol: what it shows, measures and prints."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
REQUIRED = "LIT_RLVR_TESTS_NEED_CHROMIUM"
"""Environment variable with which tests of pages fail without a browser; `.ci/run` sets it."""
NEEDED = "no Chromium, so no page was looked at: apt-get install chromium, as root"


def chromium() -> str:
    """Return the browser's path; without one, skip the test, or fail it where `REQUIRED` is set."""
    for name in NAMES:
        path = shutil.which(name)
        if path is not None:
            return path
    if os.environ.get(REQUIRED):
        pytest.fail(NEEDED)
    pytest.skip(NEEDED)


class PageLeft(Exception):
    """The tab went to another page before it answered a question about this one."""


class Page:
    """The one tab of a browser."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number = socket, 0
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=120))
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(answer["params"]))
            if answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
                self.errors.append(json.dumps(answer["params"]["entry"]))
            if answer.get("id") == self._number:
                if "navigated" in answer.get("error", {}).get("message", ""):
                    raise PageLeft
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])

    def open(self, address: str, width: int, height: int = 900) -> None:
        """Go to an address in a window of a given size, as a phone's or a desktop's."""
        self._ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        self._ask("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 120) -> None:
        """Wait until an expression is true."""
        until = time.monotonic() + seconds
        while not self._is_true(expression):
            assert time.monotonic() < until, f"never true: {expression}\n{self.ask('document.body.innerText')[:2000]}"
            time.sleep(0.1)

    def _is_true(self, expression: str) -> bool:
        try:
            return bool(self.ask(expression))
        except PageLeft:
            return False

    def picture(self) -> Image.Image:
        """What the window shows."""
        shot = self._ask("Page.captureScreenshot", format="png")
        return Image.open(BytesIO(base64.b64decode(shot["data"]))).convert("RGB")


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A browser with an empty profile in the given folder."""
    command = [
        chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-port=0",
        f"--user-data-dir={profile}", "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = _port(profile / "DevToolsActivePort", process)
        import httpx

        tabs = httpx.get(f"http://127.0.0.1:{port}/json", timeout=60).json()
        address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        with connect(address, max_size=None) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        process.wait(60)


def _port(file: Path, process: subprocess.Popen[bytes]) -> str:
    until = time.monotonic() + 120
    while not (file.is_file() and file.read_text().count("\n")):
        assert process.poll() is None and time.monotonic() < until, "the browser did not start"
        time.sleep(0.1)
    return file.read_text().splitlines()[0]
