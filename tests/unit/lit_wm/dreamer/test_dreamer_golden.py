"""DreamerModule against numbers of the official implementation: everything the golden file holds, in two precisions."""

import pytest
import torch
from golden_comparison import (
    SEQUENCES,
    forward,
    gradients,
    gradients_by_term,
    parameters,
    updates,
    violations,
)
from golden_reference import GOLDEN, NOT_AT_HAND, Reference

pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason=NOT_AT_HAND)
DTYPES = {"float64": torch.float64, "float32": torch.float32}
in_both_precisions = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


@pytest.fixture(scope="module", params=DTYPES.values(), ids=DTYPES.keys())
def evaluated(request):
    """The reference, the numbers of one evaluation of its losses, and the terms with their graph."""
    reference = Reference(request.param)
    return reference, *forward(reference)


@in_both_precisions
def test_weights_and_inputs_are_filled_as_in_the_file(dtype):
    reference = Reference(dtype)
    wide = {name: value.astype("float64") for name, value in reference.filled.items()}
    weights = {name: {"sum": value.sum(), "sumsq": (value**2).sum()} for name, value in wide.items()}
    rows = {key: value.astype("float64") for key, value in reference.raw.items()}
    data = {key: {"shape": value.shape, "sum": value.sum(), "first": value.flat[:4]} for key, value in rows.items()}
    found = {"params": weights, "data": data}
    assert violations(found, reference.golden["fill_check"], torch.float64) == []
    for name, mine in reference.names.items():
        ours = reference.model.get_parameter(mine).detach().double()
        assert ours.square().sum().item() == pytest.approx(weights[name]["sumsq"], rel=1e-12), name
    assert len(set(reference.names.values())) == len(list(reference.model.parameters())) == 121
    assert violations(parameters(reference), reference.run, dtype) == []


def test_losses_and_everything_on_the_way_to_them(evaluated):
    """Latents, predictions, returns, weights, advantages, the normaliser; classes chosen must be the same ones."""
    reference, numbers, _ = evaluated
    assert violations(numbers, reference.run, reference.dtype) == []


def test_the_gradient_of_every_tensor(evaluated):
    reference, _, terms = evaluated
    assert violations(gradients(reference, terms), reference.run, reference.dtype) == []


def test_where_the_gradient_of_each_term_flows(evaluated):
    """0 in the file is 0 here, exactly: the term may not reach that module."""
    reference, _, terms = evaluated
    assert violations(gradients_by_term(reference, terms), reference.run, reference.dtype) == []


@in_both_precisions
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_three_updates(sequence, dtype):
    """Loss, clipping, LaProp, warm-up, slow critic and normaliser together."""
    reference = Reference(dtype, **SEQUENCES[sequence])
    assert violations({sequence: updates(reference)}, reference.run, dtype) == []


def test_nothing_in_the_file_is_passed_over(evaluated):
    reference, numbers, terms = evaluated
    measured = [numbers, gradients(reference, terms), gradients_by_term(reference, terms), parameters(reference)]
    assert {key for part in measured for key in part} | SEQUENCES.keys() == reference.run.keys()
