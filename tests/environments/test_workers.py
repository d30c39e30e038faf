"""Episodes in worker processes: faults affect one completion, and lost episodes are played again."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_environments import Dice, Faulty

from lit_rlvr.environments.base import Environment
from lit_rlvr.environments.episode import EpisodeWorkers
from lit_rlvr.errors import UserError
from lit_rlvr.types import Sample, Turn
from lit_rlvr.workers.process import Isolation, Outcome

LIMITS = Isolation(cpu_seconds=1.0, wall_seconds=60.0, memory_mb=1024)
BRIEF = replace(LIMITS, wall_seconds=3.0)
SAMPLE = Sample("a", "?", "12")


class Playing:
    """Plays episodes by hand."""

    def __init__(self, environment: Environment, workers: int = 2) -> None:
        self.workers = EpisodeWorkers(environment, workers)
        self.turns: dict[int, list[Turn]] = {}

    def say(self, **texts: str) -> dict[int, Outcome]:
        """Give episodes (e0, e1, ...) a turn each; the outcomes by number."""
        for name, text in texts.items():
            number = int(name[1:])
            self.turns.setdefault(number, []).append(Turn(text))
            self.workers.call(number, 5, SAMPLE, tuple(self.turns[number]))
        found: dict[int, Outcome] = {}
        while len(found) < len(texts):
            found |= dict(self.workers.outcomes(1))
        return found


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Any]:
    made: list[Playing] = []

    def make(environment: Environment | None = None, workers: int = 2) -> Playing:
        made.append(Playing(environment or Faulty(str(tmp_path / "mark"), limits=LIMITS), workers))
        return made[-1]

    yield make
    for playing in made:
        playing.workers.close()


def text(outcome: Outcome) -> str:
    assert outcome.status == "ok", outcome
    return outcome.value.observation.text


def test_episodes_keep_their_state(play: Any) -> None:
    playing = play()
    for turn in (1, 2, 3):
        assert {text(outcome) for outcome in playing.say(e0="go", e1="go", e2="go", e3="go").values()} == {
            f"turn {turn}"
        }
    done = playing.say(e4="go")[4].value
    assert done.outcome is None and not done.observation.done


def test_the_reward_comes_with_the_end(play: Any) -> None:
    playing = play()
    outcomes = [playing.say(e0="go")[0].value for _ in range(3)]
    assert [reply.outcome and reply.outcome.value for reply in outcomes] == [None, None, 1.5]
    assert outcomes[-1].outcome.correct is False, "only the value 1 is right"


@pytest.mark.first_case_fast
@pytest.mark.parametrize(
    ("fault", "status", "detail"),
    [
        ("raise", "error", "ValueError: this environment is broken"),
        ("nothing", "error", "step must return an Observation"),
        pytest.param("hang", "timeout", "out of wall-clock time", marks=pytest.mark.slow),
        ("spin", "timeout", "out of CPU time"),
        ("die", "error", "died twice: exit code 7"),
        ("exit", "error", "RuntimeError: SystemExit: 3"),
        ("leak", "timeout", "MemoryError"),
    ],
)
def test_a_fault_is_that_completions_alone(play: Any, fault: str, status: str, detail: str) -> None:
    """Episodes 0 and 2 live in the worker that it ends, 1 in the other."""
    playing = play(Faulty(limits=BRIEF)) if fault == "hang" else play()
    playing.say(e0="go", e1="go", e2="go")
    found = playing.say(e0=fault, e1="go", e2="go")
    assert found[0].status == status and detail in found[0].detail
    assert text(found[1]) == text(found[2]) == "turn 2", "played again in a new worker"
    assert {text(outcome) for outcome in playing.say(e1="go", e2="go").values()} == {"turn 3"}


@pytest.mark.slow
def test_limits_hold_for_each_call_also_in_a_replay(play: Any) -> None:
    """Five turns of 0.4 s of CPU time, of which each may take 1 s."""
    playing = play()
    for _ in range(4):
        playing.say(e0="work")
    playing.say(e2="die")
    assert text(playing.say(e0="work")[0]) == "turn 5"


def test_a_strange_character_is_replaced(play: Any) -> None:
    assert text(play().say(e0="strange")[0]) == "file ? name"


def test_an_error_in_the_configuration_ends_the_run(play: Any) -> None:
    playing = play()
    with pytest.raises(UserError, match="no such table"):
        playing.say(e0="config")


def test_a_worker_that_dies_once_changes_nothing(play: Any) -> None:
    playing = play()
    playing.say(e0="go")
    assert text(playing.say(e0="once")[0]) == "turn 2"


def test_a_replay_draws_the_same_numbers(play: Any) -> None:
    one, other = play(Dice()), play(Dice(), workers=3)
    first = [text(one.say(e0=t)[0]) for t in "ab"]
    again = [text(other.say(e0="a")[0])]
    other.workers.close()  # loses the episode
    again.append(text(other.say(e0="b")[0]))
    assert first == again and first[0] != first[1]
