"""`TrainingOrder`: the stream of training prompts, and how far training has come in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_rlvr.datamodules.reading.curriculum import Curriculum, RunningSuccess, Successes
from lit_rlvr.datamodules.reading.stream import START_CURSOR, Cursor, PromptStream, check_fingerprint, fingerprint


class TrainingOrder:
    """The order of the training prompts, the position in it, and the curriculum, which a checkpoint stores.

    Args:
        curriculum: retires prompts; None = every epoch has all of them.

    Attributes:
        cursor: the position behind the last prompt that training consumed.
        success: the running success of the prompts; None without a curriculum.
    """

    def __init__(self, curriculum: Curriculum | None = None) -> None:
        self.cursor: Cursor = dict(START_CURSOR)
        self.success: RunningSuccess | None = None
        if curriculum is not None:
            self.success = RunningSuccess(curriculum)
        self._stream: PromptStream | None = None
        self._fingerprint: Mapping[str, str] | None = None  # of the stream's data
        self._restored: Mapping[str, str] | None = None  # of a checkpoint's data

    @property
    def is_known(self) -> bool:
        """Whether the training prompts are loaded."""
        return self._stream is not None

    @property
    def stream(self) -> PromptStream:
        """The endless stream of training prompts."""
        if self._stream is None:
            raise RuntimeError("no training prompts yet: call `setup('fit')` first")
        return self._stream

    def use(self, stream: PromptStream) -> None:
        """Take the prompts from a stream.

        Raises:
            UserError: its data differ from those of the checkpoint.
        """
        self._stream = stream
        self._fingerprint = fingerprint(stream)
        check_fingerprint(self._restored, self._fingerprint)

    def forget(self) -> None:
        """Drop the stream, whose prompts are made anew."""
        self._stream = None

    def commit(self, cursor: Cursor, successes: Successes) -> None:
        """Record that training has consumed everything before `cursor`, with these successes."""
        self.cursor = dict(cursor)
        if self.success is not None:
            self.success.add(successes, lambda sample_id: self.stream.epoch_of(sample_id, cursor))

    def state_dict(self) -> dict[str, Any]:
        state = {"cursor": dict(self.cursor), "fingerprint": self._fingerprint}
        if self.success is None:
            return state
        return state | {"success": dict(self.success.known)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the position, before or after the stream is known.

        Raises:
            UserError: the training data differ from those of the checkpoint.
        """
        self.cursor = dict(state_dict["cursor"])
        if self.success is not None:
            self.success.known = dict(state_dict.get("success", {}))
        self._restored = state_dict["fingerprint"]
        check_fingerprint(self._restored, self._fingerprint)
