"""``compile: true`` changes the time an update takes and nothing else."""

import copy

import pytest
import torch
from lightning import Callback, Trainer
from test_dreamer_module import PIXELS, batch_of, small
from torch.utils.data import DataLoader

from datamodules.experience import ActionSpace, ExperienceSpec
from lit_wm.dreamer import rssm
from lit_wm.dreamer.capture import AsTensors, CapturedUpdate
from lit_wm.errors import UserError

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


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(outputs["loss"].item())


def quiet(**options):
    quietly = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", devices=1, logger=False, **(quietly | options))


def test_compile_reaches_the_recurrence_of_a_fit(monkeypatch):
    """What is compiled is stood in for by itself, so that nothing but its use is tested here."""
    taken = []

    def counted():
        taken.append(1)
        return rssm.RSSM.recurrence

    monkeypatch.setattr(rssm, "compiled_recurrence", counted)
    seen, steps, horizon = {}, 6, 3
    for compile in (True, False):
        losses, model = Losses(), small(VECTOR, imagination_length=horizon, compile=compile)
        batches = DataLoader([batch_of(VECTOR, t=steps, seed=i) for i in range(2)], batch_size=None)
        quiet(max_steps=2, callbacks=[losses]).fit(model, batches)
        assert model.rssm.compiled == compile
        assert len(taken) == 2 * (steps + horizon), "of the compiled fit, all steps of both updates; of the other, none"
        seen[compile] = losses.seen
    assert len(seen[True]) == 2 and seen[True] == seen[False]


@pytest.mark.parametrize(("device", "batches", "refused"), [("cuda", 2, True), ("cuda", 1, False), ("cpu", 2, False)])
def test_a_recorded_update_does_not_accumulate_gradients(monkeypatch, device, batches, refused):
    trainer = quiet(accumulate_grad_batches=batches)
    monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device(device))
    plain, compiled = small(VECTOR), small(VECTOR, compile=True)
    plain.trainer = compiled.trainer = trainer
    plain.configure_model()
    if refused:
        with pytest.raises(UserError, match="accumulate_grad_batches"):
            compiled.configure_model()
    else:
        compiled.configure_model()
    assert compiled.rssm.compiled == (device == "cpu") and not plain.rssm.compiled


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
