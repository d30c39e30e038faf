"""Shards on the CPU of a machine with a made-up GPU: what is passed to torch, and which device is whose."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from tiny_runs import FIT
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

from lit_rlvr.algorithms import GRPO
from lit_rlvr.distributed import sharding
from lit_rlvr.distributed.fsdp2 import FSDP2, extend_timeouts, prepare_groups, set_timeouts
from lit_rlvr.distributed.sharding import device_of, find_shard, full_tensor, shard
from lit_rlvr.engines.process_group import VLLMProcessGroup
from lit_rlvr.engines.transfer.nccl import RepeatedWeights
from lit_rlvr.errors import UserError
from lit_rlvr.plan import RunPlan
from lit_rlvr.training.module import RLVRModule

CLI = Callable[..., Any]


@pytest.mark.parametrize(
    ("device", "offload", "policy"),
    [("cuda", True, CPUOffloadPolicy()), ("cpu", True, CPUOffloadPolicy(pin_memory=False)), ("cuda", False, None)],
)
def test_torch_gets_the_policy(
    device: str, offload: bool, policy: OffloadPolicy | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[OffloadPolicy] = []
    monkeypatch.setattr(sharding, "_fill", lambda module, device: None)
    monkeypatch.setattr(sharding, "fully_shard", lambda module, **options: seen.append(options["offload_policy"]))
    shard(nn.Linear(2, 2), SimpleNamespace(device_type=device), offload=offload)  # type: ignore[arg-type]
    assert [vars(given) for given in seen] == [vars(policy or OffloadPolicy())]
    assert type(seen[0]) is type(policy or OffloadPolicy())


@pytest.fixture
def offloaded(fake_world: None) -> Callable[[str], nn.Linear]:
    """Makes a layer whose weight is a shard on the CPU, of a mesh of one device of some type."""

    def make(device: str) -> nn.Linear:
        layer = nn.Linear(2, 2)
        mesh = DeviceMesh(device, [0], _init_backend=False, _rank=0)
        spec = DTensorSpec(mesh, (Shard(0),), TensorMeta(layer.weight.shape, (2, 1), torch.float32))
        layer.weight = nn.Parameter(DTensor(layer.weight.detach(), spec, requires_grad=False))
        assert layer.weight.device.type == "cpu"
        return layer

    return make


def test_a_layer_computes_on_the_gpu_while_its_shard_is_on_the_cpu(
    offloaded: Callable[[str], nn.Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert device_of(offloaded("cuda")) == torch.device("cuda", 3)


def test_nccl_is_told_shapes_without_gathering(offloaded: Callable[[str], nn.Linear]) -> None:
    layer = offloaded("cuda")  # there is none, so gathering fails
    source = RepeatedWeights()
    source.set(lambda everything: [(n, full_tensor(w.detach())) for n, w in layer.named_parameters()], torch.bfloat16)
    told = [(meta.name, meta.dtype, meta.shape) for meta in source.metadata()]
    assert told == [("weight", torch.bfloat16, (2, 2)), ("bias", torch.bfloat16, (2,))]
    assert torch.equal(full_tensor(layer.bias), layer.bias), "only within the metadata"


def test_shards_in_the_state_of_a_term_are_refused(
    offloaded: Callable[[str], nn.Linear], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process's alone would be saved."""
    monkeypatch.setattr(FSDP2, "broadcast", lambda self, value: value)
    shard = offloaded("cuda").weight.detach()
    parts = {"reference": {"weights": None}, "teachers": {}, "terms": {"Mine 0": {"means": [1, {"of": shard}]}}}
    checkpoint = {"optimizer_states": [{"state": {}}], "state_dict": {}, "rlvr": parts}
    with pytest.raises(UserError, match=r"^checkpoint: rlvr\.terms\.Mine 0\.means\.1\.of is a shard of a tensor"):
        FSDP2().save_checkpoint(checkpoint, tmp_path / "1.ckpt")
    assert not (tmp_path / "1.ckpt").exists()
    assert find_shard(shard) == "" and find_shard({"full": torch.ones(2), "more": (1, [])}) is None


def test_all_but_the_policy_moves_to_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.policy, self.other = nn.Linear(2, 2), nn.Linear(2, 2)

    strategy, module = FSDP2(offload=True), Module()
    monkeypatch.setattr(FSDP2, "root_device", torch.device("meta"))
    strategy._lightning_module = module
    strategy.model_to_device()
    assert module.policy.weight.device.type == "cpu" and module.other.weight.device.type == "meta"
    assert module.device == torch.device("meta")
    assert [name for name, _ in module.named_children()] == ["policy", "other"]


@pytest.mark.parametrize(("sharded", "wanted"), [(True, "cpu"), (False, "meta")])
def test_a_reference_stays_where_its_shards_are(sharded: bool, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = GRPO()
    plan = RunPlan(device=torch.device("meta"), strategy=FSDP2() if sharded else None)
    monkeypatch.setattr(RLVRModule, "plan", plan)
    for check in ("check_spans", "try_flash_attention_3"):  # they need a policy
        monkeypatch.setattr(f"lit_rlvr.training.models.{check}", lambda *_: None)
    module.reference.policy = nn.Linear(2, 2)
    module.on_fit_start()
    assert module.reference.policy.weight.device.type == wanted


@pytest.mark.parametrize("kind", [FSDP2, DDPStrategy])
def test_groups_on_gpus_take_cpu_tensors(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL takes GPU tensors only: sums over offloaded shards would fail, and rollouts pass through GPU memory."""
    for device, given, wanted in (("cuda", None, "cpu:gloo,cuda:nccl"), ("cuda", "nccl", "nccl"), ("cpu", None, None)):
        monkeypatch.setattr(kind, "root_device", torch.device(device))
        strategy = kind(process_group_backend=given)
        prepare_groups(strategy)
        assert strategy.process_group_backend == wanted


def test_all_groups_wait_for_ranks_that_still_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch gives those of copies and shards NCCL's 10 minutes, and all others 30."""
    world, strategy = VLLMProcessGroup(first=1 << 29), FSDP2()  # its groups are never destroyed
    monkeypatch.setattr(FSDP2, "root_device", torch.device("cpu"))
    monkeypatch.setattr(FSDP2, "num_processes", 1)

    def mesh(self: Any) -> None:
        self._device_mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))

    monkeypatch.setattr(ModelParallelStrategy, "setup_environment", mesh)
    with world.inside():
        dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
        strategy.setup_environment()
        groups = [dist.group.WORLD, *strategy.device_mesh.get_all_groups()]

        def timeouts() -> list[timedelta]:
            return [group._get_backend(torch.device("cpu")).options._timeout for group in groups]

        chosen, strategy._timeout = strategy._timeout, timedelta(seconds=9)
        extend_timeouts(strategy)
        assert len(groups) == 3 and max(timeouts()) < timedelta(hours=1), "the user's choice stays"
        strategy._timeout = chosen
        extend_timeouts(strategy)
        assert min(timeouts()) >= timedelta(hours=2)
    with world.ending():
        pass


class MadeUpBackend:
    """A backend of a process group that keeps the timeout that it is given."""

    timeout = timedelta()

    def __init__(self, name: str) -> None:
        self.name = lambda: name

    def _set_default_timeout(self, timeout: timedelta) -> None:
        self.timeout = timeout


@pytest.mark.parametrize(("of_cpu", "of_cuda"), [("gloo", "nccl"), ("", "nccl"), ("gloo", "gloo")])
def test_a_lost_process_is_not_waited_for_in_nccl_for_hours(of_cpu: str, of_cuda: str) -> None:
    """NCCL alone also exchanges what processes wait for while others generate."""
    named = {"cpu": of_cpu, "cuda": of_cuda}
    kinds = {device: MadeUpBackend(name) for device, name in named.items() if name}
    shards = {"cuda": MadeUpBackend(of_cuda)}
    world, mesh = (
        SimpleNamespace(
            _device_types=[torch.device(kind) for kind in backends],
            _get_backend=lambda device, backends=backends: backends[device.type],
        )
        for backends in (kinds, shards)
    )
    set_timeouts([world, mesh])
    waits = {device: backend.timeout for device, backend in kinds.items()}
    if (of_cpu, of_cuda) == ("gloo", "nccl"):
        assert waits["cpu"] == timedelta(hours=6)
        assert timedelta(minutes=30) < waits["cuda"] == shards["cuda"].timeout < timedelta(hours=1)
    else:
        assert {*waits.values(), shards["cuda"].timeout} == {timedelta(hours=6)}


def test_on_a_cpu_it_is_refused(run_folder: Path, lit_rlvr: CLI) -> None:
    lit_rlvr(
        *FIT,
        "--config",
        "strategy/fsdp2_cpu",
        "--trainer.devices",
        "1",
        "--trainer.strategy.init_args.offload",
        "true",
        status=2,
        says="trainer.strategy.offload: the weights are on the CPU already; leave it off",
    )
