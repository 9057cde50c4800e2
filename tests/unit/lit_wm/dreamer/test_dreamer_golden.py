"""DreamerModule against numbers of the official implementation: everything the golden file holds, in two precisions."""

import pytest
import torch
from golden_comparison import (
    SEQUENCES,
    forward,
    gradients,
    gradients_by_term,
    parameters,
    recording,
    updates,
    violations,
)
from golden_reference import Reference

DTYPES = {"float64": torch.float64, "float32": torch.float32}
in_both_precisions = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


@pytest.fixture(scope="module", params=DTYPES.values(), ids=DTYPES.keys())
def evaluated(request):
    """The reference, the numbers of one evaluation of its losses, and the losses with their graph."""
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


def test_the_module_returns_the_golden_losses_scaled():
    """Said once more without the comparison's machinery: what is minimised, and what goes back to the replay."""
    reference = Reference(torch.float64)
    losses, golden = reference.model.losses(reference.batch), reference.run
    terms, scales = golden["loss_terms_unscaled"], reference.config["scales"]
    minimised = {name: value.item() for name, value in losses.items() if not name.startswith("_")}
    expected = {f"rec_{k}" if k in ("image", "vector") else k: scales[k] * x for k, x in terms.items()}
    assert minimised == pytest.approx(expected, rel=1e-8)
    assert sum(minimised.values()) == pytest.approx(golden["total_scaled_loss"], rel=1e-8)
    newer = reference.model._newer
    assert newer["stoch"].tolist() == golden["world_model"]["posterior_argmax_all"]
    squares = newer["deter"].square().sum((0, 2)).tolist()
    assert squares == pytest.approx(golden["world_model"]["deter_sumsq_per_t"], rel=1e-8)


@in_both_precisions
def test_a_recording_is_filtered_to_the_same_states_after_its_first_reset(dtype):
    """Until then the golden numbers come from a stored state, which a recording has not."""
    reference = Reference(dtype)
    assert violations(recording(reference), reference.run, dtype) == []


def test_a_recording_has_the_losses_of_a_replayed_clip_that_begins_with_a_reset():
    reference = Reference(torch.float64)
    reference.model.eval()  # so that the first call does not move the return normaliser
    reference.batch["is_first"][:, 1] = True
    replayed, recorded = (reference.model.losses(batch) for batch in (reference.batch, reference.recording))
    assert reference.recording["is_first"][:, 0].all()
    torch.testing.assert_close(recorded, replayed, rtol=1e-12, atol=0)


def test_the_gradient_of_every_tensor(evaluated):
    reference, _, losses = evaluated
    assert violations(gradients(reference, losses), reference.run, reference.dtype) == []


def test_where_the_gradient_of_each_term_flows(evaluated):
    """0 in the file is 0 here, exactly: the term may not reach that module."""
    reference, _, losses = evaluated
    assert violations(gradients_by_term(reference, losses), reference.run, reference.dtype) == []


@in_both_precisions
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_three_updates(sequence, dtype):
    """Loss, clipping, LaProp, warm-up, slow critic and normaliser together."""
    reference = Reference(dtype, **SEQUENCES[sequence])
    assert violations({sequence: updates(reference)}, reference.run, dtype) == []


def test_nothing_in_the_file_is_passed_over(evaluated):
    reference, numbers, losses = evaluated
    measured = [numbers, gradients(reference, losses), gradients_by_term(reference, losses), parameters(reference)]
    measured.append(recording(reference))
    assert {key for part in measured for key in part} | SEQUENCES.keys() == reference.run.keys()
