"""Images that are prepared before their batch is asked for, in a thread, while training computes."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from lit_rlvr.datamodules.reading.stream import Prepare
from lit_rlvr.types import Prompt


class PreparesAhead:
    """Prepares prompts for batches; those with images ahead of time, as far as they are known.

    What it returns depends on the prompt alone, so a prompt that was not begun, or is never asked for, changes nothing.

    Args:
        prepare: makes a prompt ready for a batch.
    """

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare
        self._begun: dict[str, Future[Prompt]] = {}  # by sample id
        self._thread: ThreadPoolExecutor | None = None

    def begin(self, prompts: Iterable[Prompt]) -> None:
        """Begin to prepare the prompts with images, in order, and drop those begun before."""
        self.drop()
        for prompt in prompts:
            if prompt.sample.images:
                if self._thread is None:
                    self._thread = ThreadPoolExecutor(1, "lit-rlvr-ahead")
                self._begun[prompt.sample.id] = self._thread.submit(self._prepare, prompt)

    def __call__(self, prompt: Prompt) -> Prompt:
        """Return a prompt ready for a batch; wait for it, or prepare it now.

        Raises:
            UserError: an image cannot be read any more.
        """
        begun = self._begun.pop(prompt.sample.id, None)
        if begun is None:
            return self._prepare(prompt)
        return begun.result()

    def drop(self) -> None:
        """Prepare no further prompts."""
        for begun in self._begun.values():
            begun.cancel()
        self._begun.clear()
