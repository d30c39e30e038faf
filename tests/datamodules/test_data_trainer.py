"""The module under Lightning's Trainer: tokenizer, position, resume, ranks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lit_rlvr.datamodules import Arithmetic
from lit_rlvr.datamodules.base import EvaluationData
from lit_rlvr.errors import UserError


class Reader(LightningModule):
    """Trains on nothing, remembers what it saw, and commits."""

    def __init__(self, tokenizer) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.tokenizer = tokenizer
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[str]] = []
        self.validated: list[str] = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch  # Lightning would copy its frozen dataclasses

    def training_step(self, batch, batch_idx):
        self.seen.append([prompt.sample.id for prompt in batch.prompts])
        self.optimizers().step()
        self.trainer.datamodule.commit(batch.cursor)

    def validation_step(self, batch, batch_idx):
        self.validated += [prompt.sample.id for prompt in batch.prompts]


def fit(tokenizer, tmp_path: Path, steps: int, ckpt: Path | None = None, **options) -> tuple[Reader, Trainer]:
    model, data = Reader(tokenizer), Arithmetic(low=1, high=5, prompts_per_rollout=4, **{"held_out": 3, **options})
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(model, datamodule=data, ckpt_path=str(ckpt) if ckpt else None)
    return model, trainer


@pytest.mark.parametrize("stop", [2, 5, 7])
def test_a_resumed_fit_sees_the_prompts_of_the_uninterrupted_one(chat_tokenizer, tmp_path, stop):
    whole, _ = fit(chat_tokenizer, tmp_path, 13)  # 22 prompts, 5 steps an epoch
    head, trainer = fit(chat_tokenizer, tmp_path, stop)
    trainer.save_checkpoint(tmp_path / "stop.ckpt")
    tail, _ = fit(chat_tokenizer, tmp_path, 13, tmp_path / "stop.ckpt")
    assert head.seen + tail.seen == whole.seen and len(whole.seen) == 13
    assert len(whole.validated) % 3 == 0 and set(whole.validated) == set(whole.validated[:3])


def test_no_validation_set_is_no_validation(chat_tokenizer, tmp_path):
    model, _ = fit(chat_tokenizer, tmp_path, 8, held_out=0)
    assert len(model.seen) == 8 and model.validated == []


def test_ranks_come_from_the_trainer(chat_tokenizer):
    def batches(rank: int, world: int) -> tuple[list[str], list[str]]:
        data = Arithmetic(prompts_per_rollout=8, evaluation=EvaluationData(prompts_per_batch=8))
        model = SimpleNamespace(tokenizer=chat_tokenizer)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world, lightning_module=model, callbacks=[])  # type: ignore
        data.setup("fit")
        train, val = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()[0]))
        return [p.sample.id for p in train.prompts], [p.sample.id for p in val.prompts]

    (train, val), (train0, val0), (train1, val1) = batches(0, 1), batches(0, 2), batches(1, 2)
    assert (train0 + train1, sorted(val0 + val1), val0) == (train, sorted(val), val[::2])
    with pytest.raises(UserError, match="prompts_per_rollout=8 is not divisible by the 3 processes"):
        batches(0, 3)
