"""Two ranks with half of a batch each are one process with all of it: weights and codebooks, their start and restarts included."""

import another_process
import pytest
import torch
import torch.distributed as dist

from datamodules.experience import ActionSpace, ExperienceSpec
from lit_wm.genie import GenieModule

SPEC = ExperienceSpec({"frames": (16, 16, 3)}, ActionSpace("discrete", (5,)))
CODER = {"patch": 4, "dim": 16, "heads": 2, "ffn": 16, "encoder_blocks": 1, "decoder_blocks": 1, "latent_dim": 4}
# a share of 0.87 lies between whole numbers of vectors: rounding does not decide which codes are unused
CODER |= {"codebook": "ema", "kmeans_start": True, "restart_below": 0.87, "decay": 0.5, "continuous_warmup": 1}
PARTS = {
    "tokenizer": {"codes": 24, "foreground_weight": 5.0},
    "lam": {"codes": 6, "stem": "convolution", "pool": "max", "changed_weight": 5.0},
}
UPDATES = 4


def batch(step, rows=6, t=5):  # 30 frames: no pixel lies 0.05 from their mean, where rounding would decide
    g = torch.Generator().manual_seed(step)
    frames = torch.randint(0, 80, (rows, t, 3, 16, 16), dtype=torch.uint8, generator=g)  # no two patches alike
    for row in range(rows):
        for i, (y, x) in enumerate(torch.randint(0, 12, (t, 2), generator=g).tolist()):
            frames[row, i, :, y : y + 4, x : x + 4] = 100 + 50 * (row % 2)
    return {"frames": frames}


def learnt(part, rank, ranks):
    """The state of a part after updates by plain gradient descent, its gradients averaged over the ranks."""
    torch.manual_seed(0)
    order = {"tokenizer": "tokenizer", "lam": "latent_action"}[part]
    settings = {name: CODER | PARTS[name] for name in PARTS}
    model = GenieModule(SPEC.to_dict(), frames=6, order=order, **settings).train()
    module, start = getattr(model, part), {}
    for step in range(UPDATES):
        model._loaded_updates = step  # outside a fit there is no global_step to tell the end of the warm-up by
        mine = {key: value.chunk(ranks)[rank] for key, value in batch(step).items()}
        losses = model.losses(mine)
        module.zero_grad()
        sum(value for name, value in losses.items() if not name.startswith("_")).backward()
        for p in module.parameters():
            if p.grad is not None:
                if ranks > 1:
                    dist.all_reduce(p.grad)
                p.data -= 0.1 * p.grad / ranks
        start = start or {key: value.clone() for key, value in module.state_dict().items()}
    assert any(not torch.equal(start[key], value) for key, value in module.state_dict().items())
    return module.state_dict()


def learn_as(rank, address, folder):
    """What one of two ranks learns, into a file for each part."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for part in PARTS:
        torch.save(learnt(part, rank, 2), folder / f"{part}-{rank}.pt")
    dist.destroy_process_group()


def count_as(rank, address, folder):
    """The dynamics' loss of one of two ranks, of which the first has three masked tokens and the second one."""
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    model = GenieModule(
        SPEC.to_dict(), frames=6, order="joint", **{name: CODER | PARTS[name] for name in PARTS}
    ).train()
    nats_m = torch.tensor([[1.0, 2.0, 3.0], [10.0]][rank])
    model.dynamics.loss = lambda tokens, actions: (nats_m, nats_m > 0)
    torch.save(model._dynamics_losses(None, None)["dynamics_ce"], folder / f"loss-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_every_masked_token_counts_alike_on_whichever_rank(tmp_path):
    ranks = [another_process.start(count_as, rank, f"file://{tmp_path / 'store'}", tmp_path) for rank in (0, 1)]
    assert [another_process.exit_code(process) for process in ranks] == [0, 0]
    losses = [torch.load(tmp_path / f"loss-{rank}.pt") for rank in (0, 1)]
    assert sum(losses) / 2 == (1 + 2 + 3 + 10) / 4, "DDP averages gradients over ranks"


@pytest.mark.slow
def test_two_ranks_are_one_process(tmp_path):
    store = f"file://{tmp_path / 'store'}"
    ranks = [another_process.start(learn_as, rank, store, tmp_path) for rank in (0, 1)]
    assert [another_process.exit_code(process) for process in ranks] == [0, 0]
    for part in PARTS:
        one, both = learnt(part, 0, 1), torch.load(tmp_path / f"{part}-0.pt")
        assert both.keys() == one.keys()
        for key in one:
            torch.testing.assert_close(
                both[key], one[key], rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
            )
        for key, value in torch.load(tmp_path / f"{part}-1.pt").items():
            assert torch.equal(value, both[key]), key
