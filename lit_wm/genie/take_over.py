"""A part of Genie out of another run's checkpoint, refused where it would compute something else here."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_wm.checkpoint_file import read_checkpoint
from lit_wm.distributed import load_weights
from lit_wm.errors import UserError
from lit_wm.genie.latent_action import LatentActionModel, LatentActionSettings
from lit_wm.genie.tokenizer import TokenizerSettings, VideoTokenizer

OF_LEARNING = (
    "beta",
    "decay",
    "kmeans_start",
    "restart_below",
    "continuous_warmup",
    "warmup_noise",
    "foreground_weight",
)
OF_LEARNING += (
    "kl",
    "shift",
    "changed_weight",
    "burn_in",
)  # how a part learns; all other settings say what it computes
WARM_UP = (".recent", ".recorded")  # what a quantizer keeps of its continuous warm-up


def take_over(module: VideoTokenizer | LatentActionModel, part: str, path: str) -> None:
    """Copy a part out of a Genie run. How far its warm-up had come stays behind.

    Args:
        module: what takes it over.
        part: ``tokenizer`` or ``lam``.
        path: run folder or checkpoint file.

    Raises:
        UserError: no such file, another route's checkpoint, or a part that computes something else, such as another number of
            codes.
    """
    weights = weights_of(part, path, module.settings)
    own = {name: value for name, value in module.state_dict().items() if name.endswith(WARM_UP)}
    try:
        load_weights(module, own | weights)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{part}_checkpoint {path} was made for other pictures or clips: {reason}") from error


def weights_of(part: str, path: str, settings: TokenizerSettings | LatentActionSettings) -> dict[str, Tensor]:
    """The weights of a part, less what its warm-up kept for the start of the codebook.

    Raises:
        UserError: as for :func:`take_over`; names the first setting that differs from ``settings``.
    """
    checkpoint = read_checkpoint(Path(path), "genie")
    there, here = (plain(one) for one in (checkpoint["hyper_parameters"][part], asdict(settings)))
    for name in here:
        if name not in OF_LEARNING and there.get(name) != here[name]:
            raise UserError(
                f"{part}.{name} is {there.get(name)} in {part}_checkpoint {path}, {here[name]} here: set the same, or take"
                " another checkpoint"
            )
    begins = f"{part}."
    weights = {k.removeprefix(begins): v for k, v in checkpoint["state_dict"].items() if k.startswith(begins)}
    return {name: value for name, value in weights.items() if not name.endswith(WARM_UP)}


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """With lists for tuples, as a checkpoint knows them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
