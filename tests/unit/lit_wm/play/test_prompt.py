"""What a world begins from: recorded frames at their places, and any picture in the form of the data contract."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.experience import ActionSpace, ExperienceSpec
from datamodules.index import read_index
from datamodules.shards import iter_episodes
from lit_wm.errors import UserError
from lit_wm.play.prompt import picture_prompt, recorded_prompt

SPEC = ExperienceSpec({"frames": (8, 8, 3)}, ActionSpace("discrete", (4,)))
VIDEO = ExperienceSpec({"frames": (8, 8, 3)}, ActionSpace("none", ()))
WIDE = ExperienceSpec({"frames": (4, 8, 1)}, ActionSpace("continuous", (2,)))


def saved(path, pixels):
    Image.fromarray(pixels).save(path)
    return path


def test_a_recorded_prompt_is_the_frames_up_to_the_named_one(make_recording):
    root = make_recording([20] * 12 + [9])  # of ten, the third is for testing: episodes 2 and 12
    index, episodes = read_index(root), list(iter_episodes(root, "test"))
    assert [len(rows["is_first"]) for rows in episodes] == [20, 9]
    for clip, frame, context in ((0, 0, 1), (0, 19, 1), (1, 8, 9), (1, 5, 2), (0, 13, 8)):
        prompt = recorded_prompt(index, clip, frame, context)
        truth = episodes[clip]["frames"][frame - context + 1 : frame + 1].transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(prompt["frames"][0].numpy(), truth)
        assert prompt["is_first"].tolist() == [[t == 0 for t in range(frame - context + 1, frame + 1)]]
        assert not {"state", "episode", "start"} & prompt.keys(), "a model is never shown the truth"


@pytest.mark.parametrize(
    ("clip", "frame", "context", "message"),
    [
        (2, 0, 1, r"clip is 2, the test episodes in .* are numbered 0 to 1"),
        (-1, 0, 1, r"clip is -1, .* 0 to 1"),
        (1, 9, 1, r"frame is 9, the frames of clip 1 are numbered 0 to 8"),
        (1, -1, 1, r"frame is -1"),
        (1, 3, 5, r"frame is 3, the frames of clip 1 with 4 before them are numbered 4 to 8"),
        (1, 9, 10, r"context is 10, but clip 1 in .* has 9 frames"),
    ],
)
def test_what_was_not_recorded_is_refused_with_what_was(make_recording, clip, frame, context, message):
    index = read_index(make_recording([20] * 12 + [9]))
    with pytest.raises(UserError, match=message):
        recorded_prompt(index, clip, frame, context)


def test_a_recording_without_test_episodes_is_refused(make_recording):
    index = read_index(make_recording([9] * 3, holdout=0))
    with pytest.raises(UserError, match="holds no test episodes to begin from"):
        recorded_prompt(index, 0, 0, 1)


@pytest.mark.parametrize(
    "spec", [SPEC, VIDEO, WIDE, dataclasses.replace(SPEC, action=ActionSpace("multi_discrete", (2, 3)))]
)
def test_a_picture_has_all_that_the_contract_asks_for(tmp_path, spec):
    path = saved(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8))
    prompt = picture_prompt(path, "crop", spec)
    height, width, channels = spec.observations["frames"]
    assert prompt["frames"].shape == (1, 1, channels, height, width) and prompt["frames"].dtype == torch.uint8
    flags = {key: prompt[key].tolist() for key in ("is_first", "is_last", "is_terminal")}
    assert flags == {"is_first": [[True]], "is_last": [[False]], "is_terminal": [[False]]}
    assert ("action" in prompt) == ("reward" in prompt) == spec.acted
    if spec.acted:
        assert prompt["action"].shape == (1, 1, *spec.action.shape) and not prompt["action"].any()


def test_a_picture_of_the_right_size_is_taken_pixel_by_pixel(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    for fit in ("crop", "pad", "stretch"):
        frames = picture_prompt(saved(tmp_path / "a.png", pixels), fit, SPEC)["frames"]
        np.testing.assert_array_equal(frames[0, 0].permute(1, 2, 0).numpy(), pixels)


def test_grey_worlds_see_grey_and_transparency_is_black(tmp_path):
    colour = np.full((4, 8, 4), (10, 200, 30, 255), np.uint8)
    colour[:, 4:, 3] = 0
    frames = picture_prompt(saved(tmp_path / "a.png", colour), "crop", WIDE)["frames"]
    assert frames[0, 0, 0, 0].tolist() == [round(0.299 * 10 + 0.587 * 200 + 0.114 * 30)] * 4 + [0] * 4


def test_a_model_that_sees_more_than_a_picture_cannot_begin_from_one(tmp_path):
    path = saved(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    more = dataclasses.replace(SPEC, observations={"frames": (8, 8, 3), "vector": (3,)})
    with pytest.raises(UserError, match="also sees 'vector'"):
        picture_prompt(path, "crop", more)
    with pytest.raises(UserError, match="frames of 4 channels"):
        picture_prompt(path, "crop", dataclasses.replace(SPEC, observations={"frames": (8, 8, 4)}))


def claims(path, width, height):
    """A small file whose head says that it is as large as that."""
    Image.new("RGB", (4, 4)).save(path)
    data = bytearray(path.read_bytes())
    data[18:22], data[22:26] = width.to_bytes(4, "little"), height.to_bytes(4, "little")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (8_000, 6_250, "8000x6250 pixels, more than 40 million"),
        (10_000, 10_000, "exceeds limit"),  # where Pillow warns
        (60_000, 60_000, "exceeds limit"),  # where it refuses
    ],
)
def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path, recwarn, width, height, message):
    with pytest.raises(UserError, match=message):
        picture_prompt(claims(tmp_path / "a.bmp", width, height), "crop", SPEC)
    assert not recwarn.list


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("just text")
    (tmp_path / "empty.png").touch()
    whole = saved(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:3000])
    for name in ("text.png", "empty.png", "half.png"):
        with pytest.raises(UserError, match=rf"{name} cannot be read as a picture: "):
            picture_prompt(tmp_path / name, "crop", SPEC)
    for nothing in (tmp_path, tmp_path / "nowhere.png"):
        with pytest.raises(UserError, match="no picture at"):
            picture_prompt(nothing, "crop", SPEC)
    with pytest.raises(UserError, match="fit 'squeeze' is not one of crop, pad, stretch"):
        picture_prompt(whole, "squeeze", SPEC)
