"""The agent at play: its window is what the policy was trained on."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lit_wm.genie.imitation.agent import ImitationAgent

STEPS, N, CLASSES = 12, 3, 7


class Sums:
    """A policy whose opinion at t changes with every frame up to t, its place in the window, and every action before t."""

    settings, picture, patch_in = SimpleNamespace(frames=3), (1, 1, 1), torch.nn.Linear(1, 1)

    def __call__(self, x_btchw, action_bt):
        place_t = 1 + torch.arange(x_btchw.shape[1])
        seen_bt = (x_btchw[..., 0, 0, 0] * place_t).cumsum(1)
        done_bt = F.pad(action_bt[:, :-1], (1, 0)).cumsum(1)
        return 2.0 * F.one_hot((seen_bt + 3 * done_bt) % CLASSES, CLASSES)


@pytest.fixture
def policy():
    return Sums()


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 256, (STEPS, N, 1, 1, 1), np.uint8)


def play(agent, frames, first_at=((0, 0), (0, 1), (0, 2))):
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
    first_at = ((0, 0), (0, 1), (0, 2), (4, 1), (1, 2), (2, 2), (7, 2))
    actions = play(ImitationAgent(policy, as_they_are, 0, temperature=0), frames, first_at)
    assert len(np.unique(actions)) == CLASSES
    for i in range(N):
        for t in range(STEPS):
            begin = max(max(first for first, env in first_at if env == i and first <= t), t - 2)
            window = torch.from_numpy(frames[begin : t + 1, i].transpose(0, 3, 1, 2))[None]
            done = torch.from_numpy(actions[begin : t + 1, i])[None]
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
