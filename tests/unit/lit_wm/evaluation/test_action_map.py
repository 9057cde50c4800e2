"""Label -> code: found on some steps, judged on others."""

import pytest
import torch
from fake_codes import Merged, Noisy, Split, Vectored
from fake_worlds import MOVES, SPEC, Coded, make_clips
from hypothesis import given
from hypothesis import strategies as st

from lit_wm.evaluation.action_map import fit_action_map, labelled_steps
from lit_wm.evaluation.settings import Settings

TRAIN, TEST = make_clips(range(40)), make_clips(range(40, 60))


def mapped(model):
    return fit_action_map(*(labelled_steps(model, clips, SPEC.action, Settings()) for clips in (TRAIN, TEST)))


@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=60),
    held_out=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=30),
)
def test_every_label_that_occurs_gets_a_most_frequent_code_and_shares_are_counts(pairs, held_out):
    code, action = torch.tensor(pairs).T
    held_code, held_action = torch.tensor(held_out, dtype=torch.long).reshape(-1, 2).T
    found = fit_action_map((code, action), (held_code, held_action))
    assert set(found) == set(action.tolist())
    for a, stands in found.items():
        counts = torch.bincount(code[action == a], minlength=5)
        assert counts[stands.control] == counts.max()
        of_code = torch.bincount(action[code == stands.control], minlength=4)
        assert of_code[stands.mostly] == of_code.max()
        together = int(((held_code == stands.control) & (held_action == a)).sum())
        assert stands.steps == int((held_code == stands.control).sum())
        assert stands.right == (together / stands.steps if stands.steps else None)
        did = int((held_action == a).sum())
        assert stands.found == (together / did if did else None)


def test_codes_that_follow_the_moves_are_found_under_any_name_and_miss_only_where_a_wall_blocks():
    found = mapped(Coded())
    assert {a: int(s.control) for a, s in found.items()} == dict(enumerate(Coded.PERMUTATION.tolist()))
    assert all(s.mostly == a for a, s in found.items())
    assert all(found[a].right == 1 for a in (1, 2, 3, 4)), "what moved was told to"
    assert found[0].right < 1 and found[0].found == 1, "what stood still may have been blocked"


def test_noise_in_the_codes_shows_in_how_often_they_are_right():
    right = [mapped(Noisy(share))[1].right for share in (0, 0.3, 0.6)]
    assert right[0] > right[1] + 0.1 > right[2] + 0.2


def test_a_code_that_two_labels_share_stands_for_one_of_them():
    found = mapped(Merged())
    for pair in ((1, 2), (3, 4)):
        assert found[pair[0]].control == found[pair[1]].control
        assert len({found[a].mostly for a in pair}) == 1 and found[pair[0]].mostly in pair
        assert all(found[a].right == pytest.approx(0.5, abs=0.15) for a in pair)


def test_codes_that_split_a_label_are_right_and_seldom():
    found = mapped(Split())
    assert all(found[a].right == 1 and found[a].found == pytest.approx(0.45, abs=0.15) for a in (1, 2, 3, 4))


def test_vectors_are_stood_for_by_their_means_and_counted_by_the_nearest():
    found = mapped(Vectored())
    for a in (1, 2, 3, 4):
        towards = MOVES[a].float() @ Vectored.TURN
        assert torch.nn.functional.cosine_similarity(found[a].control, towards, 0) > 0.99
        assert found[a].right == 1 and found[a].mostly == a


def test_steps_across_the_end_of_an_episode_have_no_label():
    clips = make_clips(range(3), clips_per_episode=1)
    clips = {key: torch.cat([value, value], 1) if value.ndim > 1 else value for key, value in clips.items()}
    codes, actions = labelled_steps(Coded(), clips, SPEC.action, Settings())
    assert len(codes) == len(actions) == 3 * (2 * 12 - 2)
