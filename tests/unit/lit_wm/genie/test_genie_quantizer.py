"""The vector quantizer: nearest codes, gradients, EMA in closed form, k-means, restart, equal codebooks on two ranks."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from lit_wm.errors import UserError
from lit_wm.genie import vector_quantizer
from lit_wm.genie.product_quantizer import ProductQuantizer
from lit_wm.genie.vector_quantizer import VectorQuantizer, kmeans, nearest_codes


def rows(n=64, d=4, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_nearest_codes_are_the_nearest():
    z, codebook = rows(50), rows(7, seed=1)
    assert torch.equal(nearest_codes(z, codebook), torch.cdist(z, codebook).argmin(1))


def test_straight_through_and_stop_gradients():
    quantizer = VectorQuantizer(8, 4, codebook="gradient", beta=0.25)
    z = rows().requires_grad_()
    out = quantizer(z)
    assert torch.allclose(out.vectors, quantizer.codebook[out.codes], atol=1e-6)

    weight = rows(seed=2)
    (out.vectors * weight).sum().backward()
    assert torch.equal(z.grad, weight)  # the gradient of e goes to z as it is ...
    assert quantizer.codebook.grad is None  # ... and not to the codebook

    z.grad = None
    quantizer(z).loss.backward()
    e = quantizer.codebook.detach()[out.codes]
    assert torch.allclose(z.grad, 0.25 * 2 * (z.detach() - e) / z.numel())
    expected = torch.zeros(8, 4).index_add_(0, out.codes, 2 * (e - z.detach()) / z.numel())
    assert torch.allclose(quantizer.codebook.grad, expected)


def test_ema_codebook_equals_its_closed_form():
    quantizer = VectorQuantizer(3, 2, codebook="ema", decay=0.9)
    usage, sums = torch.full((3,), 1 / 3), quantizer.codebook.detach() / 3
    for seed in range(5):
        z = rows(20, 2, seed)
        codes = quantizer(z).codes
        hot = F.one_hot(codes, 3).float()
        usage = 0.9 * usage + 0.1 * hot.mean(0)
        sums = 0.9 * sums + 0.1 * hot.T @ z / 20
        assert torch.allclose(quantizer.codebook, sums / usage[:, None], atol=1e-6)
        assert torch.allclose(quantizer.usage, usage, atol=1e-6)
    assert not quantizer.codebook.requires_grad


@pytest.mark.parametrize("make", [VectorQuantizer, partial(ProductQuantizer, 2)])
def test_under_autocast_codes_are_those_of_full_precision(make):
    """As a fit under bf16-mixed reads them off a frozen tokenizer: many close codes, far from 0."""
    torch.manual_seed(0)
    quantizer = make(16, 4, codebook="ema", decay=0.9).eval()
    z = 5 + 0.1 * rows(200)
    for part in getattr(quantizer, "parts", [quantizer]):
        part.codebook.copy_(5 + 0.1 * rows(16, part.codebook.shape[1], seed=1))
    expected = quantizer.encode(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(z), expected) and torch.equal(quantizer(z).codes, expected)
    assert len(expected.unique()) > 4


def test_evaluation_learns_nothing():
    quantizer = VectorQuantizer(8, 4, codebook="ema", kmeans_start=True, restart_below=0.5).eval()
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantizer(rows())
    quantizer.encode(rows())
    assert all(torch.equal(before[key], value) for key, value in quantizer.state_dict().items())


def test_a_dead_code_moves_to_the_data_and_a_used_one_stays():
    for codebook in ("ema", "gradient"):
        quantizer = VectorQuantizer(2, 2, codebook=codebook, decay=0.5, restart_below=0.2)
        with torch.no_grad():
            quantizer.codebook.copy_(torch.tensor([[0.0, 0.0], [100.0, 100.0]]))
            quantizer.sums.copy_(quantizer.codebook / 2)
        z = 0.1 * rows(200, 2)
        used = [quantizer(z).codes.unique().tolist() for _ in range(8)]
        assert used[0] == [0]
        assert used[-1] == [0, 1]
        assert quantizer.codebook.abs().max() < 1


def test_kmeans_finds_clusters_and_starts_the_codebook_once():
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    z = centres.repeat(40, 1) + 0.01 * rows(120, 2)
    found, share = kmeans(z, 3, torch.Generator().manual_seed(0))
    assert torch.cdist(centres, found).min(1).values.max() < 0.02
    assert torch.allclose(share, torch.full((3,), 1 / 3))

    quantizer = VectorQuantizer(3, 2, codebook="ema", kmeans_start=True)
    quantizer(z)
    assert torch.cdist(centres, quantizer.codebook).min(1).values.max() < 0.02
    trained = quantizer.state_dict()
    again = VectorQuantizer(3, 2, codebook="ema", kmeans_start=True)
    again.load_state_dict(trained)
    again(z + 10)  # a codebook out of a checkpoint is not thrown away
    assert torch.cdist(centres, again.codebook).min(1).values.max() < 0.5


def test_the_best_of_several_runs_of_kmeans_is_taken():
    """Six clusters of a hexagon: single runs leave two of them to one centre, the best of eight does not."""
    angle = torch.arange(6) * torch.pi / 3
    centres = 5 * torch.stack([angle.cos(), angle.sin()], 1)
    z = centres.repeat(20, 1) + 0.4 * rows(120, 2)

    def merged(seed, tries):
        found, _ = kmeans(z, 6, torch.Generator().manual_seed(seed), tries)
        return bool(torch.cdist(centres, found).min(1).values.max() > 1)

    assert any(merged(seed, 1) for seed in range(30))
    assert not any(merged(seed, 8) for seed in range(30))


def test_kmeans_starts_from_what_the_warm_up_showed_last():
    """Six vectors a batch are too few for three clusters; those of the warm-up before it, if not too old, are not."""
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    quantizer = VectorQuantizer(3, 2, codebook="ema", kmeans_start=True)
    quantizer.let_through(100 + rows(96, 2))  # as many as are kept
    for seed in range(20):
        quantizer.let_through(centres.repeat(2, 1) + 0.01 * rows(6, 2, seed))
    assert quantizer.updates == 0
    resumed = VectorQuantizer(3, 2, codebook="ema", kmeans_start=True)
    resumed.load_state_dict(quantizer.state_dict())
    for one in (quantizer, resumed):
        one(torch.zeros(6, 2))
        assert torch.cdist(centres, one.codebook).min(1).values.max() < 0.1
    assert torch.equal(quantizer.codebook, resumed.codebook)
    quiet = VectorQuantizer(3, 2, codebook="ema", kmeans_start=True).eval()
    quiet.let_through(centres)
    assert quiet.recorded == 0


def test_perplexity_counts_the_codes_in_use():
    quantizer = VectorQuantizer(4, 2)
    assert quantizer.perplexity() == pytest.approx(4)
    quantizer.usage.copy_(torch.tensor([0.5, 0.5, 0, 0]))
    assert quantizer.perplexity() == pytest.approx(2)


def test_unknown_codebook():
    with pytest.raises(UserError, match="codebook 'emma'"):
        VectorQuantizer(4, 2, codebook="emma")


class Ranks:
    """Two ranks as two threads that meet at every collective: what gloo does, without starting processes."""

    def __init__(self, monkeypatch):
        self.local, self.barrier, self.brought = threading.local(), threading.Barrier(2, timeout=30), [None, None]
        monkeypatch.setattr(vector_quantizer, "world_size", lambda: 2)
        monkeypatch.setattr(vector_quantizer, "rank", lambda: self.local.rank)
        monkeypatch.setattr(vector_quantizer, "global_sum", lambda x: sum(self.exchange(x)))
        monkeypatch.setattr(vector_quantizer, "gather_rows", lambda x: torch.cat(self.exchange(x)))

    def exchange(self, x):
        self.brought[self.local.rank] = x.clone()
        self.barrier.wait()
        everyone = list(self.brought)
        self.barrier.wait()
        return everyone

    def run(self, work):
        def enter(rank):
            self.local.rank = rank
            return work(rank)

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(enter, (0, 1)))


STEPS = [rows(32, 4, seed=step) for step in range(4)]


def two_ranks(monkeypatch, **options):
    torch.manual_seed(0)
    first = VectorQuantizer(6, 4, **options)
    quantizers = [first, copy.deepcopy(first)]

    def work(rank):
        for z in STEPS:
            quantizers[rank](z.chunk(2)[rank])

    Ranks(monkeypatch).run(work)
    return [quantizer.state_dict() for quantizer in quantizers]


EVERYTHING = {"codebook": "ema", "kmeans_start": True, "restart_below": 0.9, "decay": 0.3}


@pytest.mark.parametrize("options", [{"codebook": "ema"}, EVERYTHING], ids=["means", "start and restarts"])
def test_two_ranks_learn_the_codebook_of_their_joint_batch(monkeypatch, options):
    torch.manual_seed(0)
    alone = VectorQuantizer(6, 4, **options)
    for z in STEPS:
        alone(z)
    first, second = two_ranks(monkeypatch, **options)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.allclose(alone.codebook, first["codebook"], atol=1e-6)
    assert torch.allclose(alone.usage, first["usage"], atol=1e-7)


def test_a_restart_draws_vectors_by_their_squared_distance_from_the_codes():
    """One far vector among many near ones is taken nearly always, two that are equally far alike often."""
    taken = []
    for step in range(200):
        quantizer = VectorQuantizer(2, 1, codebook="ema", restart_below=0.5, decay=0.0)
        with torch.no_grad():
            quantizer.codebook.copy_(torch.tensor([[0.0], [1000.0]]))
        quantizer.updates.fill_(step)
        quantizer(torch.tensor([[0.01], [-0.01], [3.0], [-3.0]]))
        taken.append(float(quantizer.codebook[1]))
    assert {round(x) for x in taken} == {3, -3}
    assert 70 < sum(x > 0 for x in taken) < 130


@pytest.mark.parametrize("near", [60, 6000])
def test_vectors_that_have_a_code_get_no_second_one(near):
    """However many codes are unused, and however many the vectors are: else the same patch would get another token every few
    frames, and the dynamics would learn nothing."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(64, 1, codebook="ema", restart_below=0.5, decay=0.0)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.cat([torch.zeros(1, 1), torch.full((63, 1), 1000.0)]))
    quantizer(
        torch.cat([torch.tensor([[0.1], [-0.1]]).repeat(near // 2, 1), torch.tensor([[3.0], [-3.0], [4.0], [-4.0]])])
    )
    assert set(quantizer.codebook[1:].flatten().round().tolist()) <= {3, -3, 4, -4}


def test_a_restart_works_where_all_vectors_are_equally_far():
    quantizer = VectorQuantizer(8, 3, codebook="ema", restart_below=0.9, decay=0.0)
    quantizer(torch.full((7, 3), 0.1))
    assert torch.isfinite(quantizer.codebook).all()
