"""Two ranks with half of a batch each are one process with all of it: what is taken over a batch is taken over all ranks."""

import another_process
import pytest
import torch
import torch.distributed as dist

from datamodules.experience import ActionSpace, ExperienceSpec
from lit_wm.dreamer import DreamerModule

SPEC = ExperienceSpec({"frames": (32, 32, 3)}, ActionSpace("discrete", (5,)))
TINY = {"deter": 32, "hidden": 8, "classes": 4, "depth": 2, "units": 8, "stages": 3}


def batch(rows=4, steps=5):
    g = torch.Generator().manual_seed(0)
    flags = {key: torch.zeros(rows, steps, dtype=torch.bool) for key in ("is_first", "is_last", "is_terminal")}
    flags["is_last"][1, 2] = flags["is_first"][1, 3] = True
    frames = torch.full((rows, steps, 3, 32, 32), 20, dtype=torch.uint8)
    frames[:2, :4, :, 4:8, 4:8] = 200  # dark in most pictures of all, but bright in most of the first rank's
    return flags | {
        "frames": frames,
        "action": torch.randint(0, 5, (rows, steps), generator=g),
        "reward": 3 * torch.randn(rows, steps, generator=g),
    }


def gradients(rank, ranks):
    """The gradients of an update without random draws, averaged over ranks, and the range of returns after it."""
    torch.manual_seed(0)
    model = DreamerModule(SPEC.to_dict(), size_overrides=TINY, foreground_weight=5.0, imagination_length=3).double()
    with torch.no_grad():
        for head in (model.reward, model.critic, model.slow_critic):
            head.out.weight.normal_(std=0.1)
    mine = {key: value.chunk(ranks)[rank] for key, value in batch().items()}
    post = model.train().filter(mine, sample=False)
    losses = model.world_model_losses(post, mine) | model.behavior_losses(post, mine, sample=False)[0]
    sum(value.mean() for value in losses.values()).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    if ranks > 1:
        for grad in grads:
            dist.all_reduce(grad)
    return [grad / ranks for grad in grads] + [model.normalizer.low, model.normalizer.high]


def differentiate_as(rank, address, path):
    """The gradients of one of two ranks; the first writes them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    result = gradients(rank, 2)
    if rank == 0:
        torch.save([x.detach() for x in result], path)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_are_one_process(tmp_path):
    store = f"file://{tmp_path / 'store'}"
    ranks = [another_process.start(differentiate_as, rank, store, tmp_path / "found.pt") for rank in (0, 1)]
    assert [another_process.exit_code(process) for process in ranks] == [0, 0]
    found, expected = torch.load(tmp_path / "found.pt"), gradients(0, 1)
    assert len(found) == len(expected) and expected[-1] > 0
    for one, both in zip(expected, found, strict=True):
        torch.testing.assert_close(both, one, rtol=1e-6, atol=1e-9)
