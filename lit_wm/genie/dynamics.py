"""The dynamics model: MaskGIT over the tokens of the next frame, given the past and a latent action (Genie, 2.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_wm.genie.dynamics_settings import DynamicsSettings
from lit_wm.genie.frame_input import FrameInput
from lit_wm.genie.maskgit import draw_mask, maskgit_sample
from lit_wm.genie.st_transformer import Past, STTransformer


class DynamicsModel(nn.Module):
    """Decoder-only ST transformer that fills in masked tokens.

    Layout of the public implementations: frame t itself is masked (frame 0 never), and the action that led to it,
    a~_{t-1}, is added to all its tokens. So the logits of frame t see frames < t, what is left of frame t, and that action.

    Args:
        grid: (rows, columns) of tokens in a frame.
        frames: the longest clip W.
        codebook: (V,C) the code vectors that the token values stand for.
        action_dim: width of a latent action.
        settings: sizes.
    """

    def __init__(
        self, grid: tuple[int, int], frames: int, codebook: Tensor, action_dim: int, settings: DynamicsSettings
    ) -> None:
        super().__init__()
        s = self.settings = settings
        self.frames, self.tokens = frames, grid[0] * grid[1]
        self.input = FrameInput(grid, codebook, action_dim, s)
        self.mask_token = nn.Parameter(torch.randn(s.dim) * 0.02)
        self.transformer = STTransformer(
            grid, frames, s.dim, s.heads, s.ffn, s.blocks, self.input.extra_tokens, qk_norm=s.qk_norm
        )

    def embed(self, tokens_btn: Tensor, mask_btn: Tensor | None, led_bta: Tensor) -> Tensor:
        """Tokens, masked where ``mask_btn``, and the action that led to each frame -> (B,T,[1+]N,D).

        Args:
            tokens_btn: (B,T,N) int64.
            mask_btn: (B,T,N) bool; what stands in ``tokens_btn`` there has no influence. None masks nothing.
            led_bta: actions that led to these frames; one fewer when the clip begins here, because nothing led to its first.
        """
        h_btnd = self.input.token_vectors(tokens_btn)
        if mask_btn is not None:
            h_btnd = torch.where(mask_btn[..., None], self.mask_token, h_btnd)
        return self.input(h_btnd, led_bta)

    def hidden(self, tokens_btn: Tensor, action_bta: Tensor, mask_btn: Tensor) -> Tensor:
        """A whole clip in one pass: (B,T,N), actions (B,T-1,A), mask (B,T,N) -> (B,T,N,D)."""
        h_btnd = self.transformer(self.embed(tokens_btn, mask_btn, action_bta))
        return h_btnd[:, :, self.input.extra_tokens :]

    def forward(self, tokens_btn: Tensor, action_bta: Tensor, mask_btn: Tensor) -> Tensor:
        """As :meth:`hidden`, as logits (B,T,N,V)."""
        return self.input.logits(self.hidden(tokens_btn, action_bta, mask_btn))

    def loss(self, tokens_btn: Tensor, action_bta: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`masked_loss` under a mask drawn as the paper draws it (:func:`~lit_wm.genie.maskgit.draw_mask`)."""
        mask_btn = draw_mask(tokens_btn.shape, tokens_btn.device, self.settings.whole_frames)
        return self.masked_loss(tokens_btn, action_bta, mask_btn)

    def masked_loss(self, tokens_btn: Tensor, action_bta: Tensor, mask_btn: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the masked tokens, and only of those.

        Returns:
            (M,) nats of each masked token, and (M,) bool whether it was the likeliest.
        """
        targets_m = tokens_btn[mask_btn]  # read before anything is masked
        logits_mv = self.input.logits(self.hidden(tokens_btn, action_bta, mask_btn)[mask_btn])
        return F.cross_entropy(logits_mv.float(), targets_m, reduction="none"), logits_mv.argmax(-1) == targets_m

    def read(self, tokens_btn: Tensor, action_bla: Tensor, known: int, past: Past | None) -> tuple[None, Past]:
        """Take finished frames into the cache.

        Args:
            tokens_btn: frames ``known`` to the last, L-1, of a window.
            action_bla: (B,L,A) the actions after each of the window's frames; the last one, to be taken now, is not read here.
            known: frames that ``past`` holds.
            past: of them; None when ``known`` is 0.
        """
        led_bta = action_bla[:, max(known - 1, 0) : -1]
        return None, self.transformer.step(self.embed(tokens_btn, None, led_bta), past)[1]

    def sample(
        self, read: tuple[None, Past], action_b1a: Tensor, temperature: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """(B,N) int64: the next frame, refined step by step while the past is taken from the cache.

        Args:
            read: what :meth:`read` returned.
            action_b1a: (B,1,A) the action that leads to this frame.
            temperature: multiplies the settings' temperature; 0 takes the likeliest tokens.
            generator: source of randomness.
        """
        _, past = read

        def logits_of(tokens_bn: Tensor, mask_bn: Tensor) -> Tensor:
            h_b1nd = self.embed(tokens_bn[:, None], mask_bn[:, None], action_b1a)
            return self.input.logits(self.transformer(h_b1nd, past)[:, 0, self.input.extra_tokens :])

        shape = (len(action_b1a), self.tokens)
        steps, temperature = self.settings.sampling_steps, temperature * self.settings.temperature
        return maskgit_sample(logits_of, shape, steps, temperature, generator, action_b1a.device)
