"""Environments in the form of those in TRL's documentation, with their servers in this process."""

from __future__ import annotations

import random
from typing import Any


class EchoTool:
    """As its Echo: the state that the reward reads is an attribute, and there is no `get_reward`."""

    def __init__(self) -> None:
        self.reward = 0.0

    def reset(self, **kwargs: Any) -> str | None:
        self.reward = 0.0
        return None

    def echo(self, message: str) -> str:
        """
        Echo a message.

        Args:
            message: The message to echo

        Returns:
            The message.
        """
        self.reward = len(message) / 10
        return message


class WordServer:
    """A game whose answer is all that was said so far."""

    def __init__(self, word: str) -> None:
        self.word, self.said = word, "Guess the word.\n"

    def guess(self, word: str) -> tuple[str, float, bool]:
        marks = "".join(
            "G" if a == b else "Y" if a in self.word else "X" for a, b in zip(word, self.word, strict=False)
        )
        self.said += f"{word}\n{marks}\n"
        return self.said, float(word == self.word), word == self.word


class Wordle:
    """As its Wordle: `reset` returns a text, and a tool raises after the end of the game."""

    def reset(self, **kwargs: Any) -> str | None:
        self.server = WordServer("crane")
        self.said, self.reward, self.done = self.server.said, 0.0, False
        return self.said

    def guess(self, guess: str) -> str:
        """
        Guess a word.

        Args:
            guess: The word

        Returns:
            What the game says.
        """
        if self.done:
            raise ValueError("Game over.")
        said, self.reward, self.done = self.server.guess(guess)
        new, self.said = said[len(self.said) :], said
        return new


class Several:
    """As its multi_env: a column names the game, the tools of both are offered, and a game begins at random."""

    def __init__(self) -> None:
        self.active, self.reward, self.done = "", 0.0, False

    def reset(self, **kwargs: Any) -> str | None:
        self.active, self.reward, self.done = kwargs.get("env", "wordle"), 0.0, False
        if self.active == "wordle":
            self.server = WordServer("crane")
            return self.server.said
        self.ball, self.paddle = random.SystemRandom().randint(1, 3), 2  # a server's numbers know nothing of seeds
        return self._shown()

    def _shown(self) -> str:
        return f"Ball: column {self.ball}\nPaddle: column {self.paddle}"

    def guess(self, guess: str) -> str:
        """Guess a word.

        Args:
            guess: The word
        """
        if self.active != "wordle":
            raise ValueError("guess is only available in Wordle")
        said, self.reward, self.done = self.server.guess(guess)
        return said

    def move(self, direction: str) -> str:
        """Move the paddle.

        Args:
            direction: Either "left" or "right".
        """
        if self.active != "catch":
            raise ValueError("move is only available in Catch")
        self.paddle += 1 if direction == "right" else -1
        self.done, self.reward = True, float(self.paddle == self.ball)
        return self._shown()

    def stay(self) -> str:
        """Let the ball fall."""
        return self._shown()


def reward_func(environments: list[Any], **kwargs: Any) -> list[float]:
    """Return the rewards that environments keep in an attribute."""
    return [env.reward for env in environments]


def wordle_reward(environments: list[Several], **kwargs: Any) -> list[float | None]:
    """Return the rewards of the games of Wordle; None for other games."""
    return [env.reward if env.active == "wordle" else None for env in environments]


async def catch_reward(environments: list[Several], **kwargs: Any) -> list[float | None]:
    return [max(env.reward, 0.0) if env.active == "catch" else None for env in environments]


class Target:
    """As its IncrementEnv without a data set: `reset` draws the task and returns the prompt."""

    def reset(self, **kwargs: Any) -> str | None:
        self.counter, self.target = 0, random.randint(1, 6)
        return f"Increment the counter by {self.target}."

    def get_reward(self) -> float | None:
        return float(self.counter == self.target)

    def increment(self, step: int) -> int:
        """
        Increment the counter.

        Args:
            step: Value to add

        Returns:
            Its new value.
        """
        self.counter += step
        return self.counter


class Quiet(Target):
    """Judges nothing."""

    async def get_reward(self) -> float | None:  # type: ignore[override]
        return None


def make_target() -> Target:
    return Target()
