"""The agent at play: its window is what the policy was trained on."""

import numpy as np
import pytest
import torch

from lit_wm.genie.imitation.agent import ImitationAgent
from lit_wm.genie.imitation.policy import ImitationPolicy, PolicySettings

SIZES = {"frames": 3, "patch": 4, "dim": 8, "heads": 2, "ffn": 16, "blocks": 1, "hidden": 8}
STEPS, N = 7, 2


@pytest.fixture
def policy():
    torch.manual_seed(0)
    policy = ImitationPolicy((3, 8, 8), 4, PolicySettings(**SIZES)).eval()
    policy.head[-1].weight.data *= 20  # opinions strong enough to differ from frame to frame
    return policy


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 256, (STEPS, N, 8, 8, 3), np.uint8)


def play(agent, frames, first_at=((0, 0), (0, 1))):
    """(steps,N) actions; ``first_at`` holds (step, environment) at which episodes begin."""
    memory, actions = agent.initial_state(N), []
    for t, x in enumerate(frames):
        is_first = np.array([(t, i) in first_at for i in range(N)])
        action, memory, extras = agent.act({"frames": x}, is_first, memory)
        assert not extras
        actions.append(action)
    return np.stack(actions)


def as_they_are(classes, _):
    return classes


def test_each_step_is_what_the_policy_says_of_the_last_frames_and_what_was_done_on_them(policy, frames):
    first_at = ((0, 0), (0, 1), (4, 1))
    actions = play(ImitationAgent(policy, as_they_are, 0, temperature=0), frames, first_at)
    assert len(np.unique(actions)) > 1
    for i in range(N):
        for t in range(STEPS):
            begin = max(max(first for first, env in first_at if env == i and first <= t), t - 2)
            window = torch.from_numpy(frames[begin : t + 1, i].transpose(0, 3, 1, 2))[None]
            done = torch.from_numpy(actions[begin : t + 1, i])[None]
            with torch.no_grad():
                assert policy(window, done)[0, -1].argmax() == actions[t, i], (i, t)


def test_codes_are_mapped_and_what_the_policy_remembers_are_codes(policy, frames):
    plain = play(ImitationAgent(policy, as_they_are, 0, temperature=0), frames)
    mapped = play(ImitationAgent(policy, lambda codes, _: 10 + codes, 0, temperature=0), frames)
    assert (mapped == 10 + plain).all()


def test_classes_are_drawn_from_the_softmax(policy):
    agent = ImitationAgent(policy, as_they_are, 0)
    logits = np.log(np.array([[0.1, 0.2, 0.3, 0.4]]))
    drawn = agent._draw(np.repeat(logits, 20_000, 0), np.random.default_rng(0))
    assert np.bincount(drawn) / len(drawn) == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.015)


def test_a_share_of_the_steps_is_random(policy):
    agent = ImitationAgent(policy, as_they_are, 0, temperature=0, random_share=0.4)
    logits = np.repeat(np.array([[0.0, 0.0, 9.0, 0.0]]), 20_000, 0)
    drawn = agent._draw(logits, np.random.default_rng(0))
    assert np.bincount(drawn) / len(drawn) == pytest.approx([0.1, 0.1, 0.7, 0.1], abs=0.015)


def test_equal_seeds_act_alike(policy, frames):
    first, again, other = (play(ImitationAgent(policy, as_they_are, seed), frames) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_a_memory_is_not_changed_by_acting_on_it(policy, frames):
    agent = ImitationAgent(policy, as_they_are, 0, temperature=0)
    _, memory, _ = agent.act({"frames": frames[0]}, np.ones(N, bool), agent.initial_state(N))
    kept = {key: value.copy() for key, value in memory.items() if key != "generator"}
    agent.act({"frames": frames[1]}, np.zeros(N, bool), memory)
    assert all((memory[key] == value).all() for key, value in kept.items())
