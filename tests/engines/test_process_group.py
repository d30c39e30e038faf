"""An engine's process groups do not affect the trainer's."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lit_rlvr.engines.process_group import VLLMProcessGroup, separate_cache


def begin() -> None:
    """A world of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


@pytest.fixture
def trainers() -> Iterator[None]:
    """A trainer's world, destroyed afterwards."""
    world = VLLMProcessGroup()
    world._count = 0
    with world.inside():
        begin()
        yield
    with world.ending():
        pass


def test_an_engine_is_started_and_ended_twice_next_to_the_trainers_groups(trainers: None) -> None:
    """Like vLLM, an engine destroys the default group, if there is one, when it ends."""
    world, own, hook, counted = VLLMProcessGroup(), dist.group.WORLD, sys.excepthook, dist.new_group([0])
    for _ in range(2):
        with world.inside():
            assert not dist.is_initialized()
            begin()
            group = dist.new_group([0])
            assert dist.group.WORLD is not own
        assert dist.group.WORLD is own and sys.excepthook is hook
        dist.all_reduce(torch.ones(1), group=group)
        with world.ending():
            dist.destroy_process_group(group)
            assert not dist.is_initialized()
        assert dist.group.WORLD is own
    dist.all_reduce(torch.ones(1), group=counted)
    names = [int(group.group_name) for group in (own, counted, dist.new_group([0]))]
    assert names == [0, 1, 2], "other processes, whose engines were not started anew, count the same"


def test_an_engine_that_fails_to_start_leaves_the_trainers_world(trainers: None) -> None:
    world, own = VLLMProcessGroup(), dist.group.WORLD
    with pytest.raises(OSError, match="no such device"), world.inside():
        begin()
        raise OSError("no such device")
    assert dist.group.WORLD is own
    with world.inside():
        assert dist.is_initialized(), "it goes on with what it had made"
    with world.ending():
        pass


@pytest.mark.slow
def test_vllm_on_each_device_of_a_machine_has_its_own_cache(tmp_path: Path, environment: None) -> None:
    """Where vLLM keeps compiled kernels: all ranks are its rank 0, so nothing else tells their folders apart."""
    found = set()
    for device in (0, 1):
        for visible in ("", "4,5"):
            os.environ |= {"VLLM_CACHE_ROOT": str(tmp_path), "CUDA_VISIBLE_DEVICES": visible}
            separate_cache(device)
            separate_cache(device)  # an engine that starts again
            found.add(os.environ["VLLM_CACHE_ROOT"])
    assert len(found) == 4 and {Path(path).parent for path in found} == {tmp_path}
