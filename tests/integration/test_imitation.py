"""Behaviour from video in a world of four buttons: with codes that mean something imitation equals the oracle, else it does not."""

import gymnasium
import numpy as np
import pytest
import torch

from datamodules.policies import make_policy
from lit_wm.genie.imitation.agent import ImitationAgent, returns_of
from lit_wm.genie.imitation.dictionary import code_dictionary, draw_actions
from lit_wm.genie.imitation.expert import Windows, label
from lit_wm.genie.imitation.learning import Imitator, LearningSettings, learn
from lit_wm.genie.imitation.policy import PolicySettings
from lit_wm.genie.learning_order import OptimizerSettings

BUTTONS, LENGTH = 4, 20
PERMUTATION = torch.tensor([2, 0, 3, 1])
POLICY = PolicySettings(frames=2, patch=4, dim=16, heads=2, ffn=32, blocks=1, hidden=16)
LEARNING = LearningSettings(150, 16, OptimizerSettings(lr=1e-2, warmup_steps=10))


class Buttons(gymnasium.Env):
    """Of four quarters one lights up at random; pressing its button pays 1. The corner shows which was pressed last."""

    observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 1), np.uint8)
    action_space = gymnasium.spaces.Discrete(BUTTONS)

    def _observation(self, pressed):
        self.lit = int(self.np_random.integers(BUTTONS))
        frame = np.zeros((8, 8, 1), np.uint8)
        row, column = divmod(self.lit, 2)
        frame[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 200
        frame[0, 0] = pressed
        return frame

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(0), {}

    def step(self, action):
        reward = float(action == self.lit)
        self.steps += 1
        return self._observation(action), reward, False, self.steps == LENGTH, {}


gymnasium.register("Buttons-v0", entry_point=Buttons)
ENVIRONMENT = {"id": "Buttons-v0"}


def expert_episodes(count):
    """Who always presses what is lit."""
    env, flags = Buttons(), np.arange(LENGTH + 1)
    for seed in range(count):
        frame, _ = env.reset(seed=seed)
        frames, actions = [frame], []
        for _ in range(LENGTH):
            actions.append(env.lit)
            frames.append(env.step(actions[-1])[0])
        yield {
            "frames": np.stack(frames),
            "action": np.array([*actions, 0]),
            "is_first": flags == 0,
            "is_last": flags == LENGTH,
        }


class Permuted:
    """The true actions under other names, read off the corner of the frame that follows."""

    def infer_actions(self, batch):
        return PERMUTATION[batch["frames"][:, 1:, 0, 0, 0].long()]


class Shuffled(Permuted):
    """The same codes in an order that has nothing to do with the frames."""

    def infer_actions(self, batch):
        codes = super().infer_actions(batch)
        order = torch.randperm(codes.shape[1], generator=torch.Generator().manual_seed(int(codes.sum())))
        return codes[:, order]


def learnt(expert, target, folder, name, seed=0):
    windows = Windows(expert, target, POLICY.frames)
    held_out = Windows(expert, target, POLICY.frames, stride=7)
    return learn(windows, held_out, BUTTONS, POLICY, LEARNING, seed, folder, name, accelerator="cpu")


def imitation(expert, policy, labels):
    rows = expert.transitions[:labels]
    dictionary = code_dictionary(expert.code.numpy()[rows], expert.action.numpy()[rows], BUTTONS)
    agent = ImitationAgent(policy, lambda codes, generator: draw_actions(dictionary, codes, generator), 0)
    return returns_of(agent, ENVIRONMENT, 30, 0).mean()


@pytest.fixture(scope="module")
def permuted(tmp_path_factory):
    """The expert as a perfect latent action model labels it, a policy on its codes, and the folder of that policy."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("imitation")
    expert = label(Permuted(), expert_episodes(30), most_steps=10_000)
    return expert, *learnt(expert, expert.code, folder, "codes"), folder


def test_with_labels_for_every_code_imitation_equals_the_oracle(permuted, tmp_path):
    expert, policy, accuracy, _ = permuted
    oracle, _ = learnt(expert, expert.action, tmp_path, "actions")
    agent = ImitationAgent(oracle.policy, lambda actions, _: actions, 0)
    best = returns_of(agent, ENVIRONMENT, 30, 0).mean()
    random = returns_of(make_policy("random", "Buttons-v0", policy_spec(), 0), ENVIRONMENT, 30, 0).mean()
    assert best > 0.95 * LENGTH and accuracy > 0.95
    assert random == pytest.approx(LENGTH / BUTTONS, abs=1.5)
    assert imitation(expert, policy.policy, 50) == pytest.approx(best, abs=0.05 * LENGTH)
    assert imitation(expert, policy.policy, 0) == pytest.approx(random, abs=1.5), "no label: as good as random"


def test_codes_that_mean_nothing_lead_nowhere(tmp_path):
    expert = label(Shuffled(), expert_episodes(30), most_steps=10_000)
    policy, accuracy = learnt(expert, expert.code, tmp_path, "codes")
    assert accuracy < 0.5
    assert imitation(expert, policy.policy, 500) == pytest.approx(LENGTH / BUTTONS, abs=2)


def test_half_of_the_codes_labelled_is_about_half_of_the_way(permuted):
    """The rest falls back on what the expert does most, which is right as often as the pooled labels happen to say."""
    expert, policy, _, _ = permuted
    known = [row for row in expert.transitions if expert.action[row] < 2][:20]
    dictionary = code_dictionary(expert.code.numpy()[known], expert.action.numpy()[known], BUTTONS)
    agent = ImitationAgent(policy.policy, lambda codes, generator: draw_actions(dictionary, codes, generator), 0)
    assert returns_of(agent, ENVIRONMENT, 30, 0).mean() == pytest.approx(LENGTH / 2, abs=2)


def test_a_policy_comes_back_from_its_checkpoint(permuted):
    expert, policy, _, folder = permuted
    assert (folder / "tensorboard" / "codes").is_dir()
    loaded = Imitator.load_from_checkpoint(folder / "codes.ckpt", weights_only=True).eval()
    item = Windows(expert, expert.code, POLICY.frames)[0]
    with torch.no_grad():
        clip = item["frames"][None], item["target"][None]
        assert torch.equal(loaded.policy(*clip), policy.policy(*clip))
    assert loaded.learning == LEARNING


def test_equal_seeds_play_equal_worlds_and_others_do_not():
    agent = make_policy("random", "Buttons-v0", policy_spec(), 0)
    first, again, other = (returns_of(agent, ENVIRONMENT, 10, seed) for seed in (0, 0, 1))
    assert first.shape == (10,) and (first == again).all() and (first != other).any()


def policy_spec():
    from datamodules.envs import describe

    return describe("Buttons-v0")
