"""Overlaps of boxes, distances of points, and the best matching of predictions and references."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def box_areas(boxes: Array) -> Array:
    """Return the areas (N,) of boxes (N, 4) as x1, y1, x2, y2; 0 where a side is not positive."""
    sides = (boxes[:, 2:] - boxes[:, :2]).clip(min=0)  # (N, 2)
    return np.asarray(sides.prod(1))


def box_overlaps(boxes: Array, others: Array, generalised: bool = False) -> Array:
    """Return the intersection over union (N, M) of boxes (N, 4) and others (M, 4).

    Args:
        boxes: x1, y1, x2, y2 each.
        others: boxes that have an area.
        generalised: GIoU (Rezatofighi et al. 2019), from -1 to 1, which tells near from far where nothing overlaps.
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])  # (N, M, 2)
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clip(min=0).prod(2)  # (N, M)
    union = box_areas(boxes)[:, None] + box_areas(others)[None] - shared
    overlaps: Array = shared / union
    if not generalised:
        return overlaps
    corner = np.minimum(boxes[:, None, :2], others[None, :, :2])
    opposite = np.maximum(boxes[:, None, 2:], others[None, :, 2:])
    hull = (opposite - corner).prod(2)
    return overlaps - (hull - union) / hull


def match(scores: Array) -> tuple[Array, Array]:
    """Return the rows and columns of the matching with the largest sum of scores (N, M), by the Hungarian algorithm."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(scores, maximize=True)
    return rows, columns


def distance_to(point: Array, target: Array) -> float:
    """Return the distance of a point (2,) from a point, the corners of a box or a polygon (K, 2); 0 inside."""
    if len(target) == 2:
        low, high = target
        return float(np.hypot(*np.maximum(np.maximum(low - point, point - high), 0)))
    after = np.roll(target, -1, axis=0)
    if is_inside(point, target, after):
        return 0.0
    along = after - target  # (K, 2)
    lengths = (along**2).sum(1)
    shares = np.divide(((point - target) * along).sum(1), lengths, out=np.zeros_like(lengths), where=lengths > 0)
    nearest = target + shares.clip(0, 1)[:, None] * along
    return float(np.hypot(*(nearest - point).T).min())


def is_inside(point: Array, corners: Array, after: Array) -> bool:
    """Return whether a ray from a point (2,) crosses the sides of a polygon, from corners to `after`, an odd number of
    times."""
    crosses = (corners[:, 1] > point[1]) != (after[:, 1] > point[1])
    heights = np.where(crosses, after[:, 1] - corners[:, 1], 1.0)
    x = corners[:, 0] + (point[1] - corners[:, 1]) * (after[:, 0] - corners[:, 0]) / heights
    return bool((crosses & (point[0] < x)).sum() % 2)
