"""Behaviour cloning: what is refused, what a seed decides, and the paper's numbers."""

import pytest
import torch

from lit_wm.errors import UserError
from lit_wm.genie.imitation.expert import Expert, Windows
from lit_wm.genie.imitation.learning import Imitator, LearningSettings, learn
from lit_wm.genie.imitation.policy import PolicySettings
from lit_wm.genie.learning_order import OptimizerSettings

POLICY = PolicySettings(frames=2, patch=4, dim=8, heads=2, ffn=8, blocks=1, hidden=8)
QUICK = LearningSettings(3, 2, OptimizerSettings(lr=1e-2, warmup_steps=1))


class Watched(Windows):
    """Remembers which windows were taken."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.taken = []

    def __getitem__(self, i):
        self.taken.append(i)
        return super().__getitem__(i)


@pytest.fixture
def windows():
    torch.manual_seed(0)
    code = torch.randint(0, 3, (10,))
    code[[4, 9]] = -1
    expert = Expert(torch.randint(0, 256, (10, 1, 4, 4), dtype=torch.uint8), code, code, (5, 5))
    return Watched(expert, expert.code, 2)


def weights(windows, folder, seed=0, learning=QUICK):
    module, accuracy = learn(windows, None, 3, POLICY, learning, seed, folder, "codes", accelerator="cpu")
    assert accuracy is None and not module.training
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_a_seed_decides_everything(windows, tmp_path):
    first = weights(windows, tmp_path)
    torch.manual_seed(7)
    assert torch.equal(first, weights(windows, tmp_path)), "whatever was drawn before"
    assert not torch.equal(first, weights(windows, tmp_path, seed=1))


def test_a_seed_decides_the_order_of_the_windows(windows, tmp_path):
    orders = []
    for seed in (0, 0, 1):
        windows.taken.clear()
        weights(windows, tmp_path, seed)
        orders.append(list(windows.taken))
    assert orders[0] == orders[1] != orders[2]
    assert len(orders[0]) == QUICK.updates * QUICK.batch_size


def test_the_optimizer_takes_what_the_settings_say(windows):
    learning = LearningSettings(100, 2, OptimizerSettings(lr=0.5, warmup_steps=10), (0.7, 0.8), 0.01)
    made = Imitator((1, 4, 4), 3, POLICY, learning).configure_optimizers()
    group = made["optimizer"].param_groups[0]
    assert (group["betas"], group["weight_decay"]) == ((0.7, 0.8), 0.01)
    rates = []
    for _ in range(100):
        rates.append(group["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert rates[0] == pytest.approx(0.05) and max(rates) == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.05, rel=0.01), "a tenth at the end"


def test_the_loss_and_the_accuracy_are_of_every_frame(windows):
    torch.manual_seed(0)
    module = Imitator((1, 4, 4), 3, POLICY, QUICK)
    batch = {key: torch.stack([windows[i][key] for i in range(4)]) for key in ("frames", "target")}
    logits = module.policy(batch["frames"], batch["target"])
    nats, right = module.losses(batch)
    by_hand = -logits.log_softmax(-1).gather(-1, batch["target"][..., None]).mean()
    assert nats.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert right.item() == pytest.approx((logits.argmax(-1) == batch["target"]).float().mean().item())


def test_a_loss_that_is_no_number_stops_the_run(windows, tmp_path):
    wild = LearningSettings(20, 2, OptimizerSettings(lr=1e30, warmup_steps=1))
    with pytest.raises(UserError, match=r"the imitation loss became .*lower learning.optimizer.lr"):
        weights(windows, tmp_path, learning=wild)


def test_the_defaults_are_the_papers():
    s = LearningSettings()
    assert (s.batch_size, s.betas) == (16, (0.9, 0.96))
    assert (s.optimizer.lr, s.optimizer.lr * s.optimizer.final_factor) == pytest.approx((3e-5, 3e-6))
    assert s.optimizer.warmup_steps == 5000


@pytest.mark.parametrize(
    ("learning", "message"),
    [
        (LearningSettings(updates=0), "updates of the imitation learning is 0, it must be at least 1"),
        (LearningSettings(batch_size=0), "batch_size of the imitation learning is 0"),
        (LearningSettings(optimizer=OptimizerSettings(lr=0)), "lr of the imitation learning's optimizer is 0"),
        (LearningSettings(optimizer=OptimizerSettings(decay="slow")), "decay .* 'slow' is not one of constant"),
        (LearningSettings(betas=(0.9, 1.0)), r"betas of the imitation learning are \(0.9, 1.0\)"),
    ],
)
def test_numbers_that_cannot_work_are_refused(learning, message):
    with pytest.raises(UserError, match=message):
        Imitator((1, 4, 4), 3, POLICY, learning)
