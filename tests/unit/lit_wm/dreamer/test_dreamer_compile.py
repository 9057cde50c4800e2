"""``compile: true`` changes the time an update takes and nothing else."""

import copy

import pytest
import torch
from test_dreamer_module import PIXELS, batch_of, small

from datamodules.experience import ActionSpace, ExperienceSpec
from lit_wm.dreamer.capture import AsTensors, CapturedUpdate

VECTOR = ExperienceSpec({"vector": (5,)}, ActionSpace("continuous", (2,)))
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def losses_and_gradients(model, batch):
    torch.manual_seed(0)
    losses = model.losses(batch)
    model.zero_grad()
    sum(value for name, value in losses.items() if not name.startswith("_")).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.slow
def test_on_a_cpu_the_compiled_recurrence_gives_the_same_losses_and_gradients():
    plain, batch = small(VECTOR), batch_of(VECTOR)
    compiled = copy.deepcopy(plain)
    compiled.rssm.compiled = True
    for ours, theirs in zip(losses_and_gradients(compiled, batch), losses_and_gradients(plain, batch), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5, msg=name)
    moved = copy.deepcopy(compiled)
    with torch.no_grad():
        moved.rssm.hidden.weight.mul_(2)
    assert not torch.equal(moved.losses(batch)["dyn"], compiled.losses(batch)["dyn"]), "a copy has weights of its own"


@pytest.mark.parametrize("spec", [PIXELS, VECTOR])
def test_nothing_in_an_update_waits_for_a_number(spec):
    """A graph cannot be recorded where the host reads a value off the device; on the meta device there are none to read."""
    with torch.device("meta"):
        model = small(spec)
    batch = {key: value.to("meta") for key, value in batch_of(spec).items()}
    losses, latents = model.update(batch)
    sum(value for name, value in losses.items() if not name.startswith("_")).backward()
    assert latents["deter"].device.type == "meta" and model.encoder.state_dict()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_tensors_in_tensors_out_is_the_same_update():
    """The form in which an update is recorded, run without recording."""
    model, batch = small(VECTOR), batch_of(VECTOR)
    names = tuple(sorted(batch))
    form = AsTensors(model, model.update, names)
    torch.manual_seed(0)
    losses, latents = form.named(form(*(batch[name] for name in names)))
    torch.manual_seed(0)
    expected_losses, expected_latents = model.update(batch)
    assert losses.keys() == expected_losses.keys() and latents.keys() == expected_latents.keys()
    assert all(torch.equal(losses[name], value) for name, value in expected_losses.items() if name != "_return_scale")
    assert all(torch.equal(latents[name], value) for name, value in expected_latents.items())


def test_of_what_a_record_returns_only_the_losses_keep_gradients():
    """A graph hands out everything as if it had one."""
    model, batch = small(VECTOR), batch_of(VECTOR)
    names = tuple(sorted(batch))
    form = AsTensors(model, model.update, names)
    values = (x.detach().requires_grad_(x.is_floating_point()) for x in form(*(batch[name] for name in names)))
    losses, latents = form.named(tuple(values))
    assert {name for name, x in losses.items() if not x.requires_grad} == {n for n in losses if n.startswith("_")}
    assert not any(x.requires_grad for x in latents.values())


@on_gpu
@pytest.mark.parametrize("spec", [PIXELS, VECTOR])
def test_on_a_gpu_a_recorded_update_gives_the_same_losses_and_gradients(spec):
    plain = small(spec).cuda()
    batch = {key: value.cuda() for key, value in batch_of(spec).items()}
    recorded = copy.deepcopy(plain)
    recorded._captured = CapturedUpdate(recorded, recorded.update)
    for _ in range(3):
        for ours, theirs in zip(losses_and_gradients(recorded, batch), losses_and_gradients(plain, batch), strict=True):
            for name in theirs:
                torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5, msg=name)
