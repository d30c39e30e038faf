"""Sums and gathers on a GPU-only backend: it never gets a tensor that NCCL would refuse."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers.modeling_layers import GradientCheckpointingLayer
from two_ranks import in_two_ranks

from lit_rlvr.distributed import collectives
from lit_rlvr.distributed.collectives import (
    all_max,
    all_sum,
    average_gradients,
    broadcast_first,
    gather_objects,
    gather_rows,
    leave_out_of_buckets,
)
from lit_rlvr.distributed.sharding import full_tensor, gathered, reduce_over_copies, shard


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The devices of tensors that the backend of two ranks receives; like NCCL, it refuses CPU tensors."""
    devices: list[str] = []

    def refuse(*tensors: Tensor) -> None:
        for tensor in tensors:
            devices.append(tensor.device.type)
            assert tensor.is_cuda, "No backend type associated with device type cpu"

    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    monkeypatch.setattr(collectives.dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(collectives.dist, "all_reduce", lambda tensor, **_: refuse(tensor))
    monkeypatch.setattr(collectives.dist, "all_gather", lambda parts, tensor: refuse(tensor, *parts))
    with FakeTensorMode():  # GPU tensors without a GPU
        yield devices


@pytest.mark.parametrize("collective", [all_sum, gather_rows])
@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_tensors_go_to_the_backends_device_and_back(
    seen: list[str], collective: Callable[[Tensor], Tensor], device: str
) -> None:
    assert collective(torch.ones(3, 2, device=device)).device == torch.device(device) and set(seen) == {"cuda"}


def test_a_number_goes_there_too(seen: list[str]) -> None:
    with pytest.raises(RuntimeError):  # a fake tensor has no value
        all_max(3, torch.device("cpu"))
    assert seen == ["cuda"]


def _rank_averages_without_buckets(rank: int) -> None:
    torch.manual_seed(rank)  # ranks begin with other values
    module = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 1))
    module[0].bias.requires_grad_(False)
    leave_out_of_buckets(module)
    broadcast_first(module.parameters())
    wrapped = DistributedDataParallel(module)
    wrapped(torch.ones(1, 300)).sum().backward()  # the others have no hook of DDP's
    assert wrapped._get_ddp_logging_data()["bucket_sizes"] == "4", "the last bias alone"
    assert len(set(gather_objects(float(sum(p.sum() for p in module.parameters()))))) == 1
    trained = [p for p in module.parameters() if p.requires_grad]
    wanted = [torch.stack(gather_objects(p.grad)).mean(0) for p in trained]  # type: ignore[arg-type]
    average_gradients(trained)
    for parameter, mean in zip(trained, wanted, strict=True):
        torch.testing.assert_close(parameter.grad, mean)


def test_gradients_have_no_second_copy_in_ddps_buckets(tmp_path: Path) -> None:
    in_two_ranks(tmp_path, _rank_averages_without_buckets)


class Layer(GradientCheckpointingLayer):
    """A layer that has shards of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, values: Tensor) -> Tensor:
        return torch.tanh(self.linear(values))


class Network(nn.Module):
    """A layer, and parameters outside it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer()
        self.head = nn.Linear(4, 1)

    def forward(self, values: Tensor) -> Tensor:
        return self.head(self.layer(values))

    def score(self, values: Tensor) -> Tensor:
        return self.head(self.layer(values))


def _rank_keeps_parameters_for_the_backward_pass(rank: int) -> None:
    torch.manual_seed(0)
    alone = Network()
    model = copy.deepcopy(alone)
    shard(model, DeviceMesh("cpu", torch.arange(2)), ["score"])

    def whole() -> list[str]:
        return [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]

    batches = [torch.arange(4.0).view(1, 4) + k for k in range(2)]
    with torch.no_grad():
        wanted = alone(batches[rank])
        for run in (model, model.score):
            torch.testing.assert_close(run(batches[rank]), wanted)
            assert whole() == [], "nothing else would free them"
        with gathered(model):
            model(batches[rank])
            assert len(whole()) == 4
        assert whole() == []
    for _ in range(2):
        loss = model(batches[rank]).square().sum()
        assert whole() == ["head.weight", "head.bias"]
        loss.backward()
        assert whole() == []
    torch.stack([alone(batch).square().sum() for batch in batches]).mean().backward()
    for parameter, expected in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(full_tensor(parameter.grad), 2 * expected.grad)  # type: ignore[arg-type, operator]


def test_parameters_outside_layers_are_gathered_once_for_both_passes(tmp_path: Path) -> None:
    in_two_ranks(tmp_path, _rank_keeps_parameters_for_the_backward_pass)


def _rank_checks_copies(rank: int) -> None:
    """Two copies of a model, each on one rank: the gradients of three micro-batches are summed over them once."""
    reduced: list[int] = []
    original = dist.all_reduce

    def counting(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        reduced.append(tensor.numel())
        return original(tensor, *args, **kwargs)

    mesh = DeviceMesh("cpu", torch.arange(2).view(2, 1), mesh_dim_names=("copies", "shards"))
    gradients, counts = [], []
    for deferred in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        shard(model, mesh)
        reduced.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dist, "all_reduce", counting)
            for k in range(3):
                reduce_over_copies(model, now=k == 2 or not deferred)
                model(torch.full((1, 3), float(rank + k + 1))).square().sum().backward()
        counts.append(len(reduced))
        gradients.append([full_tensor(parameter.grad) for parameter in model.parameters()])  # type: ignore[arg-type]
    assert counts[1] > 0 and counts[0] == 3 * counts[1], counts
    for now, later in zip(*gradients, strict=True):
        torch.testing.assert_close(now, later)


def test_gradients_are_summed_over_copies_once_per_step(tmp_path: Path) -> None:
    in_two_ranks(tmp_path, _rank_checks_copies)
