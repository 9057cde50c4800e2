"""fit, validate, test and predict: LightningCLI, with runs that have a name and mistakes that are said in one line."""

from __future__ import annotations

import difflib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml
from jsonargparse import set_parsing_settings
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException

from datamodules.episodes import EpisodeDataModule
from datamodules.images import ImageDataModule
from datamodules.replay import ReplayDataModule
from lit_wm.callbacks.checkpoint import StepCheckpoint
from lit_wm.callbacks.episode_report import EpisodeReport
from lit_wm.callbacks.features import FeatureWriter
from lit_wm.callbacks.progress import UpdateProgressBar
from lit_wm.checkpoint_file import BEST_WEIGHTS, CHECKPOINT, AtomicCheckpointIO, read_checkpoint
from lit_wm.cli.unknown_keys import config_files, file_of, nearest, refuse_unknown_empty_keys
from lit_wm.dreamer import DreamerModule
from lit_wm.errors import ExperienceError, UserError
from lit_wm.genie import GenieModule
from lit_wm.jepa import JEPAModule
from lit_wm.loading import CONFIG
from lit_wm.world_model import WorldModel

__all__ = [
    "DreamerModule",
    "EpisodeDataModule",
    "GenieModule",
    "ImageDataModule",
    "JEPAModule",
    "ReplayDataModule",
    "main",
]  # known by their short names

# `${data.init_args.batch_size}` may cross files and see command-line overrides, inside verbs too
set_parsing_settings(omegaconf_absolute_to_relative_paths=True)

RUN_FOLDER = "LIT_WM_RUN_FOLDER"  # set by the first process, read by the ranks it launches


class OneLineParser(LightningArgumentParser):
    """A parser whose errors are one line instead of a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        message = one_line(message)
        raise UserError(message + nearest(message, self)) from ex


NOISE = ("Given value", "Subtypes:", "Does not validate against", "Errors:", "- Expected a <class 'NoneType'>")


def one_line(message: str) -> str:
    """jsonargparse's page about a wrong key, less what only its authors can read."""
    lines = [line.strip() for line in message.splitlines()]
    return " ".join(line.removeprefix("- ") for line in lines if line and not line.startswith(NOISE))


def users_mistake(error: BaseException) -> UserError | ExperienceError | None:
    """Our own message inside the wrapping that jsonargparse puts around an error raised by a constructor."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError | ExperienceError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def refusal(error: BaseException) -> UserError | None:
    """What Lightning refuses while a run goes on, or what a rank sees of it when another one has stopped; None for anything
    else, which is a mistake of ours."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if frame.f_globals.get("__name__", "").startswith("lightning."):
        return UserError(one_line(str(error)))
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error)):
        return UserError("another process of this run failed or is out of reach: see its message")
    return None


@contextmanager
def said_in_one_line(what: str) -> Iterator[None]:
    """Lightning refuses settings that cannot work with errors of four kinds; all are the user's to mend."""
    try:
        yield
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        raise UserError(f"{what}: {one_line(str(error))}") from error


class SaveFitConfig(SaveConfigCallback):
    """``config.yaml`` in the run's ``folder``, written by fit alone: ``fit -c`` of it trains such a run again."""

    def __init__(self, *args: Any, folder: Path, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or trainer.fast_dev_run or not trainer.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.config.clone()
        config.name, config.runs, config.ckpt_path = self.folder.name, str(self.folder.parent), None  # may be NAME-2
        self.parser.save(config, self.folder / CONFIG, skip_none=False, overwrite=True)


class TrainCLI(LightningCLI):
    """LightningCLI in subclass mode; the data describes itself to the model, and runs land in ``runs/NAME``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default="run", help="The run lands in <runs>/<name>.")
        parser.add_argument("--runs", type=str, default="runs", help="Folder of all runs; TensorBoard's logdir.")
        parser.add_lightning_class_args(StepCheckpoint, "checkpoint")
        parser.link_arguments("data.spec", "model.init_args.experience", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        files = config_files(sys.argv[1:])
        try:
            super().parse_arguments(parser, args)
        except UserError as error:
            raise UserError(f"{error}{file_of(str(error), files)}") from error
        refuse_unknown_empty_keys(files, self.config[self.config.subcommand])

    def _parse_ckpt_path(self) -> None:
        """What the configuration says is what runs. Lightning 2.6 would replace it, class and all, by what the
        checkpoint was built with: a changed learning rate would be ignored, and a checkpoint of another route accepted."""

    def before_instantiate_classes(self) -> None:
        """Check the checkpoint before anything is built.

        Raises:
            UserError: no checkpoint where one is needed, or one that cannot be read or is not ours.
        """
        path = self._get(self.config, "ckpt_path")
        if path is None and self.subcommand == "fit":
            return
        last = self.run_folder / CHECKPOINT
        if path is None:
            raise UserError(
                f"{self.subcommand} needs a trained model: give --ckpt_path last (that is {last}) or a .ckpt file"
            )
        if path == "last" and self.subcommand == "fit" and not last.exists():
            return  # a run that was stopped before its first checkpoint begins anew
        if path in ("hpc", "registry"):
            raise UserError(f"--ckpt_path {path}: a run keeps one checkpoint, give --ckpt_path last or a .ckpt file")
        if path == "best":
            path = str(self.run_folder / BEST_WEIGHTS)
            self.config[self.subcommand].ckpt_path = path
            if not Path(path).is_file():
                raise UserError(
                    f"no best weights at {path}: a fit keeps them with lit_wm.callbacks.best.BestWeights among trainer.callbacks"
                )
        checkpoint = read_checkpoint(last if path == "last" else Path(path))
        if self.subcommand == "fit" and "optimizer_states" not in checkpoint:
            raise UserError(
                f"{path} holds weights alone, from which nothing can be gone on with: give --ckpt_path last"
            )

    def _set_seed(self) -> None:
        with said_in_one_line("seed_everything"):
            super()._set_seed()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer") or {}
        folder = self.run_folder
        self._get(self.config_init, "checkpoint").dirpath = str(folder / CHECKPOINT.parent)  # whatever the logger
        self.save_config_kwargs = {**self.save_config_kwargs, "folder": folder}
        if config.get("logger") is None and not config.get("fast_dev_run"):
            kwargs["logger"] = TensorBoardLogger(str(folder.parent), name=folder.name, version="")
        callbacks = config.get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        if config.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks = [*callbacks, UpdateProgressBar()]
        if self.subcommand == "predict":
            callbacks = [*callbacks, FeatureWriter(folder)]
        if self.subcommand == "test":
            callbacks = [*callbacks, EpisodeReport(folder)]
        kwargs["callbacks"] = callbacks
        plugins = config.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        with said_in_one_line("trainer"):
            return super().instantiate_trainer(**kwargs)

    @cached_property
    def run_folder(self) -> Path:
        """``runs/NAME``, or the run that the given checkpoint is of. A fit never writes into another run's folder, begun
        from scratch or from that other's checkpoint: it takes ``NAME-2``, ``-3`` ..."""
        wanted = Path(self._get(self.config, "runs")) / self._get(self.config, "name")
        path = self._get(self.config, "ckpt_path")
        if path in ("last", "best"):
            return wanted
        own = Path(path).parent.parent if path and Path(path).parent.name == CHECKPOINT.parent.name else None
        if self.subcommand != "fit":
            return own or wanted
        if RUN_FOLDER in os.environ and "LOCAL_RANK" in os.environ:
            return Path(os.environ[RUN_FOLDER])
        folder, n = wanted, 1
        while (folder / CHECKPOINT).exists() and (own is None or folder.resolve() != own.resolve()):
            n += 1
            folder = wanted.with_name(f"{wanted.name}-{n}")
        if folder != wanted:
            print(f"{wanted} holds a run (go on with it by --ckpt_path last); this one lands in {folder}")
        os.environ[RUN_FOLDER] = str(folder)
        return folder


def config_file(path: str) -> str:
    """A configuration file by its path here, or among those installed with the package.

    Raises:
        UserError: there is none; names the nearest.
    """
    import lit_wm.configs

    if Path(path).is_file():
        try:
            content = yaml.safe_load(Path(path).read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not YAML: {error}") from error
        if not isinstance(content, dict):
            raise UserError(f"{path} holds no configuration: a mapping with model, data and trainer is expected")
        return path
    installed = Path(lit_wm.configs.__file__).parent
    inside = installed / Path(path).relative_to("configs") if Path(path).parts[:1] == ("configs",) else installed / path
    if inside.is_file():
        return str(inside)
    known = sorted(f"configs/{file.relative_to(installed)}" for file in installed.rglob("*.yaml"))
    nearest = difflib.get_close_matches(path, known, n=3, cutoff=0.3) or known[:3]
    raise UserError(f"no configuration file at {path}; near it: {', '.join(nearest)}")


def find_configs(argv: list[str]) -> list[str]:
    """Replace every ``--config FILE`` by a file that exists."""
    found, expects = [], False
    for word in argv:
        if expects:
            word = config_file(word)
        elif word.startswith(("--config=", "-c=")):
            option, _, path = word.partition("=")
            word = f"{option}={config_file(path)}"
        expects = word in ("-c", "--config")
        found.append(word)
    return found


def main(argv: list[str]) -> None:
    """Run a Lightning verb: ``argv[0]`` is its name."""
    argv = find_configs(argv)
    try:
        run(argv)
    except (MisconfigurationException, OmegaConfBaseException) as error:
        raise UserError(one_line(str(error))) from error
    except (ValueError, RuntimeError) as error:
        mistake = users_mistake(error) or refusal(error)
        if mistake is None:
            raise
        raise mistake from error


def without_advice() -> None:
    """Keep Lightning's tips off the screen: what they advise to install would replace the ``lightning`` command. So too
    a deprecation inside Lightning, and its surprise at a checkpoint folder that holds the checkpoint we resume from."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")


def run(argv: list[str]) -> TrainCLI:
    """Build the command line and run it."""
    without_advice()
    sys.argv[1:] = argv  # Lightning starts the other ranks of a DDP run with these words
    return TrainCLI(
        WorldModel,
        LightningDataModule,
        parser_class=OneLineParser,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=SaveFitConfig,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        auto_configure_optimizers=False,
        trainer_defaults={"max_epochs": -1},
        parser_kwargs={"parser_mode": "omegaconf+"},
    )
