"""JEPA on two ranks with half of a batch each is JEPA in one process with all of it: weights, teacher, batch norms."""

import another_process
import pytest
import torch
import torch.distributed as dist

from datamodules.experience import ActionSpace, ExperienceSpec
from lit_wm.distributed import ema_update
from lit_wm.jepa import JEPAModule

SPEC = ExperienceSpec({"frames": (16, 16, 3)}, ActionSpace("discrete", (3,)))
TOKENS = {"patch": 8, "dim": 16, "depth": 1, "heads": 2}
MODELS = {
    "EMA with VICReg": {
        "encoder": TOKENS,
        "predictor": {"dim": 16, "depth": 1, "heads": 2},
        "target": {"momentum_start": 0.5, "momentum_end": 0.5},
        "regularizers": {"variance": 1.0, "covariance": 1.0, "samples": "batch_and_time"},
    },
    "LeWM": {
        "encoder": {**TOKENS, "pool": "class", "projector": 32},
        "predictor": {"kind": "conditional", "dim": 16, "depth": 1, "heads": 2, "head_width": 8, "mlp": 32, "projector": 32},
        "target": {"kind": "online", "normalise": False},
        "regularizers": {"sigreg": 0.1, "slices": 32},
        "loss": {"distance": "l2"},
    },
}  # fmt: skip


def batch():
    g = torch.Generator().manual_seed(0)
    first = torch.zeros(8, 4, dtype=torch.bool)
    first[:, 0] = True
    return {
        "frames": torch.randint(0, 256, (8, 4, 3, 16, 16), generator=g).to(torch.uint8),
        "action": torch.randint(0, 3, (8, 4), generator=g),
        "is_first": first,
        "is_last": torch.zeros(8, 4, dtype=torch.bool),
    }


def learnt(name, rank, ranks):
    """All state after three updates by plain gradient descent, gradients averaged over the ranks."""
    torch.manual_seed(0)
    model = JEPAModule(SPEC.to_dict(), **MODELS[name]).train()
    mine = {key: value.chunk(ranks)[rank] for key, value in batch().items()}
    for update in range(3):
        model._loaded_updates = update
        losses = model.losses(mine)
        model.zero_grad()
        sum(value for key, value in losses.items() if not key.startswith("_")).backward()
        for p in model.task.learned:
            if ranks > 1:
                dist.all_reduce(p.grad)
            p.data -= 0.05 * p.grad / ranks
        if model.target_settings.kind == "ema":
            ema_update(model.task.target_encoder, model.task.encoder, 0.5)
    return model.state_dict()


def learn_as(rank, address, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.save({name: learnt(name, rank, 2) for name in MODELS}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    address = f"file://{folder}/meeting"
    processes = [another_process.start(learn_as, rank, address, folder) for rank in (0, 1)]
    assert [another_process.exit_code(process) for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_are_one_process(two_ranks, name):
    torch.manual_seed(0)
    start, whole = JEPAModule(SPEC.to_dict(), **MODELS[name]).state_dict(), learnt(name, 0, 1)
    for found in two_ranks:
        for key, value in whole.items():
            torch.testing.assert_close(found[name][key], value, rtol=1e-5, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
    moved = {key for key, value in whole.items() if not torch.equal(value, start[key])}
    parts = ("task.target_encoder.",) if name.startswith("EMA") else ("task.encoder.projector.net.1.running_mean",)
    assert all(any(key.startswith(part) for key in moved) for part in ("task.encoder.", "task.predictor.", *parts))
