"""GenieModule: tokenizer, latent action model and dynamics as one world model (Genie, Bruce et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from lit_wm.contract import Batch, State, map_state, repeat_samples
from lit_wm.distributed import global_sum, world_size
from lit_wm.errors import UserError, check_bounds, check_shares
from lit_wm.genie.dynamics_settings import DynamicsSettings
from lit_wm.genie.latent_action import LatentActionModel, LatentActionSettings
from lit_wm.genie.learning_order import PARTS, OptimizerSettings, needed_parts, trained_parts, turns
from lit_wm.genie.rollout import make_dynamics, rollout
from lit_wm.genie.settings import (
    check_learning,
    check_parts,
    check_sharded,
    check_turns,
    warn_of_clips,
    warn_of_turns,
)
from lit_wm.genie.st_transformer import BLOCKS
from lit_wm.genie.take_over import take_over
from lit_wm.genie.tokenizer import TokenizerSettings, VideoTokenizer
from lit_wm.genie.windows import continue_windows, groups_by_length, windows_of
from lit_wm.nn.moments import spatial_moments
from lit_wm.settings import settings_from
from lit_wm.world_model import WorldModel

DECODE_WINDOWS = 256  # windows decoded at once: bounds memory, not results
TOKENIZER, LATENT_ACTION, DYNAMICS = TokenizerSettings(), LatentActionSettings(), DynamicsSettings()
TOKENIZER_OPTIMIZER = OptimizerSettings(lr=3e-4, warmup_steps=10_000, decay="constant")
WORLD_OPTIMIZER = OptimizerSettings()


class GenieModule(WorldModel):
    """A world that is learnt from video alone and played through codes it found itself.

    Consumes frames only. ``action_space`` is ``codes``: :meth:`imagine` takes what :meth:`infer_actions` gives. Clips lie
    within one episode; a clip with ``is_first`` after its first row is refused, because no code can stand for a reset.

    Args:
        experience: description of the data (``ExperienceSpec.to_dict()``); must hold the picture ``frames``.
        frames: W, the longest clip it is trained on and the most it remembers. The paper's 16.
        tokenizer: sizes of the video tokenizer.
        lam: sizes and switches of the latent action model.
        dynamics: sizes of the dynamics model and its sampling.
        order: ``staged``: the tokenizer for ``tokenizer_steps`` updates, then, with the tokenizer frozen, the latent action
            model and the dynamics together, in one fit (the paper's order). ``joint``: everything from the first update (the
            article's order). ``separate``: one part after the other, in one fit. ``tokenizer``: that part alone. ``world``:
            the other two, on a tokenizer from ``tokenizer_checkpoint``. ``latent_action``: that part alone, and ``dynamics``:
            the rest, on parts from ``tokenizer_checkpoint`` and ``lam_checkpoint``. Counted by ``trainer.global_step``, so a
            resumed run is where it was.
        tokenizer_steps: updates of the tokenizer in the orders ``staged`` and ``separate``; the paper's CoinRun case study has
            300,000.
        lam_steps: updates of the latent action model in the order ``separate``. The paper's 200,000, which it shares with the
            dynamics there.
        tokenizer_checkpoint: Genie run (its folder or a checkpoint) whose tokenizer is taken over when a fit begins; needed by
            ``world`` and ``dynamics``.
        lam_checkpoint: likewise of its latent action model; needed by ``dynamics``.
        lam_objective: what teaches the codes. ``pixel``: the LAM's own decoder, and the dynamics takes them with a stopped
            gradient (paper). ``dynamics``: only the cross-entropy of the dynamics (article). ``both``: both.
        tokenizer_optimizer: the paper's 3e-4, warm-up 10k, then constant.
        lam_optimizer: the paper's 3e-5 -> 3e-6, warm-up 5k, cosine.
        dynamics_optimizer: likewise.
        betas: of AdamW, the paper's (.9, .9).
        weight_decay: of AdamW, the paper's 1e-4.
        compile: every block is compiled by ``torch.compile``; the numbers stay the same. On a CPU it needs a C++ compiler.

    Raises:
        UserError: an unknown name or key, data without ``frames``, or sizes that do not fit the picture.
    """

    route = "genie"
    action_space = "codes"
    labels = ("frames",)
    can_be_sharded = True

    def __init__(
        self,
        experience: dict[str, Any],
        frames: int = 16,
        tokenizer: TokenizerSettings = TOKENIZER,
        lam: LatentActionSettings = LATENT_ACTION,
        dynamics: DynamicsSettings = DYNAMICS,
        order: str = "staged",
        tokenizer_steps: int = 300_000,
        lam_steps: int = 200_000,
        tokenizer_checkpoint: str | None = None,
        lam_checkpoint: str | None = None,
        lam_objective: str = "pixel",
        tokenizer_optimizer: OptimizerSettings = TOKENIZER_OPTIMIZER,
        lam_optimizer: OptimizerSettings = WORLD_OPTIMIZER,
        dynamics_optimizer: OptimizerSettings = WORLD_OPTIMIZER,
        betas: tuple[float, float] = (0.9, 0.9),
        weight_decay: float = 1e-4,
        compile: bool = False,
    ) -> None:
        super().__init__(experience)
        optimizers = {"tokenizer": tokenizer_optimizer, "lam": lam_optimizer, "dynamics": dynamics_optimizer}
        self.optimizers_of = {
            part: settings_from(OptimizerSettings, given, f"{part}_optimizer", "genie")
            for part, given in optimizers.items()
        }
        t = settings_from(TokenizerSettings, tokenizer, "tokenizer", "genie")
        a = settings_from(LatentActionSettings, lam, "lam", "genie")
        d = settings_from(DynamicsSettings, dynamics, "dynamics", "genie")
        given = {
            "frames": frames,
            "tokenizer_steps": tokenizer_steps,
            "lam_steps": lam_steps,
            "weight_decay": weight_decay,
        }
        check_bounds("genie model", given, {"frames": 2, "tokenizer_steps": 0, "lam_steps": 0, "weight_decay": 0})
        check_shares("genie model", {"betas[0]": betas[0], "betas[1]": betas[1]})
        check_parts(t, a, d)
        check_learning(order, lam_objective, self.optimizers_of)
        self.turns = turns(order, tokenizer_steps, lam_steps)
        check_turns(self.turns, {"tokenizer": t.continuous_warmup, "lam": a.continuous_warmup})
        if "frames" not in self.spec.pictures:
            raise UserError("the genie model needs the picture 'frames', which this data does not hold")
        height, width, channels = self.spec.observations["frames"]
        picture = (channels, height, width)
        try:
            self.tokenizer = VideoTokenizer(picture, frames, t)
            codebook = self.tokenizer.quantizer.codebook
            self.lam = LatentActionModel(picture, frames, a, codebook.shape[1])
            self.dynamics = make_dynamics(self.tokenizer.grid, frames, codebook, a.latent_dim, d)
        except ValueError as error:  # a patch that does not divide the picture, heads that do not divide the width
            raise UserError(f"the genie model cannot be built: {error}") from error
        self.frames, self.order = frames, order
        self.codes = a.codes if self.lam.discrete else None
        self.taken_from = {"tokenizer": tokenizer_checkpoint, "lam": lam_checkpoint}
        self.lam_objective = lam_objective
        self.betas, self.weight_decay = tuple(betas), weight_decay
        # plain types, so that a checkpoint opens without running code
        betas, tokenizer, lam, dynamics = list(betas), asdict(t), asdict(a), asdict(d)
        tokenizer_optimizer, lam_optimizer, dynamics_optimizer = (asdict(self.optimizers_of[part]) for part in PARTS)
        self.save_hyperparameters()

    # ---- learning ------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of the parts that learn now (:func:`trained_parts`), and beginning with ``_`` what is only logged."""
        x_btchw = self.frames_of(batch)
        if not (least := self.lam.settings.burn_in + 2) <= x_btchw.shape[1] <= self.frames:
            raise UserError(
                f"clips of {x_btchw.shape[1]} frames, but the genie model trains on {least} to {self.frames}"
            )
        step = self.updates
        parts = trained_parts(self.turns, step)
        losses: dict[str, Tensor] = {}
        tokens_btn = None
        if "tokenizer" in parts:
            seen = self.tokenizer(x_btchw, continuous=step < self.tokenizer.settings.continuous_warmup)
            tokens_btn = seen.tokens
            losses |= {"tokenizer_pixels": seen.pixel_loss, "tokenizer_vq": seen.vq_loss}
            losses["_tokenizer_perplexity"] = self.tokenizer.quantizer.perplexity()
        elif "dynamics" in parts:
            with torch.no_grad():
                tokens_btn = self.tokenizer.encode(x_btchw)
        if "lam" in parts:
            of_actions, action_bta = self._latent_action_losses(x_btchw, tokens_btn, step - self.turns["lam"][0])
            losses |= of_actions
        elif "dynamics" in parts:
            with torch.no_grad():
                action_bta = self.lam.bottleneck.embed(
                    self.lam.encode(x_btchw, self._code_vectors(x_btchw, tokens_btn))
                )
        if "dynamics" in parts:
            losses |= self._dynamics_losses(tokens_btn, action_bta)
        return losses

    def sharded_blocks(self) -> Iterable[nn.Module]:
        """Every block of every transformer."""
        return [module for module in self.modules() if isinstance(module, tuple(BLOCKS.values()))]

    @torch.no_grad()
    def start_from(self, batch: Batch) -> None:
        """Start the codebooks that begin by k-means. Until then nearly all vectors share a few random codes."""
        x_btchw = self.frames_of(batch)[:, : self.frames]
        looks = (
            (self.tokenizer, self.tokenizer.quantizer, lambda: x_btchw),
            (self.lam, self.lam.bottleneck, lambda: self.lam.look(x_btchw, self._code_vectors(x_btchw))),
        )
        for part, quantizer, look in looks:
            if part.settings.kmeans_start:
                quantizer.train()(part.latents(look()))
                quantizer.train(self.training)
        self.dynamics.input.see_codes(self.tokenizer.quantizer.codebook)

    @torch.no_grad()
    def _code_vectors(self, x_btchw: Tensor, tokens_btn: Tensor | None = None) -> Tensor | None:
        """(B,T,N,C) the tokens' code vectors where the latent action model sees those, else None."""
        if self.lam.settings.input == "pixels":
            return None
        return self.tokenizer.quantizer.embed(self.tokenizer.encode(x_btchw) if tokens_btn is None else tokens_btn)

    def _latent_action_losses(
        self, x_btchw: Tensor, tokens_btn: Tensor | None, step: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of the latent action model at its own update ``step``, and the actions (B,T-1,A) as the dynamics gets them."""
        by_pixels = self.lam_objective != "dynamics"
        continuous = step < self.lam.settings.continuous_warmup
        actions = self.lam(x_btchw, self._code_vectors(x_btchw, tokens_btn), continuous, predict_pixels=by_pixels)
        losses = {"lam_bottleneck": actions.bottleneck_loss}
        if self.lam.discrete:
            losses["_lam_perplexity"] = self.lam.bottleneck.perplexity()
        if by_pixels:
            losses["lam_pixels"] = actions.pixel_loss
        return losses, actions.vectors.detach() if self.lam_objective == "pixel" else actions.vectors

    def _dynamics_losses(self, tokens_btn: Tensor, action_bta: Tensor) -> dict[str, Tensor]:
        if self.training:
            self.dynamics.input.see_codes(self.tokenizer.quantizer.codebook)  # in the order 'joint' they still move
        nats_m, right_m = self.dynamics.loss(tokens_btn, action_bta)
        counted = nats_m.new_tensor(len(nats_m))
        if self.training:  # the mean over all ranks' tokens that count, not the mean of their means
            counted = global_sum(counted) / world_size()
        return {"dynamics_ce": nats_m.sum() / counted.clamp(min=1), "_dynamics_accuracy": right_m.float().mean()}

    def configure_optimizers(self) -> dict[str, Any]:
        """One AdamW with a group per part, and each group's own schedule. A part without gradients is left alone."""
        total = self.trainer.max_steps
        if total < 0 and any(s.decay != "constant" for s in self.optimizers_of.values()):
            raise UserError("trainer.max_steps is not set, which the genie model needs for the decay of its lr")
        groups, factors = [], []
        for part in PARTS:
            settings = self.optimizers_of[part]
            learned = [p for p in getattr(self, part).parameters() if p.requires_grad]
            groups.append({"params": learned, "lr": settings.lr, "name": part})
            factors.append(self._factor_of(part, settings, total))
        optimizer = AdamW(groups, betas=self.betas, weight_decay=self.weight_decay)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factors), "interval": "step"},
        }

    def _factor_of(self, part: str, settings: OptimizerSettings, total: int) -> Any:
        begin, end = self.turns.get(part, (0, None))
        return lambda step: settings.factor(step - begin, (total if end is None else end) - begin)

    def configure_model(self) -> None:
        """Split blocks over ranks (:class:`~lit_wm.world_model.WorldModel`), and compile what is then there."""
        super().configure_model()
        if self.hparams.compile:
            for block in self.sharded_blocks():
                block.compile()

    def setup(self, stage: str) -> None:
        """Warn of parts whose turn never comes, and of times that no clip reaches. Tell DDP that not all parts learn in every step:
        as it comes it waits for ever for gradients of those that do not.

        Raises:
            UserError: FSDP2 with codebooks that it cannot hold.
        """
        super().setup(stage)
        if stage == "fit":
            warn_of_turns(self.turns, self.trainer.max_steps)
            warn_of_clips(self.frames, getattr(getattr(self.trainer, "datamodule", None), "clip_length", self.frames))
        strategy = self.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy):
            check_sharded({"tokenizer": self.tokenizer.settings, "lam": self.lam.settings})
        waits = any(
            s.codebook == "gradient" and s.continuous_warmup for s in (self.tokenizer.settings, self.lam.settings)
        )
        all_learn = self.order == "joint" and self.lam_objective != "dynamics" and not waits
        if isinstance(strategy, DDPStrategy) and not all_learn:
            strategy._ddp_kwargs["find_unused_parameters"] = True

    def on_fit_start(self) -> None:
        """Take over trained parts when a fit begins; a resumed fit has them in its own checkpoint."""
        if self.trainer.ckpt_path is not None:
            return
        for part, path in self.taken_from.items():
            if path is not None:
                take_over(getattr(self, part), part, path)
            elif part in needed_parts(self.order, self.lam.settings.input):
                raise UserError(
                    f"order '{self.order}' of the genie model needs '{part}_checkpoint', a checkpoint with a trained {part}"
                )

    def frames_of(self, batch: Batch) -> Tensor:
        """(B,T,C,H,W) float in [0, 1], made on the device.

        Raises:
            UserError: an episode begins inside a clip.
        """
        if "is_first" in batch and bool(batch["is_first"][:, 1:].any()):
            raise UserError(
                "'is_first' is set inside a clip: the genie model needs clips that lie within one episode (cross_episodes false)"
            )
        return batch["frames"].to(self.dtype) / 255

    # ---- the contract --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def observe(self, batch: Batch) -> State:
        """Windows of the last W frames' tokens, the codes that led to them, and which of them exist (:func:`windows_of`)."""
        x_btchw = self.frames_of(batch)
        tokens_btn = self.tokenizer.encode(x_btchw)
        codes = self._codes_between(x_btchw, tokens_btn)
        codes = F.pad(codes, (*[0] * (2 * (codes.ndim - 2)), 1, 0))  # nothing led to the first frame
        return windows_of(tokens_btn, codes, torch.ones_like(tokens_btn[..., 0], dtype=torch.bool), self.frames)

    @torch.no_grad()
    def infer_actions(self, batch: Batch) -> Tensor:
        """(B,T-1) int64 codes, or with ``lam.codebook: vae`` (B,T-1,latent_dim) vectors; entry t sees frames <= t+1."""
        return self._codes_between(self.frames_of(batch))

    def _codes_between(self, x_btchw: Tensor, tokens_btn: Tensor | None = None) -> Tensor:
        if x_btchw.shape[1] < 2:
            nothing = x_btchw.new_zeros(len(x_btchw), 0, self.lam.settings.latent_dim)
            return nothing[..., 0].long() if self.lam.discrete else nothing
        return self.lam.encode(x_btchw, self._code_vectors(x_btchw, tokens_btn))

    @torch.no_grad()
    def imagine(
        self,
        state: State,
        actions: Tensor,
        samples: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> State:
        """Frames by MaskGIT, one after another. ``temperature`` multiplies the settings' own; 0 takes the likeliest tokens.

        Args:
            state: leading axis (B,).
            actions: (B,K) int64 codes, or (B,K,latent_dim) vectors: what :meth:`infer_actions` gives.
            samples: S; with temperature 0 all are equal and computed once.
            temperature: see above.
            generator: source of randomness.

        Raises:
            UserError: a code outside the codebook.
        """
        self.check_actions(actions)
        drawn = samples if temperature > 0 else 1
        state = repeat_samples(state, drawn)
        actions = actions.to(state["codes"].dtype).repeat_interleave(drawn, 0)
        tokens_bkn = state["tokens"].new_zeros(*actions.shape[:2], self.tokenizer.tokens)
        for length, rows in groups_by_length(state["valid"]):
            tokens_bkn[rows] = rollout(
                self.dynamics,
                state["tokens"][rows, -length:],
                self.lam.bottleneck.embed(state["codes"][rows, -length:][:, 1:]),
                self.lam.bottleneck.embed(actions[rows]),
                temperature,
                generator,
            )
        future = continue_windows(state, tokens_bkn, actions)
        future = map_state(future, lambda x: x.unflatten(0, (-1, drawn)))
        return map_state(future, lambda x: x.expand(-1, samples, *x.shape[2:]))

    def check_actions(self, actions: Tensor) -> None:
        """Refuse what no latent action is.

        Raises:
            UserError: a code outside the codebook, or vectors for codes and the other way round.
        """
        s = self.lam.settings
        if self.lam.discrete:
            if actions.ndim != 2 or (actions.numel() and not 0 <= actions.min() <= actions.max() < s.codes):
                raise UserError(f"codes must lie in 0..{s.codes - 1}: give what infer_actions returns")
        elif actions.shape[2:] != (s.latent_dim,):
            raise UserError(
                f"this model's actions are vectors of {s.latent_dim} numbers: give what infer_actions returns"
            )

    def features(self, state: State) -> Tensor:
        """(..., 4 * latent_dim): where the codes lie. See :func:`~lit_wm.nn.moments.spatial_moments`."""
        return spatial_moments(self.feature_map(state), self.tokenizer.grid)

    def feature_map(self, state: State) -> Tensor:
        """(..., N, 2 * latent_dim): the codes of the current frame's tokens beside those of the frame before, so that
        movement can be read off. Where there is none before, the current frame stands in for it."""
        tokens = state["tokens"]
        now, before = tokens[..., -1, :], tokens[..., -2, :]
        before = torch.where(state["valid"][..., -2, None], before, now)
        embed = self.tokenizer.quantizer.embed
        return torch.cat([embed(now), embed(before)], -1).detach()

    def targets(self, batch: Batch) -> Tensor:
        """The features of the frames themselves: a perfect prediction gets every token right."""
        return self.features(self.observe(batch))

    @torch.no_grad()
    def decode(self, state: State) -> Tensor:
        """(..., C,H,W) by the tokenizer's decoder, which sees the whole window."""
        lead = state["valid"].shape[:-1]
        tokens_mwn, valid_mw = state["tokens"].flatten(0, len(lead) - 1), state["valid"].flatten(0, len(lead) - 1)
        pictures = torch.empty(len(valid_mw), *self.tokenizer.picture, device=self.device)
        for length, rows in groups_by_length(valid_mw):
            for some in rows.split(DECODE_WINDOWS):
                pictures[some] = self.tokenizer.decode(tokens_mwn[some, -length:])[:, -1].to(pictures.dtype)
        return pictures.unflatten(0, lead)

    def log_prob(self, state: State, batch: Batch) -> None:
        """None: MaskGIT defines no density of a frame. It draws tokens in an order that depends on the draws, so the
        probability of a frame is a sum over all orders; and tokens are not pixels, other tokenizers have others."""
        return None
