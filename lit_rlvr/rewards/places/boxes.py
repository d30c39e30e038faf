"""The reward of boxes that overlap with the reference's."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from lit_rlvr.common.arguments import check_within
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.places.base import PlacesReward, as_places
from lit_rlvr.rewards.places.geometry import box_overlaps, match
from lit_rlvr.rewards.places.text import answer_text, find_boxes
from lit_rlvr.types import Completion, RewardResult, Sample


class Boxes(PlacesReward):
    """A reward of the overlap of a text's boxes with the reference's; it reports `correct`.

    Boxes and references are matched so that the sum of their overlaps is largest. The value is this sum over the
    number of boxes or of references, whichever is larger, so that a missing box and one too many both cost. A text is
    correct if it has as many boxes as references and each overlaps its own by `threshold`. Among the criteria are
    precision and recall at the threshold, and the mean IoU of the references. Status "parse_fail" means no box.

    Args:
        threshold: the IoU from which on a box is right.
        overlap: iou, or giou, which also tells near from far boxes that do not overlap, and may be negative.
        kwargs: `reference`, `written`, `y_first`, `layout` and `column` of all places, and the options of every reward.

    Raises:
        UserError: scipy is not installed, or the threshold is not above 0 and at most 1.
    """

    def __init__(
        self,
        threshold: float = 0.5,
        overlap: Literal["iou", "giou"] = "iou",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_within("(0, 1]", "rewards.Boxes", threshold=threshold)
        self.threshold = threshold
        self.overlap = overlap

    def targets(self, sample: Sample) -> list[np.ndarray]:
        boxes = []
        for numbers in self.numbers(sample):
            if len(numbers) != 4:
                raise UserError(
                    f"{sample.source or sample.id}: the reference {numbers} is no box of four numbers; rewards.Points "
                    "reads points and masks"
                )
            boxes.append(self.as_fractions(numbers, sample))
        return boxes

    def gold_completion(self, sample: Sample) -> str | None:
        return str([self.to_model(box, sample) for box in self.targets(sample)])

    def __call__(self, completion: Completion, sample: Sample) -> RewardResult:
        found = find_boxes(answer_text(completion))
        targets = self.targets(sample)
        answers = []
        for numbers in found:
            answers.append(self.from_model(numbers, sample))
        places = as_places(targets, answers)
        if not found:
            return RewardResult(0.0, False, "parse_fail", "no box", places=places)
        wanted = np.stack(targets).reshape(-1, 4)
        boxes = np.stack(answers).reshape(-1, 4)
        overlaps = box_overlaps(boxes, wanted)
        scores = overlaps
        if self.overlap == "giou":
            scores = box_overlaps(boxes, wanted, generalised=True)
        matched = match(scores)
        most = max(overlaps.shape)
        right = int((overlaps[matched] >= self.threshold).sum())
        criteria = {
            "precision": right / len(boxes),
            "recall": right / len(wanted),
            "iou": float(overlaps[matched].sum()) / len(wanted),
        }
        value = float(scores[matched].sum()) / most
        return RewardResult(value, right == most, "ok", str(found), criteria, places)
