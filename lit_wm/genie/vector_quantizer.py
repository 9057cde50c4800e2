"""Vector quantisation (VQ-VAE, van den Oord et al. 2017), shared by the video tokenizer and the latent action model."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_wm.distributed import gather_rows, global_sum, rank, world_size
from lit_wm.errors import UserError

LEARNED = ("gradient", "ema")
ROWS_A_CODE = 32  # vectors of the warm-up that k-means starts from
TRIES = 8  # of k-means: a single one leaves two clusters to one code every few times
CODEBOOKS = (*LEARNED, "fsq")


class Quantized(NamedTuple):
    """What quantisation makes of vectors z (..., D)."""

    vectors: Tensor  # (..., D) the codes' vectors e; their gradient goes straight through to z
    codes: Tensor  # (...) int64
    loss: Tensor  # scalar: pulls e to z (gradient codebook only) and z to e (commitment)


def nearest_codes(z_nd: Tensor, codebook_kd: Tensor) -> Tensor:
    """(N,D) -> (N,) index of the nearest code, Euclidean: |z-e|^2 without its term |z|^2, which no code can change."""
    return (codebook_kd.square().sum(1) - 2 * z_nd @ codebook_kd.T).argmin(1)


def kmeans(rows_nd: Tensor, k: int, generator: torch.Generator, tries: int = TRIES) -> tuple[Tensor, Tensor]:
    """The best of several runs of :func:`lloyd`: that with the least squared distance to the centres.

    Args:
        rows_nd: (N,D) data.
        k: number of centres.
        generator: as for :func:`lloyd`.
        tries: number of runs.

    Returns:
        As :func:`lloyd`.
    """
    found = [lloyd(rows_nd, k, generator) for _ in range(tries)]
    return min(found, key=lambda one: squared_distance(rows_nd, one[0]).sum())


def squared_distance(z_nd: Tensor, codebook_kd: Tensor) -> Tensor:
    """(N,D) -> (N,) squared distance to the nearest code."""
    return (z_nd - codebook_kd[nearest_codes(z_nd, codebook_kd)]).square().sum(1)


def lloyd(rows_nd: Tensor, k: int, generator: torch.Generator, iterations: int = 10) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from a k-means++ start.

    Args:
        rows_nd: (N,D) data.
        k: number of centres.
        generator: draws the start, on the CPU so that every rank draws alike.
        iterations: rounds of assignment and averaging.

    Returns:
        (k,D) centres and (k,) the share of rows nearest to each.
    """
    device = rows_nd.device

    def draw(weights_n: Tensor) -> Tensor:
        return torch.multinomial(weights_n.cpu(), 1, generator=generator).to(device)

    distance_n = torch.ones(len(rows_nd), device=device)
    chosen = []
    for _ in range(k):
        chosen.append(rows_nd[draw(distance_n + 1e-12)])
        to_new = (rows_nd - chosen[-1]).square().sum(1)
        distance_n = to_new if len(chosen) == 1 else torch.minimum(distance_n, to_new)
    centres_kd = torch.cat(chosen)
    for _ in range(iterations):
        share_k, sums_kd = code_statistics(rows_nd, nearest_codes(rows_nd, centres_kd), k)
        filled = share_k > 0
        centres_kd = torch.where(filled[:, None], sums_kd / share_k.clamp(min=1e-12)[:, None], centres_kd)
    return centres_kd, code_statistics(rows_nd, nearest_codes(rows_nd, centres_kd), k)[0]


def code_statistics(z_nd: Tensor, codes_n: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Share of rows per code (k,), and the sum of its rows divided by the number of all rows (k,D)."""
    share_k = torch.bincount(codes_n, minlength=k).to(z_nd.dtype) / len(z_nd)
    sums_kd = torch.zeros(k, z_nd.shape[1], dtype=z_nd.dtype, device=z_nd.device).index_add_(0, codes_n, z_nd)
    return share_k, sums_kd / len(z_nd)


@torch.no_grad()
def global_share(codes: Tensor, k: int) -> Tensor:
    """(k,) share of each code among those of all ranks."""
    return global_sum(torch.bincount(codes.flatten(), minlength=k) / codes.numel()) / world_size()


def perplexity_of(usage_k: Tensor) -> Tensor:
    """exp(entropy) of a usage: K when all codes are used alike, 1 after a collapse."""
    return torch.special.entr(usage_k / usage_k.sum()).sum().exp()


class VectorQuantizer(nn.Module):
    """A codebook of K vectors.

    Statistics (usage, EMA sums, k-means) are taken over the global batch, and every random draw comes from a generator
    seeded by the number of updates, so codebooks are equal on all ranks and a resumed run repeats the uninterrupted one.

    Args:
        codes: K.
        dim: D.
        codebook: ``gradient``: codes learn from ``|sg(z) - e|^2`` (the VQ-VAE objective that Genie names). ``ema``: codes
            are running means of the vectors they stand for (VQ-VAE, appendix A.1), which is faster and steadier in
            short runs.
        beta: weight of the commitment term ``|z - sg(e)|^2``. Genie states none; .25 is VQ-VAE's.
        decay: of the running means and of the usage.
        kmeans_start: the first training batch, with the last vectors of a continuous warm-up, sets the codebook by k-means. Not
            in Genie.
        restart_below: a code used less than this share of 1/K is moved to a vector far from all codes; 0 never. Not in Genie.

    Raises:
        UserError: ``codebook`` is neither.
    """

    def __init__(
        self,
        codes: int,
        dim: int,
        codebook: str = "gradient",
        beta: float = 0.25,
        decay: float = 0.99,
        kmeans_start: bool = False,
        restart_below: float = 0.0,
    ) -> None:
        super().__init__()
        if codebook not in LEARNED:
            raise UserError(f"codebook '{codebook}' is not one of {', '.join(CODEBOOKS)}")
        self.learned = codebook == "gradient"
        self.beta, self.decay, self.kmeans_start, self.restart_below = beta, decay, kmeans_start, restart_below
        start_kd = torch.empty(codes, dim).uniform_(-1 / codes, 1 / codes)
        if self.learned:
            self.codebook = nn.Parameter(start_kd)
        else:
            self.register_buffer("codebook", start_kd)
        self.register_buffer("usage", torch.full((codes,), 1 / codes))  # running share of all vectors
        self.register_buffer("sums", start_kd / codes)  # running sums; codebook = sums / usage
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("recent", torch.zeros(ROWS_A_CODE * codes if kmeans_start else 0, dim))
        self.register_buffer("recorded", torch.zeros((), dtype=torch.int64))  # in all; ``recent`` keeps the last
        self._started = not kmeans_start

    def encode(self, z: Tensor) -> Tensor:
        """(..., D) -> (...) int64 nearest codes, the same as in training. Learns nothing."""
        with torch.autocast(z.device.type, enabled=False):  # distances lose the small differences in half precision
            return nearest_codes(z.reshape(-1, z.shape[-1]).float(), self.codebook).view(z.shape[:-1])

    def embed(self, codes: Tensor) -> Tensor:
        """(...) -> (..., D) the codes' vectors."""
        return F.embedding(codes, self.codebook)

    def perplexity(self) -> Tensor:
        """exp(entropy) of the running usage."""
        return perplexity_of(self.usage)

    def forward(self, z: Tensor) -> Quantized:
        """Quantise; in training mode also learn the codebook (see the class)."""
        with torch.autocast(z.device.type, enabled=False):  # as in encode
            z = z.float()
            z_nd = z.reshape(-1, z.shape[-1])
            if self.training and not self._started:
                self._start(z_nd.detach())
            codes_n = nearest_codes(z_nd.detach(), self.codebook.detach())
            e = self.embed(codes_n).view(z.shape)
            loss = self.beta * F.mse_loss(z, e.detach())
            if self.learned:
                loss = loss + F.mse_loss(e, z.detach())
            vectors = z + (e - z).detach()
            if self.training:
                self._learn(z_nd.detach(), codes_n)
            return Quantized(vectors, codes_n.view(z.shape[:-1]), loss)

    def let_through(self, z: Tensor) -> Quantized:
        """The vectors as they are, with the codes that would stand for them: a continuous warm-up, in which no code is learnt."""
        if self.training and self.kmeans_start:
            self._record(z.detach().float().reshape(-1, z.shape[-1]))
        return Quantized(z, self.encode(z.detach()), z.new_zeros(()))

    @torch.no_grad()
    def _record(self, z_nd: Tensor) -> None:
        """Keep the last vectors of the warm-up, those of all ranks, in a ring."""
        rows = gather_rows(z_nd)[-len(self.recent) :]
        place = torch.arange(len(rows), device=rows.device)
        self.recent[(self.recorded + place) % len(self.recent)] = rows
        self.recorded += len(rows)

    @torch.no_grad()
    def _start(self, z_nd: Tensor) -> None:
        """k-means over the global batch and what was kept of the warm-up, unless a checkpoint brought a codebook that has
        already learnt."""
        if self.updates == 0:
            kept = self.recent[: int(self.recorded)]
            centres_kd, share_k = kmeans(torch.cat([kept, gather_rows(z_nd)]), len(self.codebook), self._generator())
            self.codebook.copy_(centres_kd)
            self.usage.copy_(share_k)
            self.sums.copy_(centres_kd * share_k[:, None])
        self._started = True

    @torch.no_grad()
    def _learn(self, z_nd: Tensor, codes_n: Tensor) -> None:
        """Running usage; running means (EMA); restart of unused codes."""
        k = len(self.codebook)
        share_k, sums_kd = code_statistics(z_nd, codes_n, k)
        both = global_sum(torch.cat([share_k[:, None], sums_kd], 1)) / world_size()
        self.usage.lerp_(both[:, 0], 1 - self.decay)
        if not self.learned:
            self.sums.lerp_(both[:, 1:], 1 - self.decay)
            alive = self.usage > 1e-9  # below it the quotient is noise; the code stays where it is
            self.codebook.copy_(
                torch.where(alive[:, None], self.sums / self.usage.clamp(min=1e-9)[:, None], self.codebook)
            )
        if self.restart_below > 0:
            self._restart(z_nd)
        self.updates += 1

    def _restart(self, z_nd: Tensor) -> None:
        """Give each unused code a vector of the global batch, drawn with probability proportional to its squared distance from
        all codes, among those that lie farther than the mean: the others have a code. Pictures are mostly background, whose many
        small distances would otherwise add up to a second code for it, and the same patch would get another token every few
        frames. Likewise with replacement: unused codes may outnumber the vectors that lack one.

        The draw is the same whether ranks or one process hold the batch.
        """
        k, n = len(self.codebook), len(z_nd)
        dead_k = self.usage < self.restart_below / k
        if not dead_k.any():
            return
        distance_n = gather_rows(squared_distance(z_nd, self.codebook)) + 1e-12  # of all ranks
        far_n = distance_n >= distance_n.mean().clamp(max=distance_n.max())
        drawn_k = torch.multinomial((distance_n * far_n).cpu(), k, replacement=True, generator=self._generator())
        place_k = drawn_k.to(z_nd.device) - rank() * n
        mine_k = (place_k >= 0) & (place_k < n)
        taken_kd = global_sum(z_nd[place_k.clamp(0, n - 1)] * mine_k[:, None])
        self.codebook.copy_(torch.where(dead_k[:, None], taken_kd, self.codebook))
        self.usage.masked_fill_(dead_k, 1 / k)
        self.sums.copy_(torch.where(dead_k[:, None], self.codebook / k, self.sums))

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(int(self.updates))
