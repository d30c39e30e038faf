"""How many examples a fuzz test draws: a few in `make test-slow`, FUZZ times as many with FUZZ=20."""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings

FACTOR = int(os.environ.get("FUZZ", "1"))


def examples(count: int) -> Callable[..., Any]:
    """So many examples, the same in every run; shown as they are, for shrinking one would run commands many times."""
    return settings(
        max_examples=count * FACTOR,
        deadline=None,
        phases=[Phase.generate],
        derandomize=FACTOR == 1,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )
