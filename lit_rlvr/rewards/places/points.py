"""The reward of points that lie in the reference's boxes or masks, or near its points."""

from __future__ import annotations

from typing import Any

import numpy as np

from lit_rlvr.common.arguments import check_within
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.places.base import PlacesReward, as_places
from lit_rlvr.rewards.places.geometry import distance_to, match
from lit_rlvr.rewards.places.text import answer_text, find_points
from lit_rlvr.types import Completion, RewardResult, Sample


class Points(PlacesReward):
    """A reward of 1 for a point in the reference; it reports `correct`.

    A reference of two numbers is a point, of four a box (x1, y1, x2, y2), of six or more the polygon of a mask. Several
    points and references are matched so that the sum is largest, which is divided by the larger of their numbers.
    Without points, the centres of a text's boxes count. Status "parse_fail" means that there is neither.

    Args:
        radius: how far from a reference that is a point a point is still right, as a share of the image's diagonal.
        falloff: how far outside a point still earns something, less the farther it is, as a share of the diagonal.
        kwargs: `reference`, `written`, `y_first`, `layout` and `column` of all places, and the options of every reward.

    Raises:
        UserError: scipy is not installed, or a distance is negative.
    """

    def __init__(self, radius: float = 0.02, falloff: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_within("[0, inf)", "rewards.Points", radius=radius, falloff=falloff)
        self.radius = radius
        self.falloff = falloff

    def targets(self, sample: Sample) -> list[np.ndarray]:
        targets = []
        for numbers in self.numbers(sample):
            if len(numbers) % 2:
                raise UserError(
                    f"{sample.source or sample.id}: the reference {numbers} is neither a point of two numbers, nor a "
                    "box of four, nor a polygon of pairs"
                )
            targets.append(self.as_fractions(numbers, sample))
        return targets

    def gold_completion(self, sample: Sample) -> str | None:
        return str([self.to_model(target.mean(0, keepdims=True), sample) for target in self.targets(sample)])

    def __call__(self, completion: Completion, sample: Sample) -> RewardResult:
        found = find_points(answer_text(completion))
        targets = self.targets(sample)
        answers = []
        for numbers in found:
            answers.append(self.from_model(numbers, sample))
        places = as_places(targets, answers)
        if not found:
            return RewardResult(0.0, False, "parse_fail", "no point", places=places)
        sides = np.array(sample.coordinates[0].file if sample.coordinates else (1, 1), float)
        sides = sides / np.hypot(*sides)  # the diagonal is 1
        points = []
        for answer in answers:
            points.append(answer[0] * sides)
        scaled = [target * sides for target in targets]
        outside = np.array([[self._outside(point, target) for target in scaled] for point in points])
        scores = (outside == 0).astype(float)
        if self.falloff:
            scores = (1 - outside / self.falloff).clip(min=0)
        matched = match(scores)
        most = max(outside.shape)
        right = int((outside[matched] == 0).sum())
        return RewardResult(float(scores[matched].sum()) / most, right == most, "ok", str(found), places=places)

    def _outside(self, point: np.ndarray, target: np.ndarray) -> float:
        distance = distance_to(point, target)
        if len(target) == 1:
            return max(0.0, distance - self.radius)
        return distance
