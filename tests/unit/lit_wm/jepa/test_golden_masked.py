"""I-JEPA and V-JEPA against the numbers of their released code: every tensor on the way, losses, gradients, updates."""

import pytest
import torch
from jepa_golden import DTYPES, close, fill, fill_module, same_tensor, section, values

from lit_wm.jepa.masked_predictor import MaskedPredictor
from lit_wm.jepa.masks import Mask
from lit_wm.jepa.objective import DISTANCES
from lit_wm.jepa.predictor import normalise
from lit_wm.jepa.vit import VisionTransformer, take
from lit_wm.nn.patches import sincos_2d, sincos_3d

both = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


class Reference:
    """The tiny networks of one section of the file, in our classes."""

    def __init__(self, name, dtype):
        self.name, self.dtype, self.config = name, dtype, section(name)["config"]
        c, image = self.config, name == "ijepa"
        frames = {} if image else {"frames": c["frames"], "tubelet": c["tubelet"]}
        grid = (1, c["grid"], c["grid"]) if image else tuple(c["grid"])
        size = (c["img"], c["img"])
        encoders = [
            VisionTransformer(size, 3, c["patch"], c["dim"], c["depth"], c["heads"], **frames) for _ in range(2)
        ]
        self.encoder, self.target = encoders
        self.predictor = MaskedPredictor(
            grid, image, c["dim"], c["pdim"], c["pdepth"], c["pheads"], kinds=1 if image else 2
        )
        for part, module in (("encoder", self.encoder), ("target_encoder", self.target), ("predictor", self.predictor)):
            module.to(dtype)
            fill_module(module, f"A.{name}.{part}", {"mask_tokens.0": "mask_token"} if image else None)
        self.target.requires_grad_(False)
        masks = section(name)["masks"]
        if image:  # block by block in the file
            self.masks = [Mask(torch.tensor(masks["context"]), torch.tensor(masks["targets"]).transpose(0, 1))]
        else:
            kinds = (masks["short"], masks["long"])
            self.masks = [Mask(torch.tensor(m["context"]), torch.tensor(m["target"])[:, None]) for m in kinds]
        shape = (c["batch"], 3, c["img"], c["img"]) if image else (c["batch"], 3, c["frames"], c["img"], c["img"])
        self.x = fill(f"A.{name}.images.0" if image else f"A.{name}.clips", shape).to(dtype)
        self.golden = values(name, dtype)

    def evaluate(self, x=None, rows=slice(None)):
        """Losses of each mask and block, and what lies on the way, of some rows of the batch."""
        x = (self.x if x is None else x)[rows]
        with torch.no_grad():
            h_bnd = self.target(x)
        h_bnd = normalise(h_bnd)
        found, errors = {"target_layernormed": h_bnd}, []
        for kind, whole in enumerate(self.masks):
            mask = Mask(whole.context_bk[rows], whole.targets_bml[rows])
            z_bkd = self.encoder(x, mask.context_bk)
            predicted_bmld = self.predictor(z_bkd, mask, kind)
            target_bmld = take(h_bnd, mask.targets_bml.flatten(1)).view_as(predicted_bmld)
            errors.append((predicted_bmld, target_bmld))
            found[f"context{kind}"], found[f"predicted{kind}"], found[f"target{kind}"] = (
                z_bkd,
                predicted_bmld,
                target_bmld,
            )
        return found, errors


def block_first(x_bmld):
    """The file concatenates the targets of an image block by block."""
    return x_bmld.transpose(0, 1).flatten(0, 1)


def image_loss(errors):
    return DISTANCES["smooth_l1"](*errors[0]).mean()


def video_loss(errors):
    return torch.stack([DISTANCES["l1"](*pair).mean() for pair in errors]).mean()


def norm_of_gradients(module):
    return torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm().item()


def gradient_misses(reference, loose=5):
    """Parameters whose gradient has another norm than in the file; zeros in exact arithmetic need only be small."""
    misses = []
    for part, module in (("encoder", reference.encoder), ("predictor", reference.predictor)):
        for name, parameter in module.named_parameters():
            theirs = name if reference.name == "vjepa" else name.replace("mask_tokens.0", "mask_token")
            wanted, found = reference.golden["per_tensor_grad_norm"][f"{part}.{theirs}"], parameter.grad.norm().item()
            if not (close(found, wanted, reference.dtype, loose) or max(found, wanted) < 1e-6):
                misses.append((part, name, found, wanted))
    return misses


@both
def test_i_jepa_forward_losses_and_gradients(dtype):
    reference = Reference("ijepa", dtype)
    golden = reference.golden
    found, errors = reference.evaluate()
    for name, tensor in {
        "target_layernormed": found["target_layernormed"],
        "context_encoder.out": found["context0"],
        "targets_gathered": block_first(found["target0"]),
        "predictor.out": block_first(found["predicted0"]),
        "pos_embed": reference.encoder.pos_embed,
        "predictor_pos_embed": reference.predictor.predictor_pos_embed,
    }.items():
        assert same_tensor(tensor, golden["tensors"][name], dtype), name
    loss = image_loss(errors)
    blocks = DISTANCES["smooth_l1"](*errors[0]).mean((0, 2, 3))
    assert close(loss.item(), golden["loss"], dtype)
    assert all(close(a, b, dtype) for a, b in zip(blocks.tolist(), golden["per_target_block"], strict=True))
    assert close(DISTANCES["l1"](*errors[0]).mean().item(), golden["l1"], dtype)
    assert close(2 * DISTANCES["l2"](*errors[0]).mean().item(), golden["mse"], dtype)
    loss.backward()
    assert gradient_misses(reference) == []
    assert all(p.grad is None for p in reference.target.parameters())


@both
def test_i_jepa_halves_average_to_the_whole(dtype):
    """What data parallelism relies on."""
    reference = Reference("ijepa", dtype)
    for rows, wanted in zip((slice(0, 2), slice(2, 4)), reference.golden["halves"], strict=True):
        reference.encoder.zero_grad(), reference.predictor.zero_grad()
        loss = image_loss(reference.evaluate(rows=rows)[1])
        loss.backward()
        assert close(loss.item(), wanted["loss"], dtype)
        assert close(norm_of_gradients(reference.encoder), wanted["grad_norm_encoder"], dtype, 5)
        assert close(norm_of_gradients(reference.predictor), wanted["grad_norm_predictor"], dtype, 5)


@both
def test_v_jepa_forward_losses_and_gradients(dtype):
    reference = Reference("vjepa", dtype)
    golden = reference.golden
    found, errors = reference.evaluate()
    tensors = {
        "target_layernormed": found["target_layernormed"],
        "pos_embed": reference.encoder.pos_embed,
        "predictor_pos_embed": reference.predictor.predictor_pos_embed,
    }
    for i, kind in enumerate(("short", "long")):
        tensors |= {f"context_encoder.out.{kind}": found[f"context{i}"], f"targets.{kind}": found[f"target{i}"][:, 0]}
        tensors[f"predictor.out.{kind}"] = found[f"predicted{i}"][:, 0]
    for name, tensor in tensors.items():
        assert same_tensor(tensor, golden["tensors"][name], dtype), name
    loss = video_loss(errors)
    assert close(loss.item(), golden["loss"], dtype)
    for pair, wanted in zip(errors, golden["per_mask"], strict=True):
        assert close(DISTANCES["l1"](*pair).mean().item(), wanted, dtype)
    loss.backward()
    assert gradient_misses(reference) == []


@pytest.mark.parametrize(("dim", "side"), [(32, 4), (192, 8), (384, 14), (1280, 16)])
def test_positions_of_images(dim, side):
    wanted = section("ijepa")["values"]["pos_tables_float64"][f"dim{dim}_grid{side}"]
    assert same_tensor(sincos_2d(side, side, dim), wanted, torch.float32)


@pytest.mark.parametrize(("dim", "side", "times"), [(384, 14, 8), (192, 8, 4), (1024, 14, 8)])
def test_positions_of_clips(dim, side, times):
    wanted = section("vjepa")["values"]["pos_tables_float64"][f"dim{dim}_grid{side}_depth{times}_uniformTrue"]
    assert same_tensor(sincos_3d(times, side, side, dim), wanted, torch.float32)
