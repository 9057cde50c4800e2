"""The dynamics model: MaskGIT over the tokens of the next frame, given the past and a latent action (Genie, 2.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_wm.genie.st_transformer import Past, STTransformer


@dataclass(frozen=True)
class DynamicsSettings:
    """Sizes of the dynamics model; the defaults are the paper's CoinRun case study (appendix F) unless said otherwise.

    Args:
        dim: width of the transformer.
        heads: attention heads.
        ffn: hidden width of the feed-forward layers; the paper is silent, 4 x ``dim`` is usual.
        blocks: ST blocks.
        sampling_steps: MaskGIT steps per frame.
        temperature: divides the logits when sampling; the main paper's 2 (CoinRun uses 1). What callers ask for
            (``imagine(temperature=...)``) multiplies it.
        know_codes: tokens enter as the tokenizer's code vectors, and logits gain a term linear in them, so that what is learnt
            of one token serves its likes. Off, the paper's plain vocabulary, every token is learnt by itself.
        neighbours: each token enters together with the eight around it, by a 3x3 convolution within its frame. Without it (the
            paper) attention alone must learn that what leaves one place enters the next.
        whole_frames: in training, each frame but the first is left whole with this probability. In the paper (0) a clip's
            frames are all masked at one rate, so that hardly any prediction is learnt from a past as whole as when sampling.
    """

    dim: int = 512
    heads: int = 8
    ffn: int = 2048
    blocks: int = 12
    sampling_steps: int = 25
    temperature: float = 2.0
    know_codes: bool = False
    neighbours: bool = False
    whole_frames: float = 0.0


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
        self.frames, self.grid, self.tokens = frames, grid, grid[0] * grid[1]
        vocabulary, width = codebook.shape
        if s.know_codes:
            self.register_buffer("codes", torch.empty(vocabulary, width))
            self.see_codes(codebook)
            self.code_in, self.code_out = nn.Linear(width, s.dim), nn.Linear(s.dim, width)
        else:
            self.token_in = nn.Embedding(vocabulary, s.dim)
        self.mask_token = nn.Parameter(torch.randn(s.dim) * 0.02)
        self.around = nn.Conv2d(s.dim, s.dim, 3, padding=1) if s.neighbours else None
        self.action_in = nn.Linear(action_dim, s.dim)
        self.transformer = STTransformer(grid, frames, s.dim, s.heads, s.ffn, s.blocks)
        self.head = nn.Linear(s.dim, vocabulary)

    @torch.no_grad()
    def see_codes(self, codebook: Tensor) -> None:
        """Take over the tokenizer's code vectors (V,C), scaled to mean 0 and variance 1 over all their numbers."""
        if self.settings.know_codes:
            centred = codebook - codebook.mean(0)
            self.codes.copy_(centred / centred.std().clamp_min(1e-8))

    def token_vectors(self, tokens: Tensor) -> Tensor:
        """(...) int64 -> (..., D)."""
        return self.code_in(self.codes[tokens]) if self.settings.know_codes else self.token_in(tokens)

    def logits(self, h: Tensor) -> Tensor:
        """(..., D) features -> (..., V)."""
        return self.head(h) + self.code_out(h) @ self.codes.T if self.settings.know_codes else self.head(h)

    def embed(self, tokens_btn: Tensor, mask_btn: Tensor, action_bta: Tensor | None, first: bool) -> Tensor:
        """Tokens, masked where ``mask_btn``, plus the action that led to each frame -> (B,T,N,D).

        Args:
            tokens_btn: (B,T,N) int64.
            mask_btn: (B,T,N) bool; what stands in ``tokens_btn`` there has no influence.
            action_bta: actions that led to these frames; one fewer when the clip begins here.
            first: the first of these frames begins the clip: nothing led to it.
        """
        h_btnd = torch.where(mask_btn[..., None], self.mask_token, self.token_vectors(tokens_btn))
        if self.around is not None:
            x_mdhw = h_btnd.flatten(0, 1).mT.unflatten(2, self.grid)
            h_btnd = h_btnd + self.around(x_mdhw).flatten(2).mT.unflatten(0, h_btnd.shape[:2])
        if action_bta is None or action_bta.shape[1] == 0:
            return h_btnd
        led_btd = self.action_in(action_bta)
        return h_btnd + (F.pad(led_btd, (0, 0, 1, 0)) if first else led_btd)[:, :, None]

    def hidden(self, tokens_btn: Tensor, action_bta: Tensor, mask_btn: Tensor) -> Tensor:
        """A whole clip in one pass: (B,T,N), actions (B,T-1,A), mask (B,T,N) -> (B,T,N,D)."""
        return self.transformer(self.embed(tokens_btn, mask_btn, action_bta, first=True))

    def forward(self, tokens_btn: Tensor, action_bta: Tensor, mask_btn: Tensor) -> Tensor:
        """As :meth:`hidden`, as logits (B,T,N,V)."""
        return self.logits(self.hidden(tokens_btn, action_bta, mask_btn))

    def loss(self, tokens_btn: Tensor, action_bta: Tensor, mask_btn: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the masked tokens, and only of those.

        Returns:
            (M,) nats of each masked token, and (M,) bool whether it was the likeliest.
        """
        targets_m = tokens_btn[mask_btn]  # read before anything is masked
        logits_mv = self.logits(self.hidden(tokens_btn, action_bta, mask_btn)[mask_btn])
        return F.cross_entropy(logits_mv.float(), targets_m, reduction="none"), logits_mv.argmax(-1) == targets_m

    @torch.no_grad()
    def rollout(
        self,
        tokens_btn: Tensor,
        past_action_bta: Tensor,
        action_bka: Tensor,
        temperature: float,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Sample K frames one after another, each given all before it.

        Keys and values of past frames are kept, so only the frame being refined is computed. When the window of W frames
        is full its oldest frame is dropped; the rest then stands at other positions and is read once more.

        Args:
            tokens_btn: (B,T,N) context, T >= 1.
            past_action_bta: (B,T-1,A) actions between the context's frames.
            action_bka: (B,K,A) actions to take; the first one after the last frame of the context.
            temperature: multiplies the settings' temperature; 0 takes the likeliest token.
            generator: source of randomness.

        Returns:
            (B,K,N) int64.
        """
        length, keep = tokens_btn.shape[1], self.frames - 1
        tokens_btn = torch.cat([tokens_btn, tokens_btn.new_zeros(len(tokens_btn), action_bka.shape[1], self.tokens)], 1)
        action_bta = torch.cat([past_action_bta, action_bka], 1)
        past: Past | None = None
        known = 0  # frames whose keys and values `past` holds
        for t in range(length, tokens_btn.shape[1]):
            begin = max(0, t - keep)
            if past is None or begin > 0:
                past, known = None, begin
            led = action_bta[:, known if past is None else known - 1 : t - 1]
            past = self._read(tokens_btn[:, known:t], led, past)
            known = t
            tokens_btn[:, t] = self._sample(past, action_bta[:, t - 1 : t], temperature, generator)
        return tokens_btn[:, length:]

    def _read(self, tokens_btn: Tensor, led_bta: Tensor, past: Past | None) -> Past:
        """Keys and values after finished frames."""
        unmasked = torch.zeros_like(tokens_btn, dtype=torch.bool)
        return self.transformer.step(self.embed(tokens_btn, unmasked, led_bta, first=past is None), past)[1]

    def _sample(self, past: Past, led_b1a: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
        """(B,N) the next frame."""

        def logits_of(tokens_bn: Tensor, mask_bn: Tensor) -> Tensor:
            h_b1nd = self.embed(tokens_bn[:, None], mask_bn[:, None], led_b1a, first=False)
            return self.logits(self.transformer.step(h_b1nd, past)[0][:, 0])

        shape = (len(led_b1a), self.tokens)
        steps, temperature = self.settings.sampling_steps, temperature * self.settings.temperature
        return maskgit_sample(logits_of, shape, steps, temperature, generator, led_b1a.device)


def draw_mask(shape: tuple[int, int, int], device: torch.device, whole_frames: float = 0.0) -> Tensor:
    """(B,T,N) bool, True = masked: each clip with its own rate from U(0.5, 1) (Genie, 2.1), frame 0 never.

    Args:
        shape: (B,T,N), T >= 2.
        device: of the mask.
        whole_frames: probability that a frame is left whole; a clip that would lose nothing is masked in its last frame.
    """
    rate_b = torch.empty(shape[0], 1, 1, device=device).uniform_(0.5, 1)
    mask_btn = torch.rand(shape, device=device) < rate_b
    mask_btn[:, 0] = False
    if whole_frames > 0:
        whole_bt = torch.rand(shape[:2], device=device) < whole_frames
        whole_bt[:, -1] &= ~whole_bt[:, 1:].all(1)
        mask_btn &= ~whole_bt[..., None]
    return mask_btn


def kept_counts(tokens: int, steps: int) -> list[int]:
    """How many tokens are settled after each MaskGIT step: N (1 - cos(pi (s+1) / 2S)), rounded, all after the last.

    Steps that would settle no further token are left out: they would only draw again what they drew before.

    >>> kept_counts(16, 4)
    [1, 5, 10, 16]
    """
    counts = [round(tokens * (1 - math.cos(math.pi * (s + 1) / (2 * steps)))) for s in range(steps - 1)] + [tokens]
    return sorted(set(counts) - {0})


def draw_tokens(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Draw from softmax(logits / temperature).

    Args:
        logits: (..., V).
        temperature: divides the *logits* (dividing probabilities would change nothing after normalising); 0 takes the
            likeliest and reports its probability at temperature 1.
        generator: source of randomness.

    Returns:
        (...) int64 tokens and (...) their log-probability under the law they were drawn from.
    """
    logits = logits.float() / (temperature if temperature > 0 else 1)
    if temperature > 0:
        device = logits.device if generator is None else generator.device
        noise = torch.empty(logits.shape, device=device).exponential_(generator=generator).to(logits.device)
        tokens = (logits - noise.log()).argmax(-1)  # the Gumbel-max trick: -log of an exponential is Gumbel noise
    else:
        tokens = logits.argmax(-1)
    return tokens, logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def maskgit_sample(
    logits_of: Callable[[Tensor, Tensor], Tensor],
    shape: tuple[int, int],
    steps: int,
    temperature: float,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Fill a frame from all masked to none (MaskGIT, Chang et al. 2022): draw all, keep the surest, mask the rest again.

    Args:
        logits_of: (B,N) tokens and (B,N) bool mask -> (B,N,V).
        shape: (B,N).
        steps: S.
        temperature: of the draws, see :func:`draw_tokens`.
        generator: source of randomness.
        device: of the result.

    Returns:
        (B,N) int64.
    """
    tokens_bn = torch.zeros(shape, dtype=torch.int64, device=device)
    mask_bn = torch.ones(shape, dtype=torch.bool, device=device)
    for keep in kept_counts(shape[1], steps):
        drawn_bn, confidence_bn = draw_tokens(logits_of(tokens_bn, mask_bn), temperature, generator)
        tokens_bn = torch.where(mask_bn, drawn_bn, tokens_bn)
        confidence_bn = confidence_bn.masked_fill(~mask_bn, torch.inf)  # what is settled stays
        mask_bn = torch.ones_like(mask_bn).scatter(1, confidence_bn.topk(keep, dim=1).indices, False)
    return tokens_bn
