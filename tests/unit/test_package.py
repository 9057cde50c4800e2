"""setup.cfg names every package; a built wheel works outside the clone."""

import configparser
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_every_folder_of_code_is_packaged():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    named = set(config["options"]["packages"].split())
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in ("lit_wm", "datamodules")
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert named == folders | {"lit_wm.configs"}


def test_every_python_that_is_allowed_up_to_the_newest_tested_is_named():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["author"]
    for version in ("3.11", "3.12", "3.13"):
        assert f"Programming Language :: Python :: {version}" in config["metadata"]["classifiers"]


def test_the_lock_holds_what_setup_cfg_asks_for():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    optional = [extras[name] for name in ("atari", "envpool", "video")]
    asked = "\n".join([config["options"]["install_requires"], *optional]).split("\n")
    names = {line.split(">")[0].split("[")[0].strip() for line in asked if line.strip()}
    lines = (ROOT / "requirements" / "lock.txt").read_text().lower().splitlines()
    assert names <= {line.split("==")[0] for line in lines}
    assert all("==" in line for line in lines if not line.startswith("#"))


@pytest.mark.slow
def test_a_built_wheel_records_fits_and_compares_elsewhere(tmp_path):
    """Installed without the clone, on this environment's libraries."""
    source = tmp_path / "source"
    for name in ("lit_wm", "datamodules", "configs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", str(ROOT / name), str(target)], check=True)
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "dist"),
        str(source),
    ]
    built = subprocess.run(build, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-2000:]
    venv.create(tmp_path / "venv", system_site_packages=False, with_pip=False, symlinks=True)
    site = next((tmp_path / "venv" / "lib").glob("python3*")) / "site-packages"
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    install = ["install", "--no-deps", "--no-index", "--quiet", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, capture_output=True)
    libraries = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "libraries.pth").write_text(libraries + "\n")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}

    def lit_wm(*words: str) -> str:
        command = [str(tmp_path / "venv" / "bin" / "python"), "-m", "lit_wm", *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
        return done.stdout

    where = subprocess.run(
        [str(tmp_path / "venv" / "bin" / "python"), "-c", "import lit_wm; print(lit_wm.__file__)"],
        cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(tmp_path))
    lit_wm("record", "--env", "sprites", "--steps", "3500", "--out", "data/sprites")
    lit_wm("fit", "--config", "configs/jepa/sprites.yaml", "--trainer.max_steps", "3", "--trainer.accelerator", "cpu")
    assert "jepa_sprites" in lit_wm("compare", "runs/jepa_sprites", "--clips", "32", "--out", "card")
    assert (tmp_path / "card" / "scorecard.json").exists()
