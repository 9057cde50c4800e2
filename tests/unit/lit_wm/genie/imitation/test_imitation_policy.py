"""The policy: causal in frames and actions, and refused where it cannot be built."""

import pytest
import torch

from lit_wm.errors import UserError
from lit_wm.genie.imitation.policy import ImitationPolicy, PolicySettings

SMALL = {"frames": 4, "patch": 4, "dim": 8, "heads": 2, "ffn": 16, "blocks": 2, "hidden": 8}


def build(**changes):
    torch.manual_seed(0)
    return ImitationPolicy((3, 8, 8), 5, PolicySettings(**(SMALL | changes))).eval()


@pytest.fixture
def clip():
    torch.manual_seed(1)
    return torch.randint(0, 256, (2, 4, 3, 8, 8), dtype=torch.uint8), torch.randint(0, 5, (2, 4))


@pytest.mark.parametrize("t", range(4))
def test_logits_depend_on_frames_up_to_now_and_actions_before_now(clip, t):
    policy, (frames, actions) = build(), clip
    before = policy(frames, actions)
    frames, later = frames.clone(), actions.clone()
    frames[:, t] = 255 - frames[:, t]
    changed = (policy(frames, actions) - before).abs().amax((0, 2)) > 1e-6
    assert changed.tolist() == [k >= t for k in range(4)]
    later[:, t] = (later[:, t] + 1) % 5
    changed = (policy(clip[0], later) - before).abs().amax((0, 2)) > 1e-6
    assert changed.tolist() == [k > t for k in range(4)]


def test_without_previous_actions_they_do_not_matter(clip):
    policy, (frames, actions) = build(previous_actions=False), clip
    assert torch.equal(policy(frames, actions), policy(frames, (actions + 1) % 5))


def test_a_shorter_clip_is_the_beginning_of_a_longer_one(clip):
    policy, (frames, actions) = build(), clip
    whole = policy(frames, actions)
    assert whole.shape == (2, 4, 5)
    torch.testing.assert_close(policy(frames[:, :2], actions[:, :2]), whole[:, :2])


def test_the_defaults_are_the_papers():
    settings = PolicySettings()
    assert (settings.frames, settings.patch, settings.dim, settings.blocks, settings.hidden) == (4, 4, 512, 12, 512)
    assert settings.previous_actions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "frames of the imitation policy is 0, it must be at least 1"),
        ({"patch": 3}, "cannot be built: a 8x8 picture is not divisible by patches of 3"),
        ({"heads": 3}, "cannot be built: attention width 8 is not divisible by 3 heads"),
    ],
)
def test_sizes_that_cannot_work_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        build(**changes)
