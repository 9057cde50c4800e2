"""Sizes and switches of the dynamics model."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("maskgit", "autoregressive")
ACTIONS = ("add", "prepend")


@dataclass(frozen=True)
class DynamicsSettings:
    """The defaults are the paper's CoinRun case study (appendix F) unless said otherwise.

    Args:
        kind: ``maskgit``, the paper's, or for comparison ``autoregressive``: one token after another, see
            :class:`~lit_wm.genie.autoregressive.AutoregressiveDynamics`.
        dim: width of the transformer.
        heads: attention heads.
        ffn: hidden width of the feed-forward layers; the paper is silent, 4 x ``dim`` is usual.
        blocks: ST blocks; ``autoregressive`` uses half of them (rounded up) to read the past and half to write tokens.
        action: ``add`` the latent action to all tokens of its frame (the paper), or ``prepend`` it as one more token (jasmine).
        qk_norm: normalise queries and keys. The paper's large dynamics does, for stability at scale; its case study says nothing of
            it.
        sampling_steps: MaskGIT steps per frame; ``maskgit`` alone.
        temperature: divides the logits when sampling; the main paper's 2 (CoinRun uses 1). What callers ask for
            (``imagine(temperature=...)``) multiplies it.
        know_codes: tokens enter as the tokenizer's code vectors, and logits gain a term linear in them, so that what is learnt
            of one token serves its likes. Off, the paper's plain vocabulary, every token is learnt by itself.
        neighbours: each token of a frame that is read enters together with the eight around it, by a 3x3 convolution. Without
            it (the paper) attention alone must learn that what leaves one place enters the next.
        whole_frames: in training, each frame but the first is left whole with this probability. In the paper (0) a clip's
            frames are all masked at one rate, so that hardly any prediction is learnt from a past as whole as when sampling.
            ``maskgit`` alone.
    """

    kind: str = "maskgit"
    dim: int = 512
    heads: int = 8
    ffn: int = 2048
    blocks: int = 12
    action: str = "add"
    qk_norm: bool = False
    sampling_steps: int = 25
    temperature: float = 2.0
    know_codes: bool = False
    neighbours: bool = False
    whole_frames: float = 0.0
