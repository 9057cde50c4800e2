"""Codebooks beside the plain one: a fixed grid (FSQ), products of small ones, and settings that contradict each other."""

import math
from dataclasses import replace

import pytest
import torch

from lit_wm.errors import UserError
from lit_wm.genie.codebooks import make_quantizer
from lit_wm.genie.finite_scalar import FiniteScalarQuantizer
from lit_wm.genie.product_quantizer import ProductQuantizer
from lit_wm.genie.tokenizer import TokenizerSettings
from lit_wm.genie.vector_quantizer import VectorQuantizer

OPTIONS = {"codebook": "ema", "beta": 0.25, "decay": 0.9, "kmeans_start": False, "restart_below": 0.0}


def rows(n=64, d=4, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("levels", [(2, 2, 2), (8, 5, 5, 5), (3,), (4, 7)])
def test_the_grid_has_every_code_once_and_each_stands_for_its_vector(levels):
    quantizer = FiniteScalarQuantizer(levels)
    codes = torch.arange(math.prod(levels))
    vectors = quantizer.embed(codes)
    assert len(vectors.unique(dim=0)) == len(codes) and vectors.abs().max() <= 1
    for d, level in enumerate(levels):
        assert vectors[:, d].unique().tolist() == pytest.approx([(i - level // 2) / (level // 2) for i in range(level)])
    middle = torch.tensor([level // 2 for level in levels])
    offset = torch.tensor([0.5 * (level % 2 == 0) for level in levels])
    half = (torch.tensor(levels) - 1) * (1 - 1e-3) / 2
    z = torch.atanh(((vectors * middle + offset) / half).clamp(-0.9999, 0.9999)) - torch.tan(offset / half)
    assert torch.equal(quantizer.encode(z), codes), "what is bounded to a vector is its code"


def test_numbers_far_out_are_the_outermost_levels_and_zero_is_zero():
    quantizer = FiniteScalarQuantizer((4, 5))
    assert quantizer.embed(quantizer.encode(torch.tensor([[99.0, 99.0], [-99.0, -99.0], [0.0, 0.0]]))).tolist() == [
        [0.5, 1.0],
        [-1.0, -1.0],
        [0.0, 0.0],
    ]


def test_rounding_lets_the_gradient_of_the_bounded_number_through():
    quantizer, z = FiniteScalarQuantizer((8, 5)), rows(d=2).requires_grad_()
    out = quantizer(z)
    assert torch.equal(out.vectors, quantizer.embed(out.codes)) and out.loss == 0
    out.vectors.sum().backward()
    x = z.detach().requires_grad_()
    (quantizer.bound(x) / torch.tensor([4, 2])).sum().backward()
    assert torch.allclose(z.grad, x.grad) and (z.grad > 0).all()
    assert not torch.equal(quantizer.let_through(z).vectors, out.vectors)


def test_a_product_quantises_its_parts_apart():
    quantizer = ProductQuantizer(2, 3, 4, **OPTIONS)
    one, two = (VectorQuantizer(3, 2, **OPTIONS) for _ in range(2))
    one.load_state_dict(quantizer.parts[0].state_dict()), two.load_state_dict(quantizer.parts[1].state_dict())
    z = rows()
    found, a, b = quantizer(z), one(z[:, :2]), two(z[:, 2:])
    assert torch.equal(found.codes, a.codes + 3 * b.codes) and torch.equal(found.codes, found.codes.clamp(0, 8))
    assert torch.equal(found.vectors, torch.cat([a.vectors, b.vectors], -1)) and found.loss == (a.loss + b.loss) / 2
    assert torch.equal(quantizer.codebook[quantizer.encode(z)], quantizer.embed(quantizer.encode(z)))
    assert torch.equal(quantizer.parts[1].codebook, two.codebook), "and learns them"


@pytest.mark.parametrize(
    "quantizer", [FiniteScalarQuantizer((2, 2), 0.0), ProductQuantizer(2, 2, 2, **{**OPTIONS, "decay": 0.0})]
)
def test_perplexity_counts_codes_in_training_alone(quantizer):
    assert quantizer.perplexity() == pytest.approx(4)
    same = torch.ones(8, 2)
    quantizer.eval()(same)
    assert quantizer.perplexity() == pytest.approx(4)
    quantizer.train()(same)
    assert quantizer.perplexity() == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook": "fsq"}, "fsq needs 2 or more of each number"),
        ({"codebook": "fsq", "levels": (8, 1)}, "fsq needs 2 or more"),
        ({"codebook": "fsq", "levels": (8, 8)}, "make 64 codes of 2 numbers: give codes 64 and latent_dim 2, not 1024"),
        ({"codebook": "fsq", "levels": (8, 8), "kmeans_start": True}, "leave out kmeans_start"),
        ({"levels": (8, 8)}, "are read with codebook 'fsq' alone, not with 'gradient'"),
        ({"codebooks": 3}, "codes 1024 must be their product"),
        ({"codebooks": 0}, "0 codebooks"),
        ({"codebooks": 5, "codes": 1024}, "latent_dim 32 divisible by 5"),
        ({"codebook": "vq"}, "codebook 'vq' is not one of gradient, ema, fsq"),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        make_quantizer(replace(TokenizerSettings(), **changes))


@pytest.mark.parametrize("changes", [{}, {"codebooks": 2}, {"codebook": "fsq", "levels": (8, 8, 16), "latent_dim": 3}])
def test_the_settings_decay_and_commitment_are_the_quantizers(changes):
    quantizer = make_quantizer(replace(TokenizerSettings(), decay=0.75, beta=0.5, **changes))
    each = [quantizer, *getattr(quantizer, "parts", [])]
    assert {one.decay for one in each} == {0.75}
    assert {one.beta for one in each if hasattr(one, "beta")} <= {0.5}


def test_each_kind_is_made():
    kinds = [{}, {"codebooks": 2}, {"codebook": "fsq", "levels": (8, 8, 16), "latent_dim": 3}]
    made = [make_quantizer(replace(TokenizerSettings(), **kind)) for kind in kinds]
    assert [type(q) for q in made] == [VectorQuantizer, ProductQuantizer, FiniteScalarQuantizer]
    assert all(q.codebook.shape[0] == 1024 for q in made)
