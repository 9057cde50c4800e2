"""GenieModule: the contract, the orders of training, what learns when, and checkpoints."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.utils.data import DataLoader

from datamodules.experience import ActionSpace, ExperienceSpec
from lit_wm.contract import WorldModelContract, at
from lit_wm.errors import UserError
from lit_wm.genie import GenieModule
from lit_wm.genie.learning_order import ORDERS, PARTS, OptimizerSettings, trained_parts, turns
from lit_wm.genie.take_over import take_over

SPEC = ExperienceSpec({"frames": (16, 16, 3)}, ActionSpace("discrete", (5,)))
CODER = {"patch": 4, "dim": 16, "heads": 2, "ffn": 32, "encoder_blocks": 1, "decoder_blocks": 1, "codebook": "ema"}
FAST = {"lr": 3e-3, "warmup_steps": 1, "decay": "constant"}
W, N = 4, 16


def model(**options):
    torch.manual_seed(0)
    settings = {
        "frames": W,
        "tokenizer": {**CODER, "codes": 64, "latent_dim": 8},
        "lam": {**CODER, "latent_dim": 8},
        "dynamics": {"dim": 16, "heads": 2, "ffn": 32, "blocks": 1, "sampling_steps": 3, "temperature": 1.0},
        "order": "joint",
        **{f"{part}_optimizer": FAST for part in PARTS},
    }
    return GenieModule(SPEC.to_dict(), **(settings | options))


def clips(n=2, t=W, seed=0):
    """A square that moves by one of five moves: frames and episode marks, and nothing else."""
    random = np.random.default_rng(seed)
    frames = np.zeros((n, t, 3, 16, 16), np.uint8)
    moves = np.array([[0, 0], [0, 3], [0, -3], [3, 0], [-3, 0]])
    for clip in frames:
        place = random.integers(0, 12, 2)
        for frame in clip:
            frame[:, place[0] : place[0] + 5, place[1] : place[1] + 5] = np.array([250, 200, 30])[:, None, None]
            place = np.clip(place + moves[random.integers(5)], 0, 11)
    marks = {key: torch.zeros(n, t, dtype=torch.bool) for key in ("is_first", "is_last")}
    return {"frames": torch.from_numpy(frames), **marks}


def fit(module, steps, batch=None, **options):
    batch = clips(8) if batch is None else batch
    data = [{key: value[i] for key, value in batch.items()} for i in range(len(batch["frames"]))]
    options = {"logger": False, "enable_checkpointing": False, "max_epochs": -1} | options
    ckpt_path = options.pop("ckpt_path", None)
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, **options
    )
    trainer.fit(module, DataLoader(data, batch_size=4), ckpt_path=ckpt_path)
    return trainer


# ---- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [W, 11])
def test_states_have_the_contracts_shapes(length):
    m, batch = model().eval(), clips(t=length)
    assert isinstance(m, WorldModelContract)
    assert (m.action_space, m.codes, m.labels) == ("codes", m.lam.settings.codes, ("frames",))
    state, codes = m.observe(batch), m.infer_actions(batch)
    assert {key: tuple(x.shape) for key, x in state.items()} == {
        "tokens": (2, length, W, N),
        "codes": (2, length, W),
        "valid": (2, length, W),
    }
    assert codes.shape == (2, length - 1)
    assert m.features(state).shape == m.targets(batch).shape == (2, length, 4 * 8)
    future = m.imagine(at(state, 1), codes[:, :3], samples=5)
    assert future["tokens"].shape == (2, 5, 3, W, N)
    assert m.feature_map(future).shape == (2, 5, 3, N, 16)
    pictures = m.decode(future)
    assert pictures.shape == (2, 5, 3, 3, 16, 16)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    assert m.log_prob(state, batch) is None


def test_a_state_depends_on_nothing_later():
    m, batch, other = model().eval(), clips(t=9), clips(t=9, seed=5)
    changed = {**batch, "frames": torch.cat([batch["frames"][:, :6], other["frames"][:, 6:]], 1)}
    a, b = m.observe(batch), m.observe(changed)
    for key in a:
        assert torch.equal(a[key][:, :6], b[key][:, :6])
    assert torch.equal(m.features(a)[:, :6], m.features(b)[:, :6])
    assert torch.equal(m.decode(a)[:, :6], m.decode(b)[:, :6])
    assert not torch.equal(m.features(a)[:, 6:], m.features(b)[:, 6:])
    assert torch.equal(m.infer_actions(batch)[:, :5], m.infer_actions(changed)[:, :5])


def test_a_window_holds_the_past_and_nothing_else():
    m, batch = model().eval(), clips(t=7)
    state, codes = m.observe(batch), m.infer_actions(batch)
    tokens = m.tokenizer.encode(m.frames_of(batch))
    assert state["valid"].sum(-1).tolist() == [[1, 2, 3, 4, 4, 4, 4]] * 2
    assert torch.equal(state["tokens"][:, 5], tokens[:, 2:6])
    assert torch.equal(state["codes"][:, 5], codes[:, 1:5])  # codes[t] leads to frame t + 1
    assert torch.equal(state["tokens"][:, 1, -2:], tokens[:, :2])
    now, before = m.feature_map(state).chunk(2, -1)
    assert torch.equal(now[:, 0], before[:, 0])  # nothing before the first frame: it stands for itself
    assert torch.equal(now[:, 2], before[:, 3])


def test_decoding_a_clips_states_equals_decoding_the_clip():
    m, batch = model().eval(), clips()
    frames = m.tokenizer.decode(m.tokenizer.encode(m.frames_of(batch)))
    assert torch.allclose(m.decode(m.observe(batch)), frames, atol=1e-5)


def test_imagination_continues_its_window():
    m, batch = model().eval(), clips(t=6)
    state, actions = at(m.observe(batch), 2), torch.tensor([[1, 2, 3], [4, 5, 6]])
    future = m.imagine(state, actions, temperature=0)
    assert torch.equal(future["tokens"][:, 0, 0, :-1], state["tokens"][:, 1:])
    assert torch.equal(future["tokens"][:, 0, 2, :-1], future["tokens"][:, 0, 1, 1:])
    assert torch.equal(future["codes"][:, 0, 2, -3:], actions)
    assert future["valid"][:, 0].sum(-1).tolist() == [[4, 4, 4]] * 2


def test_imagination_of_states_of_different_age_equals_one_by_one():
    m, batch = model().eval(), clips(n=3, t=6)
    observed = m.observe(batch)
    ages = [0, 4, 2]
    mixed = {key: torch.stack([x[i, t] for i, t in enumerate(ages)]) for key, x in observed.items()}
    actions = torch.tensor([[1, 2], [3, 4], [5, 6]])
    together = m.imagine(mixed, actions, temperature=0)["tokens"]
    for i, t in enumerate(ages):
        alone = m.imagine({k: x[i : i + 1, t] for k, x in observed.items()}, actions[i : i + 1], temperature=0)
        assert torch.equal(together[i], alone["tokens"][0])


def test_imagination_is_blind_obeys_its_codes_and_its_generator():
    m, batch = model().eval(), clips(t=6)
    torch.nn.init.normal_(m.dynamics.input.head.weight)
    torch.nn.init.normal_(m.dynamics.input.action_in.weight)
    torch.nn.init.normal_(m.lam.bottleneck.codebook)
    state = at(m.observe(batch), 2)

    def tokens(codes, seed=0, **options):
        generator = torch.Generator().manual_seed(seed)
        return m.imagine(state, torch.full((2, 2), codes), generator=generator, **options)["tokens"]

    assert torch.equal(tokens(1, samples=2), tokens(1, samples=2))
    assert not torch.equal(tokens(1), tokens(1, seed=1))
    assert not torch.equal(tokens(1, temperature=0), tokens(6, temperature=0))
    many = tokens(1, samples=3)
    assert not torch.equal(many[:, 0], many[:, 1])
    greedy = tokens(1, temperature=0, samples=3)
    assert torch.equal(greedy[:, 0], greedy[:, 2])


def test_wrong_codes_and_clips_over_an_episodes_end():
    m, batch = model().eval(), clips()
    with pytest.raises(UserError, match=r"codes must lie in 0\.\.7"):
        m.imagine(at(m.observe(batch), 0), torch.tensor([[8], [0]]))
    batch["is_first"][0, 2] = True
    with pytest.raises(UserError, match="'is_first' is set inside a clip"):
        m.observe(batch)


VARIANTS = {
    "vectors": {"lam": {**CODER, "codebook": "vae", "kl": 1e-3, "latent_dim": 8}},
    "from tokens": {"lam": {**CODER, "latent_dim": 8, "input": "tokens"}},
    "autoregressive": {"dynamics": {"kind": "autoregressive", "dim": 16, "heads": 2, "ffn": 32, "blocks": 2}},
    "prepended": {
        "dynamics": {"action": "prepend", "dim": 16, "heads": 2, "ffn": 32, "blocks": 1, "sampling_steps": 3}
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_keeps_the_contract(name, tmp_path):
    m, batch = model(**VARIANTS[name]), clips(t=7)
    fit(m, 2).save_checkpoint(tmp_path / "genie.ckpt")
    m = GenieModule.load_from_checkpoint(tmp_path / "genie.ckpt", weights_only=True).eval()
    codes, state = m.infer_actions(batch), m.observe(batch)
    assert codes.shape[:2] == (2, 6)
    assert torch.equal(state["codes"][:, 5, -3:], codes[:, 2:5])  # the codes that led to frames 3, 4, 5
    future = m.imagine(at(state, 1), codes[:, 1:], samples=2, generator=torch.Generator().manual_seed(0))
    again = m.imagine(at(state, 1), codes[:, 1:], samples=2, generator=torch.Generator().manual_seed(0))
    assert future["tokens"].shape == (2, 2, 5, W, N)
    assert torch.equal(future["tokens"], again["tokens"])
    assert m.decode(future).shape == (2, 2, 5, 3, 16, 16)
    assert m.features(future).shape == (2, 2, 5, 32)
    assert m.infer_actions(clips(t=1)).shape[:2] == (2, 0)
    changed = {**batch, "frames": torch.cat([batch["frames"][:, :5], clips(t=2, seed=3)["frames"]], 1)}
    assert torch.equal(m.infer_actions(changed)[:, :4], codes[:, :4])


def test_vectors_and_codes_are_not_mixed_up():
    m, batch = model(**VARIANTS["vectors"]).eval(), clips()
    with pytest.raises(UserError, match="this model's actions are vectors of 8 numbers"):
        m.imagine(at(m.observe(batch), 0), torch.zeros(2, 1, dtype=torch.int64))
    m = model().eval()
    with pytest.raises(UserError, match=r"codes must lie in 0\.\.7"):
        m.imagine(at(m.observe(batch), 0), torch.zeros(2, 1, 8))


# ---- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "at_0", "at_9", "at_10", "at_15"),
    [
        ("staged", "tokenizer", "tokenizer", "lam dynamics", "lam dynamics"),
        ("separate", "tokenizer", "tokenizer", "lam", "dynamics"),
        ("joint", *["tokenizer lam dynamics"] * 4),
        ("tokenizer", *["tokenizer"] * 4),
        ("world", *["lam dynamics"] * 4),
        ("latent_action", *["lam"] * 4),
        ("dynamics", *["dynamics"] * 4),
    ],
)
def test_which_parts_learn_when(order, at_0, at_9, at_10, at_15):
    of_parts = turns(order, tokenizer_steps=10, lam_steps=5)
    assert [trained_parts(of_parts, step) for step in (0, 9, 10, 15)] == [
        tuple(parts.split()) for parts in (at_0, at_9, at_10, at_15)
    ]


def gradients(m, batch):
    m.zero_grad(set_to_none=True)
    losses = m.train().losses(batch)
    sum(value for name, value in losses.items() if not name.startswith("_")).backward()
    return {part: [p.grad is not None for p in getattr(m, part).parameters() if p.requires_grad] for part in PARTS}


@pytest.mark.parametrize("order", ORDERS)
def test_each_order_gives_gradients_to_its_parts_only(order):
    m = model(order=order, tokenizer_steps=1, tokenizer_checkpoint="unused", lam_checkpoint="unused")
    coders = {part: getattr(m, part) for part in ("tokenizer", "lam")}
    before = {part: {key: value.clone() for key, value in coder.state_dict().items()} for part, coder in coders.items()}
    found = gradients(m, clips())
    learning = trained_parts(m.turns, 0)
    for part in PARTS:
        assert all(found[part]) if part in learning else not any(found[part])
    for part, coder in coders.items():
        frozen = all(torch.equal(before[part][key], value) for key, value in coder.state_dict().items())
        assert frozen == (part not in learning)  # not even its running statistics


def test_objectives_of_the_latent_action_model():
    m = model(order="world", lam_objective="pixel")
    assert all(gradients(m, clips())["lam"])

    def from_dynamics(objective):
        m = model(order="world", lam_objective=objective).train()
        losses = m.losses(clips())
        losses["dynamics_ce"].backward()
        return losses, m

    losses, m = from_dynamics("pixel")
    assert all(p.grad is None for p in m.lam.parameters())  # the paper: the dynamics does not teach the codes
    losses, m = from_dynamics("dynamics")
    assert "lam_pixels" not in losses
    assert m.lam.patch_in.project.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in m.lam.decoder.parameters())
    losses, m = from_dynamics("both")
    assert "lam_pixels" in losses
    assert m.lam.patch_in.project.weight.grad.abs().sum() > 0


def test_the_staged_order_in_one_fit():
    m = model(order="staged", tokenizer_steps=2)
    start = {key: value.clone() for key, value in m.state_dict().items()}

    def moved(part):
        return any(not torch.equal(start[key], value) for key, value in m.state_dict().items() if key.startswith(part))

    fit(m, 2)
    assert [moved(part) for part in PARTS] == [True, False, False]
    m = model(order="staged", tokenizer_steps=0)
    fit(m, 2)
    assert [moved(part) for part in PARTS] == [False, True, True]
    m = model(order="separate", tokenizer_steps=0, lam_steps=2)
    fit(m, 2)
    assert [moved(part) for part in PARTS] == [False, True, False]


def test_learning_lowers_every_loss():
    m, batch = model(), clips(32)
    first = {key: float(value.detach()) for key, value in m.losses(batch).items()}
    fit(m, 60, batch)
    m.train()
    last = {key: float(value.detach()) for key, value in m.losses(batch).items()}
    assert last["tokenizer_pixels"] < 0.6 * first["tokenizer_pixels"]
    assert last["lam_pixels"] < 0.6 * first["lam_pixels"]
    assert last["dynamics_ce"] < 0.8 * first["dynamics_ce"]


def test_schedules_count_from_a_parts_own_first_update():
    s = OptimizerSettings(lr=1.0, warmup_steps=2, decay="linear", final_factor=0.0, decay_share=0.5)
    assert [s.factor(step, 10) for step in (-1, 0, 1, 5, 10)] == [0, 0.5, 1, 1, 0]
    m = model(order="staged", tokenizer_steps=3, lam_optimizer={**FAST, "warmup_steps": 2})
    trainer = fit(m, 4)
    groups = {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups}
    assert groups["lam"] == FAST["lr"]  # about to do update 4, its own second
    assert groups["tokenizer"] == FAST["lr"]


def test_each_schedule_ends_with_the_turn_of_its_part():
    falling = {"lr": 1.0, "warmup_steps": 0, "decay": "linear", "final_factor": 0.0, "decay_share": 1.0}
    m = model(order="separate", tokenizer_steps=2, lam_steps=4, lam_optimizer=falling, tokenizer_optimizer=falling)
    assert [m._factor_of("lam", m.optimizers_of["lam"], 100)(step) for step in range(7)] == [
        0,
        0,
        1,
        0.75,
        0.5,
        0.25,
        0,
    ]
    of_tokenizer = m._factor_of("tokenizer", m.optimizers_of["tokenizer"], 100)
    assert [of_tokenizer(step) for step in range(3)] == [1, 0.5, 0]


def test_training_needs_no_labels_and_clips_of_the_right_length():
    assert set(clips()) == {"frames", "is_first", "is_last"}
    fit(model(), 1)
    with pytest.raises(UserError, match="clips of 5 frames, but the genie model trains on 2 to 4"):
        model().losses(clips(t=5))


# ---- checkpoints and mistakes ----------------------------------------------------------------------------------------


def test_a_checkpoint_rebuilds_the_model(tmp_path):
    m, batch = model(), clips()
    fit(m, 2).save_checkpoint(tmp_path / "genie.ckpt")
    again = GenieModule.load_from_checkpoint(tmp_path / "genie.ckpt", weights_only=True).eval()
    assert dict(again.hparams) == dict(m.hparams)
    for key, value in m.eval().observe(batch).items():
        assert torch.equal(again.observe(batch)[key], value)
    assert torch.equal(again.decode(again.observe(batch)), m.decode(m.observe(batch)))


def test_validation_of_a_checkpoint_measures_the_parts_that_had_learnt(tmp_path):
    options = {"order": "staged", "tokenizer_steps": 2}
    trainer = fit(model(**options), 3)
    trainer.save_checkpoint(tmp_path / "genie.ckpt")
    batch = clips(4)
    data = DataLoader([{key: value[i] for key, value in batch.items()} for i in range(4)], batch_size=4)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    (measured,) = Trainer(**quiet).validate(model(**options), data, ckpt_path=tmp_path / "genie.ckpt", verbose=False)
    assert {"val/dynamics_ce", "val/lam_pixels"} <= measured.keys() and "val/tokenizer_pixels" not in measured


def test_ddp_is_told_that_not_all_parts_learn_in_every_step():
    waits = {"tokenizer": {**CODER, "latent_dim": 8, "codebook": "gradient", "continuous_warmup": 1}}
    for options, told in (({"order": "staged"}, True), ({"order": "joint"}, None), ({"order": "joint", **waits}, True)):
        m, strategy = model(**options), DDPStrategy()
        m._trainer = SimpleNamespace(strategy=strategy, precision="32-true", max_steps=1)
        m.setup("fit")
        assert strategy._ddp_kwargs.get("find_unused_parameters") is told


@pytest.mark.parametrize("part", ["tokenizer", "lam"])
@pytest.mark.parametrize("option", [{"kmeans_start": True}, {"restart_below": 0.1}])
def test_fsdp2_refuses_a_learnt_codebook_that_is_also_set(part, option):
    for codebook, refused in (("ema", False), ("gradient", True)):
        m = model(**{part: {**CODER, "latent_dim": 8, "codebook": codebook, **option}})
        m._trainer = SimpleNamespace(strategy=ModelParallelStrategy(), precision="32-true", max_steps=9)
        if refused:
            with pytest.raises(UserError, match=rf"{part}\.codebook 'gradient' .* under FSDP2"):
                m.setup("fit")
        else:
            m.setup("fit")


@pytest.mark.parametrize(("end", "warned"), [(2, "lam and dynamics"), (5, "dynamics"), (6, None), (-1, None)])
def test_parts_whose_turn_never_comes_are_named(end, warned):
    m = model(order="separate", tokenizer_steps=2, lam_steps=3)
    m._trainer = SimpleNamespace(strategy=None, precision="32-true", max_steps=end)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        m.setup("fit")
    assert [f"before the turn of {warned} (" in str(one.message) for one in said] == [True] * (warned is not None)


@pytest.mark.parametrize(("length", "warned"), [(W - 1, True), (W, False)])
def test_a_window_that_no_clip_fills_is_warned_of(length, warned):
    m = model()
    data = SimpleNamespace(clip_length=length)
    m._trainer = SimpleNamespace(strategy=None, precision="32-true", max_steps=1, datamodule=data)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        m.setup("fit")
    assert [f"clips of {length} frames" in str(one.message) for one in said] == [True] * warned


def test_world_takes_over_a_tokenizer(tmp_path):
    path = str(tmp_path / "genie.ckpt")
    donor = model(order="tokenizer")
    fit(donor, 2).save_checkpoint(path)
    m = model(order="world", tokenizer_checkpoint=path)
    fit(m, 1)
    assert all(torch.equal(v, m.tokenizer.state_dict()[k]) for k, v in donor.tokenizer.state_dict().items())
    fit(m, 2).save_checkpoint(tmp_path / "world.ckpt")
    Path(path).rename(tmp_path / "elsewhere.ckpt")
    fit(model(order="world", tokenizer_checkpoint=path), 3, ckpt_path=tmp_path / "world.ckpt")  # its own copy is enough
    Path(tmp_path / "elsewhere.ckpt").rename(path)
    with pytest.raises(UserError, match="needs 'tokenizer_checkpoint'"):
        fit(model(order="world"), 1)
    with pytest.raises(UserError, match=r"no checkpoint at .*gone\.ckpt"):
        fit(model(order="world", tokenizer_checkpoint=str(tmp_path / "gone.ckpt")), 1)


TAKEN = {
    "tokenizer": [
        ({"codes": 32}, "tokenizer.codes is 64 in tokenizer_checkpoint .*, 32 here"),
        ({"encoder_positions": False}, "tokenizer.encoder_positions is True in .*, False here"),
        ({"kind": "vit"}, "tokenizer.kind is st_vivit in .*, vit here"),
        ({"heads": 4}, "tokenizer.heads is 2 in .*, 4 here"),
    ],
    "lam": [
        ({"codes": 6}, "lam.codes is 8 in lam_checkpoint .*, 6 here"),
        ({"pool": "mean"}, "lam.pool is token in .*, mean here"),
        ({"downsample": 2, "patch": 2}, "lam.patch is 4 in .*, 2 here"),
    ],
}


@pytest.mark.parametrize(
    ("part", "changes", "told"), [(part, *case) for part, cases in TAKEN.items() for case in cases]
)
def test_a_part_that_computes_something_else_is_not_taken_over(tmp_path, part, changes, told):
    donor = {"tokenizer": {**CODER, "codes": 64, "latent_dim": 8}, "lam": {**CODER, "latent_dim": 8}}
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    fit(model(order="tokenizer"), 1).save_checkpoint(path)
    with pytest.raises(UserError, match=told):
        take_over(getattr(model(**{part: donor[part] | changes}), part), part, str(path))
    with pytest.raises(UserError, match="made for other pictures or clips"):
        larger = ExperienceSpec({"frames": (16, 16, 1)}, ActionSpace("discrete", (5,)))
        m = GenieModule(**dict(model().hparams) | {"experience": larger.to_dict()})
        take_over(getattr(m, part), part, str(path))


@pytest.mark.parametrize("part", ["tokenizer", "lam"])
def test_a_part_that_learnt_otherwise_is_taken_over_from_a_run_folder(tmp_path, part):
    """How long its warm-up was, and what its quantizer kept of it, is its own affair."""
    size = {"codes": 64, "latent_dim": 8} if part == "tokenizer" else {"latent_dim": 8}
    learnt = {"kmeans_start": True, "restart_below": 0.1, "continuous_warmup": 1}
    donor = model(**{part: {**CODER, **size, **learnt}})
    fit(donor, 3).save_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    for own in ({}, learnt):
        m = model(**{part: {**CODER, **size, **own}})
        take_over(getattr(m, part), part, str(tmp_path / "run"))
        mine, theirs = getattr(m, part).eval(), getattr(donor, part).eval()
        x = clips(2)["frames"] / 255
        assert torch.equal(mine.encode(x), theirs.encode(x))


def test_the_optimizer_has_the_settings_numbers():
    trainer = fit(model(betas=(0.5, 0.7), weight_decay=0.03), 1)
    (optimizer,) = trainer.optimizers
    assert {(tuple(group["betas"]), group["weight_decay"]) for group in optimizer.param_groups} == {((0.5, 0.7), 0.03)}


def test_the_three_parts_in_three_runs(tmp_path):
    """What a part learnt by itself is taken over as it is, and only the new part learns."""
    paths = {"tokenizer": str(tmp_path / "tokenizer.ckpt"), "lam": str(tmp_path / "lam.ckpt")}
    donors = {"tokenizer": model(order="tokenizer"), "lam": model(order="latent_action")}
    for part, donor in donors.items():
        fit(donor, 2).save_checkpoint(paths[part])
    m = model(order="dynamics", tokenizer_checkpoint=paths["tokenizer"], lam_checkpoint=paths["lam"])
    started = {key: value.clone() for key, value in m.dynamics.state_dict().items()}
    fit(m, 2)
    for part, donor in donors.items():
        mine = getattr(m, part).state_dict()
        assert all(torch.equal(value, mine[key]) for key, value in getattr(donor, part).state_dict().items())
    assert any(not torch.equal(value, started[key]) for key, value in m.dynamics.state_dict().items())
    with pytest.raises(UserError, match="order 'dynamics' of the genie model needs 'lam_checkpoint'"):
        fit(model(order="dynamics", tokenizer_checkpoint=paths["tokenizer"]), 1)
    with pytest.raises(UserError, match="order 'latent_action' of the genie model needs 'tokenizer_checkpoint'"):
        fit(model(order="latent_action", lam={**CODER, "input": "tokens"}), 1)
    with pytest.raises(UserError, match="trains one part at a time: lam_objective must be pixel"):
        model(order="latent_action", lam_objective="both")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "backwards"}, "order of the genie model 'backwards'"),
        ({"lam_objective": "hope"}, "lam_objective of the genie model 'hope'"),
        ({"tokenizer": {"pach": 4}}, "'tokenizer' of the genie model: .*'pach'"),
        ({"lam_optimizer": {"decay": "steep"}}, "decay of the lam optimizer of the genie model 'steep'"),
        ({"lam": {**CODER, "patch": 8, "input": "tokens"}}, "lam.patch must be the tokenizer's 4"),
        ({"lam": {**CODER, "patch": 5}}, "16x16 picture is not divisible by patches of 5"),
        ({"dynamics": {"dim": 18, "heads": 4}}, "cannot be built"),
        (
            {"order": "staged", "tokenizer": {**CODER, "continuous_warmup": 5}, "tokenizer_steps": 5},
            "none of the 5 tok",
        ),
        (
            {"order": "separate", "lam": {**CODER, "continuous_warmup": 5}, "tokenizer_steps": 5, "lam_steps": 4},
            "lam.continuous_warmup 5 leaves none of the 4 lam_steps",
        ),
        ({"order": "separate", "lam_objective": "both"}, "one part at a time"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] of the genie model is 1.0, it must be in \[0, 1\)"),
        ({"weight_decay": -1.0}, "weight_decay of the genie model is -1.0"),
        ({"order": "separate", "tokenizer_steps": -5}, "tokenizer_steps of the genie model is -5"),
        ({"lam": {**CODER, "decay": 1.5}}, "decay of the genie model's lam is 1.5"),
        ({"tokenizer": {**CODER, "restart_below": 5}}, "restart_below of the genie model's tokenizer is 5"),
    ],
)
def test_mistakes_are_one_line(options, message):
    with pytest.raises(UserError, match=message) as caught:
        model(**options)
    assert "\n" not in str(caught.value)


def test_data_without_pictures():
    with pytest.raises(UserError, match="needs the picture 'frames'"):
        GenieModule(ExperienceSpec({"vector": (3,)}, ActionSpace("discrete", (2,))).to_dict())


def test_decay_needs_an_end():
    with pytest.raises(UserError, match=r"trainer\.max_steps is not set"):
        fit(model(lam_optimizer={**FAST, "decay": "cosine"}), -1, max_epochs=1)
