"""Which quantizer the settings ask for."""

from __future__ import annotations

from typing import Protocol

from lit_wm.errors import UserError
from lit_wm.genie.finite_scalar import FiniteScalarQuantizer
from lit_wm.genie.product_quantizer import ProductQuantizer
from lit_wm.genie.vector_quantizer import VectorQuantizer

Quantizer = VectorQuantizer | FiniteScalarQuantizer | ProductQuantizer


class CodebookSettings(Protocol):
    """What the settings of tokenizer and latent action model say of their codebook."""

    codes: int
    latent_dim: int
    codebook: str
    codebooks: int
    levels: tuple[int, ...]
    beta: float
    decay: float
    kmeans_start: bool
    restart_below: float


def make_quantizer(s: CodebookSettings) -> Quantizer:
    """One learned codebook, a product of several, or a fixed grid (``codebook: fsq``).

    Raises:
        UserError: settings that contradict each other.
    """
    if s.codebook == "fsq":
        if s.kmeans_start or s.restart_below or s.codebooks != 1:
            raise UserError("codebook 'fsq' learns no codes: leave out kmeans_start, restart_below and codebooks")
        quantizer = FiniteScalarQuantizer(tuple(s.levels), s.decay)
        if (s.codes, s.latent_dim) != (quantizer.codes, len(s.levels)):
            raise UserError(
                f"levels {list(s.levels)} make {quantizer.codes} codes of {len(s.levels)} numbers: give codes"
                f" {quantizer.codes} and latent_dim {len(s.levels)}, not {s.codes} and {s.latent_dim}"
            )
        return quantizer
    if s.levels:
        raise UserError(f"levels {list(s.levels)} are read with codebook 'fsq' alone, not with '{s.codebook}'")
    options = {
        "codebook": s.codebook,
        "beta": s.beta,
        "decay": s.decay,
        "kmeans_start": s.kmeans_start,
        "restart_below": s.restart_below,
    }
    if s.codebooks == 1:
        return VectorQuantizer(s.codes, s.latent_dim, **options)
    each = round(s.codes ** (1 / s.codebooks)) if s.codebooks > 1 else 0
    if each < 2 or each**s.codebooks != s.codes or s.latent_dim % s.codebooks:
        raise UserError(
            f"{s.codebooks} codebooks: codes {s.codes} must be their product, k^{s.codebooks} with k >= 2, and"
            f" latent_dim {s.latent_dim} divisible by {s.codebooks}"
        )
    return ProductQuantizer(s.codebooks, each, s.latent_dim, **options)
