"""A kit to check a loss or an advantage of anybody's, which needs numpy and torch alone.

It owns frozen batches with what each published method must give on them, and the properties that every loss must have.
`lit-rlvr check` and `lit-rlvr parity` call it. `python -m lit_rlvr.conformance --loss my_module:my_loss` runs it on a
plain function; docs/conformance.md says how.
"""

from lit_rlvr.conformance import batches, properties
from lit_rlvr.conformance.batches import Batch
from lit_rlvr.conformance.properties import Finding, Step, loss_and_gradient, replay_step

__all__ = ["Batch", "Finding", "Step", "batches", "loss_and_gradient", "properties", "replay_step"]
