"""DreamerV3's size presets (danijar/dreamerv3, configs.yaml)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lit_wm.errors import UserError, check_bounds

BLOCKS = 8  # block-diagonal groups of the recurrent core, in every preset


@dataclass(frozen=True)
class Size:
    """Widths of a Dreamer.

    Args:
        deter: deterministic recurrent state D.
        hidden: hidden width H inside the RSSM.
        classes: classes C of each latent.
        depth: base depth d of the convolutions.
        units: width U of every MLP.
        stoch: number of latents S.
        stages: halvings of a picture, 4 in the reference; 3 lets 32x32 end at 4x4 as 64x64 does.
    """

    deter: int
    hidden: int
    classes: int
    depth: int
    units: int
    stoch: int = 32
    stages: int = 4

    @property
    def feature(self) -> int:
        """Width of concat(deter, flat stoch)."""
        return self.deter + self.stoch * self.classes


PRESETS = {
    "size1m": Size(512, 64, 4, 4, 64),
    "size12m": Size(2048, 256, 16, 16, 256),
    "size25m": Size(3072, 384, 24, 24, 384),
    "size50m": Size(4096, 512, 32, 32, 512),
    "size100m": Size(6144, 768, 48, 48, 768),
    "size200m": Size(8192, 1024, 64, 64, 1024),
    "size400m": Size(12288, 1536, 96, 96, 1536),
}


def named_size(name: str, overrides: dict[str, int] | None = None) -> Size:
    """A preset, with single widths replaced.

    Raises:
        UserError: unknown preset or width, or a width that the blocks do not divide.
    """
    if name not in PRESETS:
        raise UserError(f"size '{name}' is not one of {', '.join(PRESETS)}")
    try:
        size = replace(PRESETS[name], **(overrides or {}))
    except TypeError as error:
        raise UserError(
            f"size_overrides: {error}; the widths are deter, hidden, classes, depth, units, stoch, stages"
        ) from error
    check_bounds("dreamer model", vars(size), dict.fromkeys(vars(size), 1))
    if size.deter % BLOCKS:
        raise UserError(f"deter = {size.deter} is not divisible by the {BLOCKS} blocks of the recurrent core")
    if size.stages > 4:
        raise UserError(f"stages = {size.stages}: there are at most 4")
    if size.depth % 2:
        raise UserError(
            f"depth = {size.depth} must be even: the decoder's 4 * depth channels come from {BLOCKS} blocks"
        )
    return size
