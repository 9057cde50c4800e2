"""``lit-wm doctor``: what this machine offers, for a bug report or a first look."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from lit_wm.cli.parser import OneLineArgumentParser

PACKAGES = (
    "lightning",
    "torch",
    "torchmetrics",
    "webdataset",
    "omegaconf",
    "jsonargparse",
    "tensorboard",
    "gymnasium",
    "numpy",
    "ale-py",
    "envpool",
    "av",
)
EXTRAS = {
    "ale-py": "pip install 'lit-wm[atari]'; GPL-2.0",
    "envpool": "pip install 'lit-wm[envpool]'; 750 MB",
    "av": "pip install 'lit-wm[video]'; brings FFmpeg",
}


def main(argv: list[str]) -> None:
    """Print versions, devices and threads."""
    OneLineArgumentParser(prog="lit-wm doctor", description=__doc__).parse_args(argv)
    import torch

    import lit_wm

    print(f"lit_wm        {lit_wm.__version__}")
    print(f"python        {platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in PACKAGES:
        print(f"{package:<13} {version(package)}")
    print(f"cores         {os.cpu_count()}; torch uses {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(i).total_memory / 2**30
            print(f"cuda:{i}        {torch.cuda.get_device_name(i)}, {memory:.0f} GiB")
    else:
        print("cuda          none")
    print(f"mps           {'yes' if torch.backends.mps.is_available() else 'none'}")


def version(package: str) -> str:
    """The installed version, or how to get it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"not installed ({EXTRAS[package]})" if package in EXTRAS else "not installed"
