"""The settings of Genie's parts, read from a config and checked."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch.utilities import rank_zero_warn

from lit_wm.errors import UserError, check_bounds, check_choice, check_shares, refuse_given
from lit_wm.genie.dynamics_settings import ACTIONS, KINDS, DynamicsSettings
from lit_wm.genie.latent_action import LatentActionSettings
from lit_wm.genie.learning_order import DECAYS, ORDERS, PARTS, OptimizerSettings
from lit_wm.genie.tokenizer import TokenizerSettings

OBJECTIVES = ("pixel", "dynamics", "both")
TRANSFORMER = {"dim": 4, "heads": 1, "ffn": 1}
CODER = {**TRANSFORMER, "patch": 1, "encoder_blocks": 0, "decoder_blocks": 0, "codes": 2, "latent_dim": 1}
CODER |= {"continuous_warmup": 0, "beta": 0}
LEAST = {
    "tokenizer": CODER,
    "lam": {
        **CODER,
        "kl": 0,
        "downsample": 1,
        "shift": 0,
        "changed_weight": 0,
        "warmup_noise": 0,
        "burn_in": 0,
    },
    "dynamics": {**TRANSFORMER, "blocks": 1, "sampling_steps": 1, "temperature": 0},
}


def check_parts(tokenizer: TokenizerSettings, lam: LatentActionSettings, dynamics: DynamicsSettings) -> None:
    """Refuse sizes that cannot work, and settings that nothing would read.

    Raises:
        UserError: names the first.
    """
    for part, settings in (("tokenizer", tokenizer), ("lam", lam), ("dynamics", dynamics)):
        check_bounds(f"genie model's {part}", vars(settings), LEAST[part])
    if lam.input == "tokens" and lam.patch != tokenizer.patch:
        raise UserError(f"lam.input 'tokens' of the genie model: lam.patch must be the tokenizer's {tokenizer.patch}")
    check_choice("dynamics.kind of the genie model", dynamics.kind, KINDS)
    check_choice("dynamics.action of the genie model", dynamics.action, ACTIONS)
    for part, settings in (("tokenizer", tokenizer), ("lam", lam)):
        shares = {"decay": settings.decay, "restart_below": settings.restart_below}
        check_shares(f"genie model's {part}", shares)
    check_shares("genie model's dynamics", {"whole_frames": dynamics.whole_frames})
    if dynamics.kind == "autoregressive":
        refuse_given("genie model's dynamics", dynamics, ("sampling_steps", "whole_frames"), "kind is autoregressive")
        check_bounds("genie model's autoregressive dynamics", vars(dynamics), {"blocks": 2})


def check_learning(order: str, lam_objective: str, optimizers: Mapping[str, OptimizerSettings]) -> None:
    """Refuse names that do not exist, and what an order has no room for.

    Raises:
        UserError: names the first.
    """
    check_choice("order of the genie model", order, ORDERS)
    check_choice("lam_objective of the genie model", lam_objective, OBJECTIVES)
    for part in PARTS:
        check_choice(f"decay of the {part} optimizer of the genie model", optimizers[part].decay, DECAYS)
        owner = f"genie model's {part}_optimizer"
        check_bounds(owner, vars(optimizers[part]), {"warmup_steps": 0}, positive=("lr",))
    if order in ("separate", "latent_action", "dynamics") and lam_objective != "pixel":
        raise UserError(f"order '{order}' of the genie model trains one part at a time: lam_objective must be pixel")


def check_turns(of_parts: Mapping[str, tuple[int, int | None]], warmups: Mapping[str, int]) -> None:
    """Refuse a turn (:func:`~lit_wm.genie.learning_order.turns`) that its part's continuous warm-up would fill.

    Raises:
        UserError: names the first.
    """
    for part, (begin, end) in of_parts.items():
        if part in warmups and end is not None and warmups[part] >= max(end - begin, 1):
            raise UserError(
                f"{part}.continuous_warmup {warmups[part]} leaves none of the {end - begin} {part}_steps of the genie model to"
                " its codebook"
            )


def warn_of_turns(of_parts: Mapping[str, tuple[int, int | None]], max_steps: int) -> None:
    """Warn of parts whose turn does not come before the fit ends."""
    late = [part for part, (begin, _) in of_parts.items() if 0 < max_steps <= begin]
    if late:
        rank_zero_warn(
            f"trainer.max_steps {max_steps} ends before the turn of {' and '.join(late)} (update {of_parts[late[0]][0]}), which"
            " will not be trained"
        )


def warn_of_clips(frames: int, clip_length: int) -> None:
    """Warn of a window of ``frames`` that no clip fills."""
    if clip_length < frames:
        rank_zero_warn(
            f"clips of {clip_length} frames train a genie model that remembers {frames}: in play its window grows to times that"
            f" it never saw; set model.init_args.frames to {clip_length}, or clip_length to {frames}"
        )


def check_sharded(parts: Mapping[str, TokenizerSettings | LatentActionSettings]) -> None:
    """Refuse under FSDP2 a codebook that is learnt by gradient and also set from outside: what is set is lost when its
    parameters are split again.

    Raises:
        UserError: names the part.
    """
    for part, s in parts.items():
        if s.codebook == "gradient" and (s.kmeans_start or s.restart_below):
            raise UserError(
                f"{part}.codebook 'gradient' takes neither kmeans_start nor restart_below under FSDP2: use 'ema', or"
                " configs/machine/ddp.yaml"
            )
