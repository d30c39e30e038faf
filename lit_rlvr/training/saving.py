"""Checkpoints: what a run saves besides weights and optimizer, by its parts, and what it checks when it goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lit_rlvr.advantages import Advantage
from lit_rlvr.common.init_arguments import dotted_path_of
from lit_rlvr.distributed.checkpoints import check_identity, run_identity
from lit_rlvr.policy.adapters import is_saved
from lit_rlvr.training.adaptive_lr import AdaptiveLR
from lit_rlvr.training.failures import SkippedSteps, UnrewardedRollouts
from lit_rlvr.training.loading import LoadedModule
from lit_rlvr.training.noise_scale import NoiseScale
from lit_rlvr.training.terms import Term


class SavedModule(LoadedModule):
    """Saves and restores the state of a run; `RLVRModule` has the parts."""

    advantage: Advantage
    iteration: int
    skipped: SkippedSteps
    unrewarded: UnrewardedRollouts
    noise_scale: NoiseScale
    adaptive_lr: AdaptiveLR | None
    _build_optimizer: Callable[[], Any]
    _saved_options: dict[str, Any]  # the optimizer's when the checkpoint was written
    _saved_lr: dict[str, float]  # the adaptive learning rate's

    @property
    def trained(self) -> list[str]:
        """The names of the parameters in the optimizer, in its order."""
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    @property
    def saved(self) -> list[str]:
        """The names of the parameters of adapters that a checkpoint holds."""
        return [name for name, _ in self.named_parameters() if is_saved(name)]

    def _identity(self) -> dict[str, str]:
        identity = run_identity(self.data, self, self.advantage, self.policy)
        if self.trainer.state.fn == "fit":
            # The trainer's own is made after a checkpoint is loaded.
            identity["optimizer"] = dotted_path_of(type(self._build_optimizer()))
        return identity

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of a different kind of run, before shapes could clash.

        Raises:
            UserError: names what differs.
        """
        check_identity(self._identity(), checkpoint["rlvr"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rlvr"] = self._identity() | {
            "iteration": self.iteration,
            "updates": self.updates,
            "optimizer_options": self.trainer.optimizers[0].defaults,
            "skipped": self.skipped.state_dict(),
            "unjudged": self.unrewarded.state_dict(),
            "noise_scale": self.noise_scale.state_dict(),
            "tokens": self.budget.state_dict(),
            "advantage_state": self.advantage.state_dict(),
            "reference": self.reference.state_dict(),
            "teachers": {label: teacher.state_dict() for label, teacher in self.teachers.averaged.items()},
            "terms": {name: state for name, term in self._named_terms() if (state := term.state_dict())},
            "model_folder": self.model_folder,
            "lr": {} if self.adaptive_lr is None else self.adaptive_lr.state_dict(),
        }
        if self.lora is not None:
            weights = checkpoint["state_dict"]
            saved = set(self.saved)
            checkpoint["state_dict"] = {name: value for name, value in weights.items() if name in saved}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_checkpoint(checkpoint)
        saved = checkpoint["rlvr"]
        self.iteration = saved["iteration"]
        self.updates = saved["updates"]
        self._saved_options = saved.get("optimizer_options", {})
        self._saved_lr = saved.get("lr", {})
        self.skipped.load_state_dict(saved["skipped"])
        self.unrewarded.load_state_dict(saved.get("unjudged", self.unrewarded.state_dict()))
        self.noise_scale.load_state_dict(saved.get("noise_scale", {}))
        self.budget.load_state_dict(saved["tokens"])
        self.advantage.load_state_dict(saved["advantage_state"])
        self.reference.load_state_dict(saved["reference"])
        for label, teacher in self.teachers.averaged.items():
            if label in saved.get("teachers", {}):  # else it averages from the initial weights on
                teacher.load_state_dict(saved["teachers"][label])
        for name, term in self._named_terms():
            if name in saved.get("terms", {}):  # else it is new to the run
                term.load_state_dict(saved["terms"][name])

    def _named_terms(self) -> list[tuple[str, Term]]:
        """Return the terms, each with its class and its number among those of that class."""
        kinds = [type(term).__name__ for term in self.terms]
        return [(f"{kind} {kinds[:n].count(kind)}", self.terms[n]) for n, kind in enumerate(kinds)]
