"""The policy pi(a_t | x_<=t, a_<t): an ST-transformer over the last frames and a small head (Genie, appendix E)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.experience import previous_actions
from lit_wm.errors import UserError, check_bounds
from lit_wm.genie.st_transformer import STTransformer
from lit_wm.nn.patches import check_patch, patchify

LEAST = {"frames": 1, "patch": 1, "dim": 4, "heads": 1, "ffn": 1, "blocks": 1, "hidden": 1}


@dataclass(frozen=True)
class PolicySettings:
    """Sizes of the policy; the defaults are the paper's where it gives any.

    Args:
        frames: T, how many of the last frames it sees.
        patch: pixels along the side of a patch.
        dim: width of the transformer.
        heads: attention heads; not in the paper.
        ffn: hidden width of its feed-forward layers; not in the paper.
        blocks: ST blocks.
        hidden: width of the linear layer between the frame's encoding and the logits.
        previous_actions: it also sees what it did before, within its T frames.
    """

    frames: int = 4
    patch: int = 4
    dim: int = 512
    heads: int = 8
    ffn: int = 2048
    blocks: int = 12
    hidden: int = 512
    previous_actions: bool = True


class ImitationPolicy(nn.Module):
    """Logits of what the expert would do on seeing each frame of a clip. Those at t depend on frames <= t and actions < t.

    Actions are latent ones, or real ones for the oracle. What a frame's tokens become one vector by is open in the paper;
    here it is their mean.

    Args:
        picture: (C,H,W), H and W divisible by the patch.
        actions: classes A.
        settings: sizes.

    Raises:
        UserError: sizes that cannot work, or do not fit the picture.
    """

    def __init__(self, picture: tuple[int, int, int], actions: int, settings: PolicySettings) -> None:
        super().__init__()
        s = self.settings = settings
        check_bounds("imitation policy", vars(s), LEAST)
        self.picture, self.actions = picture, actions
        try:
            grid = check_patch(picture[1:], s.patch)
            self.trunk = STTransformer(grid, s.frames, s.dim, s.heads, s.ffn, s.blocks)
        except ValueError as error:  # a patch that does not divide the picture, heads that do not divide the width
            raise UserError(f"the imitation policy cannot be built: {error}") from error
        self.patch_in = nn.Linear(s.patch * s.patch * picture[0], s.dim)
        self.action_in = nn.Linear(actions, s.dim, bias=False) if s.previous_actions else None
        self.head = nn.Sequential(nn.Linear(s.dim, s.hidden), nn.GELU(), nn.Linear(s.hidden, actions))

    def forward(self, x_btchw: Tensor, action_bt: Tensor) -> Tensor:
        """Frames and what was done on seeing each -> logits (B,T,A).

        Args:
            x_btchw: (B,T,C,H,W) uint8, 1 <= T <= ``frames``.
            action_bt: (B,T) int64; entry t reaches the logits after t alone, so the last one does not matter.
        """
        h_btnd = self.patch_in(patchify(x_btchw.to(self.patch_in.weight.dtype) / 255, self.settings.patch))
        if self.action_in is not None:
            one_hot_bta = F.one_hot(action_bt, self.actions).to(h_btnd.dtype)
            within_an_episode = action_bt.new_zeros(action_bt.shape, dtype=bool)
            h_btnd = h_btnd + self.action_in(previous_actions(one_hot_bta, within_an_episode))[:, :, None]
        return self.head(self.trunk(h_btnd).mean(2))
