"""``lit-wm generate`` from a frame or a picture to files, and what it refuses."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import tiny_routes
import torch
import yaml
from one_line import said
from PIL import Image

from lit_wm.cli.main import run
from lit_wm.genie import GenieModule

FILES = ("animation.gif", "frames.png", "sheet.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings of 64 and 32 pixels, one without labels and one without test episodes; runs of a few updates; pictures."""
    folder = tmp_path_factory.mktemp("generate")
    for name, size, more in (("data", 64, []), ("small", 32, []), ("all_train", 64, ["--holdout", "0"])):
        words = ["--env-arg", f"size={size}", "--env-arg", "length=10", "--steps", "400", *more]
        run(["record", "--env", "sprites", *words, "--out", str(folder / name)])
    for route in ("genie", "dreamer", "jepa"):
        tiny_routes.fit(route, folder / "data", folder / route, steps=3)
    vectors = {**tiny_routes.CODER, "codebook": "vae", "kl": 1e-4}
    tiny_routes.fit("genie", folder / "data", folder / "vectors", steps=3, lam=vectors)
    config = {"data": {"init_args": {"root": str(folder / "data")}}}
    (folder / "genie" / "config.yaml").write_text(yaml.safe_dump(config))  # the other runs do not say what they saw
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 4), np.uint8)
    Image.fromarray(pixels).save(folder / "drawing.png")
    (folder / "text.png").write_text("just text")
    return folder


def words(folder, *more, route="genie"):
    return ["generate", str(folder / route), *map(str, more)]


def hashes(out):
    return [hashlib.sha256((out / name).read_bytes()).hexdigest() for name in FILES]


def frames_of(out, lines, steps):
    """The strips (lines,steps,64,64,3)."""
    pixels = np.asarray(Image.open(out / "frames.png"))
    assert pixels.shape == (lines * 64, steps * 64, 3)
    return pixels.reshape(lines, 64, steps, 64, 3).swapaxes(1, 2)


def test_a_row_for_each_code_from_a_recorded_frame(folder, tmp_path, capsys):
    from datamodules.shards import iter_episodes

    run(words(folder, "--clip", 1, "--frame", 4, "--context", 3, "--steps", 2, "--out", tmp_path / "a"))
    assert f"begins at frame 4 of test episode 1 in {folder / 'data'}" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(FILES)
    frames = frames_of(tmp_path / "a", lines=8, steps=3 + 1 + 2)
    truth = list(iter_episodes(folder / "data", "test"))[1]["frames"][2:5]
    assert all((line[:3] == truth).all() for line in frames), "what was seen is shown as it was, without loss"
    assert (frames[:, 3] == frames[0, 3]).all(), "all begin from the same state"
    with Image.open(tmp_path / "a" / "animation.gif") as animation:
        assert animation.n_frames == 6
    assert Image.open(tmp_path / "a" / "sheet.png").size[0] > 6 * 64


@pytest.mark.parametrize("start", [[], ["--picture", "drawing.png"]])
def test_equal_seeds_give_equal_files_and_others_others(folder, tmp_path, monkeypatch, start):
    monkeypatch.chdir(folder)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(
            words(
                folder,
                *start,
                "--actions",
                1,
                0,
                "--samples",
                2,
                "--steps",
                3,
                "--seed",
                seed,
                "--out",
                tmp_path / name,
            )
        )
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert all(a != c for a, c in zip(hashes(tmp_path / "a"), hashes(tmp_path / "c"), strict=True))


def test_a_picture_begins_a_world_and_is_compared_with_what_was_held_out(folder, tmp_path, capsys):
    from datamodules.shards import iter_episodes

    picture = next(iter_episodes(folder / "data", "test"))["frames"][5]
    Image.fromarray(picture).save(tmp_path / "recorded.png")
    lines = {}
    for name in ("recorded", "drawing"):
        path = (tmp_path if name == "recorded" else folder) / f"{name}.png"
        run(words(folder, "--picture", path, "--fit", "pad", "--actions", 0, "--steps", 1, "--out", tmp_path / name))
        lines[name] = capsys.readouterr().out.splitlines()[0]
    assert (frames_of(tmp_path / "recorded", 1, 3)[0, 0] == picture).all()
    assert not frames_of(tmp_path / "drawing", 1, 3)[0, 0, :8].any(), "a wide picture is padded above"
    assert "recorded.png: mean squared error 0.00000 to the nearest of" in lines["recorded"]
    assert lines["recorded"].endswith("; 0.0% of those have one of another episode nearer than that")
    assert lines["drawing"].endswith("; 100.0% of those have one of another episode nearer than that")


def test_a_picture_needs_no_data_and_then_says_so(folder, tmp_path, capsys):
    shutil.copytree(folder / "genie" / "checkpoints", tmp_path / "alone" / "checkpoints")
    run(
        [
            "generate",
            str(tmp_path / "alone"),
            "--picture",
            str(folder / "drawing.png"),
            "--steps",
            "1",
            "--out",
            str(tmp_path),
        ]
    )
    assert "how far it lies from the data is not known (alone does not say where" in capsys.readouterr().out


def test_labels_go_through_codes_found_on_training_steps(folder, tmp_path, capsys, monkeypatch):
    """With codes that are the frame's own secret: the inferred code is the action, plus 3, modulo 8."""
    actions = {}

    def infer(self, batch):
        return (batch["action"][:, :-1] + 3) % 8

    def watch(self, state, given, *more):
        actions["given"] = given
        return imagine(self, state, given, *more)

    imagine = GenieModule.imagine
    monkeypatch.setattr(GenieModule, "infer_actions", infer)
    monkeypatch.setattr(GenieModule, "imagine", watch)
    run(words(folder, "--labels", "right", 4, "right", "--steps", 5, "--fit_clips", 30, "--out", tmp_path))
    assert actions["given"].tolist() == [[4, 7, 4, 4, 7]], "right is 1, up is 4"
    out, warned = capsys.readouterr()
    assert (
        "right: code 4; 100% of the" in out and "held-out steps with it are 'right', 100% of the 'right' steps" in out
    )
    assert out.count("right: code") == 1 and not warned, "every action is spoken of once"


def test_a_label_whose_code_means_another_is_warned_of(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(GenieModule, "infer_actions", lambda self, batch: 0 * batch["action"][:, :-1] + 5)
    run(words(folder, "--labels", *range(5), "--steps", 1, "--out", tmp_path))
    out, warned = capsys.readouterr()
    assert warned.count("no code stands for '") == 4, "one code for all stands for the most frequent"
    assert out.count(": code 5; ") == 5 and "100% of the 'up' steps are among these" in out


def test_a_label_that_nobody_did_is_refused(folder, capsys, monkeypatch):
    from datamodules import windows

    def never_right(*given, **more):
        clips = fixed_clips(*given, **more)
        return clips | {"action": torch.where(clips["action"] == 1, 0, clips["action"])}

    fixed_clips = windows.fixed_clips
    monkeypatch.setattr(windows, "fixed_clips", never_right)
    assert "'right' does not occur in the labelled clips: no code stands" in said(
        capsys, words(folder, "--labels", "right")
    )


def test_vectors_are_steered_by_labels(folder, tmp_path, capsys):
    run(
        words(
            folder,
            "--labels",
            "up",
            "stay",
            "--steps",
            2,
            "--data",
            folder / "data",
            "--out",
            tmp_path,
            route="vectors",
        )
    )
    assert "up: its mean vector; " in capsys.readouterr().out
    frames_of(tmp_path, 1, 4)


def test_the_environments_actions_are_taken_by_models_that_know_them(folder, tmp_path, capsys):
    data = ["--data", folder / "data", "--steps", 2]
    run(words(folder, *data, "--out", tmp_path / "each", route="dreamer"))
    frames_of(tmp_path / "each", 5, 4)
    for name, option in (("names", ["--labels", "left", "up"]), ("numbers", ["--actions", 2, 4])):
        run(words(folder, *data, *option, "--temperature", 0, "--out", tmp_path / name, route="dreamer"))
    assert (frames_of(tmp_path / "names", 1, 4) == frames_of(tmp_path / "numbers", 1, 4)).all()
    picture = ["--picture", folder / "drawing.png", "--each", "--steps", 2]
    run(words(folder, *picture, "--out", tmp_path / "picture", route="dreamer"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clip", 99], "clip is 99, the test episodes in"),
        (["--clip", 0, "--frame", 11], "frame is 11, the frames of clip 0 are numbered 0 to 10"),
        (["--context", 5, "--frame", 2], "with 4 before them are numbered 4 to 10"),
        (["--actions", 3, 8], "there is no code 8: the model's are numbered 0 to 7"),
        (["--actions", -1], "there is no code -1"),
        (["--actions", 10**30], "the model's are numbered 0 to 7"),
        (["--actions", "right"], "argument --actions: invalid int value: 'right'"),
        (["--actions"], "argument --actions: expected at least one argument"),
        (["--labels", "jump"], "there is no action 'jump': stay, right, left, down, up, or 0 to 4"),
        (["--labels", "up", "--actions", 1], "not allowed with argument"),
        (["--each", "--actions", 1], "not allowed with argument"),
        (["--picture", "drawing.png", "--clip", 0], "--picture and --clip are two ways to begin"),
        (["--picture", "drawing.png", "--context", 2], "--picture and --context are two ways to begin"),
        (["--picture", "drawing.png", "--fit", "squeeze"], "fit 'squeeze' is not one of crop, pad, stretch"),
        (["--picture", "text.png"], "text.png cannot be read as a picture"),
        (["--picture", "nowhere.png"], "no picture at nowhere.png"),
        (["--picture", "drawing.png", "--data", "small"], "small shows 32x32x3, but genie was built for 64x64x3"),
        (["--picture", "drawing.png", "--data", "all_train"], "holds no test episodes"),
        (["--data", "all_train"], "all_train holds no test episodes to begin from"),
        (["--labels", "up", "--data", "all_train"], "all_train holds no test episodes"),
        (["--data", "small"], "small shows 32x32x3, but genie was built for 64x64x3"),
        (["--data", "nowhere"], "no recording at"),
        (["--fit", "pad"], "--fit is read with --picture alone"),
        (["--fit_clips", 3], "--fit_clips is read with --labels alone"),
        (["--steps", 0], "--steps is 0, it must be at least 1"),
        (["--steps", 10**12], "--steps is 1000000000000, it must be at least 1 and at most 2000"),
        (["--steps", 300], "that would be 2,416 frames, more than 2,000: lower --steps or --samples"),
        (["--samples", 0], "--samples is 0"),
        (["--samples", 2, "--temperature", 0], "would all be equal"),
        (["--temperature", "nan"], "--temperature is nan"),
        (["--temperature", -1], "--temperature is -1.0"),
        (["--seed", -1], "--seed is -1"),
        (["--start", 1], "unrecognized arguments: --start"),
    ],
)
def test_bad_words_are_one_line_and_nothing_is_written(folder, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(folder)
    assert message in said(capsys, words(folder, *options, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_other_runs_are_refused_with_the_reason(folder, tmp_path, capsys):
    data = ["--data", folder / "data", "--out", tmp_path / "out"]
    assert "no run at" in said(capsys, words(folder, route="nowhere"))
    assert "the model has no decoder of its own" in said(capsys, words(folder, *data, route="jepa"))
    for option in (["--actions", 1], ["--each"], []):
        message = said(capsys, words(folder, *data, *option, route="vectors"))
        assert "codes are vectors and have no numbers: steer it by --labels" in message
    assert "there is no action 5: the model's are numbered 0 to 4" in said(
        capsys, words(folder, *data, "--actions", 5, route="dreamer")
    )
    assert "dreamer takes the environment's actions as they are" in said(
        capsys, words(folder, *data, "--labels", "up", "--fit_clips", 9, route="dreamer")
    )
    assert "dreamer does not say where its shards are: give --data FOLDER" in said(
        capsys, words(folder, route="dreamer")
    )


def test_data_that_changed_or_is_of_another_world_is_refused(folder, tmp_path, capsys):
    shutil.copytree(folder / "genie", tmp_path / "genie")
    config = {"data": {"init_args": {"root": str(folder / "all_train")}}}
    (tmp_path / "genie" / "config.yaml").write_text(yaml.safe_dump(config))
    assert "are not those that genie was trained on" in said(capsys, ["generate", str(tmp_path / "genie")])
    shutil.copytree(folder / "data", tmp_path / "data")
    index = json.loads((tmp_path / "data" / "index.json").read_text())
    index["spec"]["action"] = {"kind": "discrete", "sizes": [7], "names": []}
    (tmp_path / "data" / "index.json").write_text(json.dumps(index))
    assert "is of another environment than dreamer" in said(
        capsys, words(folder, "--data", tmp_path / "data", route="dreamer")
    )


def test_unlabelled_data_has_no_labels_but_can_be_begun_from(tmp_path, folder, make_recording, capsys):
    from datamodules.experience import ActionSpace, ExperienceSpec

    root = make_recording([12] * 12, ExperienceSpec({"frames": (64, 64, 3)}, ActionSpace("none", ())))
    run(words(folder, "--data", root, "--actions", 1, "--steps", 1, "--out", tmp_path / "a"))
    capsys.readouterr()
    assert "nobody acted in this data" in said(capsys, words(folder, "--data", root, "--labels", "up"))


def test_a_model_that_was_trained_on_video_takes_labels_from_another_recording(
    folder, tmp_path, make_recording, capsys
):
    from datamodules.experience import ActionSpace, ExperienceSpec

    root = make_recording([12] * 12, ExperienceSpec({"frames": (64, 64, 3)}, ActionSpace("none", ())))
    tiny_routes.fit("genie", root, tmp_path / "video", steps=3)
    options = ["--data", folder / "data", "--labels", "up", "--steps", 1, "--out", tmp_path / "out"]
    run(words(tmp_path, *options, route="video"))
    assert "up: code " in capsys.readouterr().out
    frames_of(tmp_path / "out", 1, 3)
