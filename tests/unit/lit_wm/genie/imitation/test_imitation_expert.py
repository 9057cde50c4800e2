"""Labelling video, and the alignment of codes, actions and frames in the windows a policy learns from."""

import numpy as np
import pytest
import torch

from lit_wm.errors import UserError
from lit_wm.genie.imitation.expert import NONE, Windows, check_codes, label


class Reader:
    """Finds as the code at t how much brighter frame t+1 is than frame t, and remembers what it was shown."""

    def __init__(self):
        self.shown = []

    def infer_actions(self, batch):
        self.shown.append(set(batch))
        return batch["frames"][..., 0, 0, 0].long().diff(dim=1)


def episode(brightness):
    """Frames of these brightnesses; the action after frame t is what frame t+1 will be brighter by, plus 10."""
    x = np.array(brightness)
    flags = np.arange(len(x))
    return {
        "frames": np.broadcast_to(x[:, None, None, None], (len(x), 2, 2, 1)).astype(np.uint8),
        "action": np.append(np.diff(x) + 10, 0),
        "is_first": flags == 0,
        "is_last": flags == len(x) - 1,
        "reward": np.zeros(len(x), np.float32),
        "state": np.zeros((len(x), 1), np.float32),
    }


EPISODES = [episode([0, 1, 3, 6, 10, 15]), episode([100, 107, 115, 124])]


def test_the_code_of_a_frame_is_what_happened_after_it():
    expert = label(Reader(), EPISODES, most_steps=100)
    assert expert.code.tolist() == [1, 2, 3, 4, 5, NONE, 7, 8, 9, NONE]
    assert expert.action.tolist() == [11, 12, 13, 14, 15, NONE, 17, 18, 19, NONE], "the void action is none"
    assert expert.transitions.tolist() == [0, 1, 2, 3, 4, 6, 7, 8] and expert.codes == 10
    assert expert.frames[:, 0, 0, 0].tolist() == [0, 1, 3, 6, 10, 15, 100, 107, 115, 124]


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("what", ["code", "action"])
def test_the_target_of_a_frame_is_what_leads_to_the_next_one(what, length):
    expert = label(Reader(), EPISODES, most_steps=100)
    after = dict(zip(expert.frames[:-1, 0, 0, 0].tolist(), expert.frames[1:, 0, 0, 0].tolist(), strict=True))
    windows = Windows(expert, getattr(expert, what), length)
    shift = 10 if what == "action" else 0
    for item in windows:
        now = item["frames"][:, 0, 0, 0].tolist()
        assert len(now) == length
        assert item["target"].tolist() == [after[x] - x + shift for x in now]


@pytest.mark.parametrize(
    ("length", "stride", "starts"), [(1, 1, [0, 1, 2, 3, 4, 6, 7, 8]), (3, 1, [0, 1, 2, 6]), (2, 2, [0, 2, 6])]
)
def test_windows_are_all_that_lie_within_an_episode(length, stride, starts):
    expert = label(Reader(), EPISODES, most_steps=100)
    windows = Windows(expert, expert.code, length, stride)
    assert windows.starts.tolist() == starts
    assert len(windows) == len(starts) and all((item["target"] != NONE).all() for item in windows)


def test_only_frames_and_flags_are_shown_to_the_model_one_episode_at_a_time():
    reader = Reader()
    label(reader, EPISODES, most_steps=100)
    assert reader.shown == [{"frames", "is_first", "is_last"}] * 2


def test_reading_stops_after_the_episode_that_is_enough():
    assert label(Reader(), EPISODES, most_steps=6).lengths == (6,)
    assert label(Reader(), EPISODES, most_steps=7).lengths == (6, 4)


def test_models_without_numbered_codes_are_refused():
    with pytest.raises(UserError, match="finds no latent actions"):
        check_codes(None)
    with pytest.raises(UserError, match="continuous vectors"):
        check_codes(torch.zeros(1, 3, 8))
    with pytest.raises(UserError, match="continuous vectors"):
        check_codes(torch.zeros(1, 3))
    check_codes(torch.zeros(1, 3, dtype=torch.int64))


def test_a_policy_that_sees_more_frames_than_there_are_is_refused():
    expert = label(Reader(), EPISODES, most_steps=100)
    assert len(Windows(expert, expert.code, 5)) == 1
    with pytest.raises(UserError, match="has the 7 steps that a policy of 6 frames needs: its longest has 6"):
        Windows(expert, expert.code, 6)
