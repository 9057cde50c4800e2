"""``lit-wm convert`` from the command line, and what the other verbs make of its recordings."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from test_compare import GENIE, JEPA
from tiny_video import counting, write_mp4, write_video

import datamodules.convert
import lit_wm
from datamodules.experience import ExperienceError
from datamodules.index import read_index
from datamodules.shards import verify
from lit_wm.cli import convert, main
from lit_wm.errors import UserError


@pytest.fixture
def videos(tmp_path, monkeypatch):
    """A folder of three good videos and a broken one; commands run in the folder above it."""
    for n in range(3):
        write_mp4(tmp_path / "videos" / f"{n}.mp4", counting(60), fps=30)
    (tmp_path / "videos" / "sub").mkdir()
    (tmp_path / "videos" / "sub" / "broken.mp4").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "videos"


def test_convert_says_what_it_did_what_it_skipped_and_what_to_do_next(videos, capsys):
    convert.main(["videos", "--out", "data/mine", "--size", "16", "--holdout", "3"])
    said = capsys.readouterr()
    assert re.fullmatch(
        r"converted 3 of 4 videos, 1 skipped to data/mine: 3 episodes, 60 frames \(0\.1 min at 10 frames/s\), 0\.0 MB in"
        r" \d+\.\d s\nlook at it: lit-wm inspect data/mine\n",
        said.out,
    )
    assert said.err.startswith("skipped sub/broken.mp4: it is no video") and said.err.count("\n") == 1
    assert verify("data/mine").environment["size"] == 16


def test_every_option_reaches_the_recording(videos, capsys):
    words = ["--fps", "30000/1001", "--size", "8", "--fit", "pad", "--min-frames", "5", "--clip-seconds", "0.5"]
    words += ["--split-by", "clip", "--codec", "npz", "--holdout", "4"]
    convert.main(["videos/0.mp4", "videos/1.mp4", "--out", "data", *words])
    index = read_index("data")
    wanted = {"id": "video", "fps": 30000 / 1001, "size": 8, "fit": "pad", "min_frames": 5, "clip_seconds": 0.5}
    assert index.environment.items() >= (wanted | {"split_by": "clip", "footage": 2}).items()
    assert (index.codec, index.holdout, index.spec.observations["frames"]) == ("npz", 4, (8, 8, 3))
    with pytest.raises(ExperienceError, match=r"^sub/broken\.mp4: it is no video.*; strict stops here$"):
        convert.main(["videos", "--out", "strict", "--strict"])
    capsys.readouterr()
    convert.main(["videos/0.mp4", "--out", "one"])
    assert "nothing is held out for val and test" in capsys.readouterr().err
    convert.main(["videos/0.mp4", "--out", "none", "--holdout", "0"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["videos"], "the following arguments are required: --out"),
        (["--out", "x"], "the following arguments are required: VIDEOS"),
        (["nowhere", "--out", "x"], "nowhere does not exist"),
        (["videos/sub", "--out", "x"], "nothing can be used of 1 found: skipped broken.mp4: it is no video"),
        (["videos", "--out", "x", "--fps", "fast"], "--fps: invalid rate value: 'fast'"),
        (["videos", "--out", "x", "--fps", "1/0"], "--fps: invalid rate value: '1/0'"),
        (["videos", "--out", "x", "--fps", "0"], "fps is 0"),
        (["videos", "--out", "x", "--size", "0"], "size is 0"),
        (["videos", "--out", "x", "--size", "20000"], "use codec 'npz'"),
        (["videos", "--out", "x", "--fit", "squeeze"], "fit 'squeeze' is not one of crop, pad, stretch"),
        (["videos", "--out", "x", "--min-frames", "1"], "min_frames is 1"),
        (["videos", "--out", "x", "--clip-seconds", "1"], "fewer than min_frames 16"),
        (["videos", "--out", "x", "--split-by", "hand"], "split_by 'hand'"),
        (["videos", "--out", "x", "--holdout", "2"], "holdout is 2"),
        (["videos", "--out", "videos"], "holds '0.mp4', which is no recording"),
        (["videos", "--out", "videos/0.mp4"], "is a file"),
        (["videos", "--out", "x", "--if-missing", "--overwrite"], "not allowed with"),
        (["videos", "--out", "x", "--speed", "3"], "unrecognized arguments: --speed"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(videos, words, said):
    with pytest.raises((UserError, ExperienceError)) as caught:
        convert.main(words)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in videos.parent.iterdir()] == ["videos"]


WORDS = ["videos", "--out", "data", "--size", "8"]


def test_if_missing_converts_once_and_refuses_another_recording(videos, capsys):
    convert.main([*WORDS, "--if-missing"])
    before = {path: path.stat().st_mtime_ns for path in (videos.parent / "data").iterdir()}
    capsys.readouterr()
    convert.main([*WORDS, "--if-missing"])
    assert capsys.readouterr().out == "data already holds this recording of video: nothing to do\n"
    with pytest.raises(ExperienceError, match="already holds a recording"):
        convert.main(WORDS)
    for other in (["--fps", "5"], ["--codec", "npz"]):
        with pytest.raises(ExperienceError, match="choose another folder, or replace it with --overwrite"):
            convert.main([*WORDS, *other, "--if-missing"])
    assert {path: path.stat().st_mtime_ns for path in (videos.parent / "data").iterdir()} == before
    convert.main([*WORDS, "--fps", "30", "--overwrite"])
    assert read_index("data").environment["fps"] == 30


def test_what_an_interrupt_left_is_said_and_made_anew(videos, capsys, monkeypatch):
    whole, count = datamodules.convert.read_frames, 0

    def read_frames(*args):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        yield from whole(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(datamodules.convert, "read_frames", read_frames)
        convert.main(WORDS)
    said = capsys.readouterr().err
    assert said == "lit-wm convert: stopped; the finished episodes are kept as an incomplete recording in data\n"
    assert not verify("data").complete
    convert.main([*WORDS, "--if-missing"])
    index = verify("data")
    assert index.complete and sum(split["episodes"] for split in index.splits.values()) == 3


@pytest.mark.slow
def test_a_kill_leaves_a_folder_that_is_converted_into_again(videos):
    write_video(videos / "3.mkv", counting(200, 120, 160))
    for n in range(4, 200):
        os.link(videos / "3.mkv", videos / f"{n}.mkv")
    command = [sys.executable, "-m", "lit_wm", "convert", *WORDS, "--fps", "30"]
    going = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = videos.parent / "data" / ".train-000000.tar.part"
    while not (part.exists() and part.stat().st_size > 3000) and going.poll() is None:
        time.sleep(0.002)
    going.send_signal(signal.SIGKILL)
    assert going.wait() == -signal.SIGKILL
    for n in range(4, 200):
        (videos / f"{n}.mkv").unlink()
    convert.main([*WORDS, "--if-missing"])
    assert verify("data").complete
    assert all(not path.name.startswith(".") for path in (videos.parent / "data").iterdir())


def test_the_verb_loads_neither_torch_nor_pyav_before_it_converts():
    code = (
        "import sys; import lit_wm.cli.convert as c, datamodules.convert; c.parser();"
        " print({'torch', 'lightning', 'av'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_exit_code_two_and_one_line_through_the_dispatcher(tmp_path):
    (tmp_path / "a.mp4").touch()
    command = [sys.executable, "-m", "lit_wm", "convert", str(tmp_path / "a.mp4"), "--out", str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == "" and len(lines) == 2
    assert lines[0].startswith("skipped a.mp4: ") and lines[1].startswith(
        "lit-wm: error: nothing can be used of 1 found"
    )


# ---- what the other verbs make of it --------------------------------------------------------------------------------

MODELS = {
    "genie": ("lit_wm.genie.GenieModule", GENIE),
    "jepa": ("lit_wm.jepa.JEPAModule", JEPA | {"actions": False}),
    "acting_jepa": ("lit_wm.jepa.JEPAModule", JEPA),
    "dreamer": ("lit_wm.dreamer.DreamerModule", {}),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A folder with a recording of six videos of moving noise, and a configuration per model."""
    folder = tmp_path_factory.mktemp("converted")
    noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    for n in range(6):
        write_mp4(folder / "videos" / f"{n}.mp4", (np.roll(noise, n + t, 1) for t in range(60)))
    convert.main([str(folder / "videos"), "--out", str(folder / "data"), "--size", "32", "--holdout", "3"])
    for name, (class_path, arguments) in MODELS.items():
        config = {
            "name": name,
            "model": {"class_path": class_path, "init_args": arguments},
            "data": {
                "class_path": "datamodules.episodes.EpisodeDataModule",
                "init_args": {"root": "data", "batch_size": 2, "clip_length": 4},
            },
            "trainer": {
                "max_steps": 3, "accelerator": "cpu", "limit_val_batches": 2,
                "enable_progress_bar": False, "enable_model_summary": False,
            },
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_inspect_describes_a_recording_without_actions(converted, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    main.run(["inspect", str(converted / "data"), "--verify"])
    said = capsys.readouterr().out
    for line in ("id=video, fps=10.0, size=32", "none: nobody acted", "none, and no rewards", "6 files", "verified"):
        assert line in said


@pytest.mark.parametrize("name", ["dreamer", "acting_jepa"])
def test_models_that_need_actions_refuse_it_in_one_line(converted, monkeypatch, capsys, name):
    monkeypatch.chdir(converted)
    with pytest.raises(SystemExit) as stop:
        main.main(["fit", "-c", f"{name}.yaml"])
    said = capsys.readouterr().err.strip().splitlines()
    labels = "actions and rewards" if name == "dreamer" else "actions"
    assert stop.value.code == 2 and f"learns from {labels}, which this data, being video, does not hold" in said[-1]
    assert not (converted / "runs" / name).exists()


@pytest.mark.slow
def test_genie_and_action_free_jepa_train_on_it_and_are_judged(converted, monkeypatch, capsys):
    from lit_wm.evaluation import settings

    monkeypatch.setattr(
        settings, "Settings", functools.partial(settings.Settings, decoder_steps=3, draws=50, repeats=1)
    )
    monkeypatch.chdir(converted)
    for name in ("genie", "jepa"):
        main.run(["fit", "-c", f"{name}.yaml"])
        assert lit_wm.load(f"runs/{name}").spec == read_index("data").spec
    main.run(["compare", "runs/genie", "runs/jepa", "--clips", "32", "--out", "card"])
    genie, jepa = json.loads((converted / "card" / "scorecard.json").read_text())["runs"]
    assert (genie["steering"], jepa["steering"]) == ("oracle codes", "nothing")
    assert genie["numbers"]["codes/command_ami"]["reason"] == "the data holds no actions"
    assert genie["numbers"]["codes/effect_ami"]["reason"] == "the data holds no true state"
    assert genie["numbers"]["codes/used"]["value"] >= 1 and genie["numbers"]["psnr_native/k4"]["value"] > 0
    assert jepa["numbers"]["codes/command_ami"]["reason"] == "the model has no codes"
    page = (converted / "card" / "scorecard.md").read_text()
    assert "the data holds no actions" in page and "id=video" in page
