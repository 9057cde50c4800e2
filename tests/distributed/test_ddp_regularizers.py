"""VICReg and SIGReg over two ranks: each gets the value, and together the gradient, of one process with the whole batch."""

import another_process
import pytest
import torch
import torch.distributed as dist

from lit_wm.jepa.regularizers import covariance, random_directions, sigreg, smoothness, variance_hinge

TERMS = {
    "variance": lambda z_bpd: variance_hinge(z_bpd.transpose(0, 1)),
    "covariance": lambda z_bpd: covariance(z_bpd.transpose(0, 1)),
    "variance of time": lambda z_bpd: variance_hinge(z_bpd, over_ranks=False),
    "covariance of time": lambda z_bpd: covariance(z_bpd, over_ranks=False),
    "smoothness": smoothness,
    "sigreg": lambda z_bpd: sigreg(z_bpd.transpose(0, 1), random_directions(6, 32, 7, z_bpd)),
}


def evaluated(rank, ranks):
    """Value and averaged gradient of every term on this rank's share of 16 samples at 3 places, far from normal."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(16, 3, 5, generator=g) * torch.linspace(0.2, 2, 16)[:, None, None] + 0.3
    encoder = torch.randn(5, 6, generator=g)
    found = {}
    for name, term in TERMS.items():
        w = encoder.clone().requires_grad_()
        value = term(x.chunk(ranks)[rank] @ w)
        value.backward()
        if ranks > 1:
            dist.all_reduce(w.grad)
        found[name] = value.detach(), w.grad / ranks
    return found


def evaluate_as(rank, address, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.save(evaluated(rank, 2), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    address = f"file://{folder}/meeting"
    processes = [another_process.start(evaluate_as, rank, address, folder) for rank in (0, 1)]
    assert [another_process.exit_code(process) for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("term", TERMS)
def test_two_ranks_are_one_process(two_ranks, term):
    value, gradient = evaluated(0, 1)[term]
    values = [found[term][0] for found in two_ranks]
    if "time" in term or term == "smoothness":  # a mean over clips, which data parallelism averages by itself
        values = [torch.stack(values).mean()] * 2
    for found, gradients in zip(values, (found[term][1] for found in two_ranks), strict=True):
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradients, gradient, rtol=1e-5, atol=1e-6)


def test_half_a_batch_would_have_another_value():
    """What the peers compute: the test above can fail."""
    g = torch.Generator().manual_seed(0)
    z = 0.3 * torch.randn(16, 5, generator=g)
    a = random_directions(5, 32, 0, z)
    assert abs(sigreg(z[:8], a) / sigreg(z, a) - 0.5) < 0.2
