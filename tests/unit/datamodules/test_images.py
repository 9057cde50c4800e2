"""Single pictures: every frame once an epoch, cropped and mirrored in training alone, and where the crop says."""

import pytest
import torch
from lightning import LightningModule, Trainer

from datamodules.experience import ActionSpace, ExperienceError, ExperienceSpec
from datamodules.images import ImageDataModule, random_crops
from lit_wm.callbacks.checkpoint import StepCheckpoint

SPEC = ExperienceSpec({"frames": (16, 16, 3)}, ActionSpace("discrete", (4,)))


def ramp(n=512, size=32):
    """Pictures whose red tells the column and whose green the row of a pixel."""
    line = torch.arange(size, dtype=torch.uint8) * 8
    picture = torch.stack(
        [line.expand(size, size), line[:, None].expand(size, size), torch.zeros(size, size, dtype=torch.uint8)]
    )
    return picture.expand(n, -1, -1, -1)


def sides(crops):
    """Width and height of each crop in pixels, by how far its colours reach."""
    red, green = crops[:, 0].float() / 8, crops[:, 1].float() / 8
    return (red[:, 16, 31] - red[:, 16, 0]) * 32 / 31, (green[:, 31, 16] - green[:, 0, 16]) * 32 / 31


def test_a_whole_picture_is_left_alone():
    x = ramp(4)
    assert torch.equal(random_crops(x, (1.0, 1.0), (3 / 4, 4 / 3), 0.0), x)
    assert torch.equal(random_crops(x, (1.0, 1.0), (3 / 4, 4 / 3), 1.0), x.flip(-1))


def test_scale_and_aspect_are_what_was_asked_for_and_do_not_depend_on_each_other():
    generator = torch.Generator().manual_seed(0)
    width, height = sides(random_crops(ramp(4000), (0.3, 0.6), (3 / 4, 4 / 3), 0.0, generator))
    area, ratio = width * height / 32**2, (width / height).log()
    assert 0.28 < area.min() < 0.33 and 0.57 < area.max() < 0.62 and abs(area.mean() - 0.45) < 0.01
    assert (
        abs(ratio.mean()) < 0.01 and ratio.max() > 0.25 and abs(torch.corrcoef(torch.stack([area, ratio]))[0, 1]) < 0.05
    )


def test_crops_lie_anywhere():
    crops = random_crops(ramp(4000), (0.25, 0.25), (1.0, 1.0), 0.0, torch.Generator().manual_seed(0)).float() / 8
    for centre in (crops[:, 0, 16, 16], crops[:, 1, 16, 16]):
        assert centre.min() < 8.5 and centre.max() > 22.5 and abs(centre.mean() - 15.5) < 0.6


def test_half_are_mirrored():
    width, height = sides(random_crops(ramp(2000), (1.0, 1.0), (1.0, 1.0), 0.5, torch.Generator().manual_seed(0)))
    assert abs((width < 0).float().mean() - 0.5) < 0.04 and (height > 0).all()


class Collects(LightningModule):
    def __init__(self):
        super().__init__()
        self.p, self.seen, self.held_out = torch.nn.Parameter(torch.zeros(())), [], []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["frames"])
        return self.p * 0

    def validation_step(self, batch, batch_idx):
        self.held_out.append((batch["frames"], batch["weight"]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(root, **options):
    data, model = ImageDataModule(str(root), batch_size=8, **options), Collects()
    torch.manual_seed(0)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, **quiet).fit(model, data)
    return data, model


def test_pictures_are_changed_in_training_alone(make_recording):
    root = make_recording([9, 20, 16, 7, 12, 31], spec=SPEC)
    _, whole = fit(root, crop_scale=(1.0, 1.0))
    data, changed = fit(root, flip=0.5)
    assert all(x.shape == (8, 1, 3, 16, 16) and x.dtype == torch.uint8 for x in changed.seen)
    assert len(whole.seen) == len(changed.seen) > 3
    assert all(not torch.equal(a, b) for a, b in zip(whole.seen, changed.seen, strict=True))
    for (a, _), (b, _) in zip(whole.held_out, changed.held_out, strict=True):
        assert torch.equal(a, b)
    steps = data.index.splits["val"]["steps"]
    assert sum(int(weight.sum()) for _, weight in changed.held_out) == steps, "every held-out frame once"


def test_the_same_seed_crops_alike(make_recording):
    root = make_recording([9, 20, 16, 7, 12, 31], spec=SPEC)
    (_, one), (_, other) = (fit(root) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.seen, other.seen, strict=True))


def test_a_resumed_run_crops_as_the_uninterrupted_one(make_recording, tmp_path):
    root = make_recording([30, 20, 36, 27, 32, 31], spec=SPEC)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}

    def run(steps, resume=None):
        data, model = ImageDataModule(str(root), batch_size=8, flip=0.5), Collects()
        checkpoints = StepCheckpoint(every_n_train_steps=3)
        checkpoints.dirpath = str(tmp_path / "checkpoints")
        trainer = Trainer(max_steps=steps, accelerator="cpu", callbacks=[checkpoints], **quiet)
        trainer.fit(model, data, ckpt_path=resume, weights_only=True)
        return model.seen

    whole, first = run(6), run(3)
    rest = run(6, tmp_path / "checkpoints" / "last.ckpt")
    assert len(first) == len(rest) == 3
    assert all(torch.equal(a, b) for a, b in zip(whole, first + rest, strict=True))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"crop_scale": (0.5, 0.3)}, "crop_scale is 0.5 to 0.3"),
        ({"crop_scale": (0.5, 1.5)}, "up to 1"),
        ({"crop_aspect": (0.0, 1.0)}, "crop_aspect is 0.0 to 1.0"),
        ({"flip": 1.5}, "flip is 1.5"),
        ({"without": ["frames"]}, "holds no pictures 'frames'"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_what_cannot_work_is_refused(make_recording, options, says):
    with pytest.raises(ExperienceError, match=says):
        ImageDataModule(str(make_recording([9, 20, 16], spec=SPEC)), **options)
