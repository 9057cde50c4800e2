"""Every known way to collapse is produced and caught; what is healthy never trips the alarm; and nothing of the training changes."""

import warnings

import pytest
import tiny_online
import tiny_routes
import torch
from jepa_worlds import batches, model_of
from lightning import Trainer

from datamodules.experience import ActionSpace, ExperienceSpec
from lit_wm.callbacks.collapse_alarm import CollapseAlarm, look
from lit_wm.errors import UserError
from lit_wm.evaluation.collapse import Readings, diagnosis

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
BOUNDS = {"least_std": 0.05, "least_rank": 2.5, "least_predicted": 0.05}


def trained(model, data, alarm, steps=300):
    torch.manual_seed(0)
    Trainer(max_steps=steps, callbacks=[alarm], enable_checkpointing=False, **QUIET).fit(model, data)
    return alarm


ONLINE = {"target": {"kind": "online", "normalise": False}}
SHAPES = {
    "complete collapse": ONLINE,
    "dimensional collapse": {**ONLINE, "regularizers": {"variance": 1.0}},
    "predictor collapse": {**ONLINE, "regularizers": {"variance": 1.0, "covariance": 1.0}},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_known_collapse_is_caught(shape):
    model, alarm = model_of(**SHAPES[shape]), CollapseAlarm(every_n_steps=50, batches=2)
    if shape == "predictor collapse":  # it is dead: whatever enters, the same comes out
        last = model.task.predictor.net[-1]
        last.weight.requires_grad_(False).zero_()
    with pytest.warns(UserWarning, match=rf"update \d+: {shape}: .* NMSE .* retrieval .* RankMe"):
        trained(model, batches(), alarm)
    assert alarm.alarms and alarm.alarms[0].startswith(shape)


HEALTHY = {
    "EMA": {},
    "VICReg": SHAPES["predictor collapse"],
    "SIGReg": {**ONLINE, "regularizers": {"sigreg": 0.1, "slices": 64}},
}


@pytest.mark.parametrize("arm", HEALTHY)
def test_what_is_healthy_never_trips_it(arm):
    alarm = CollapseAlarm(every_n_steps=25, batches=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="update .*collapse")
        trained(model_of(**HEALTHY[arm]), batches(), alarm)
    assert alarm.found == [None] * len(alarm.found) and len(alarm.found) >= 11


@pytest.mark.parametrize("route", ["dreamer", "genie", "jepa"])
def test_it_looks_at_any_route(make_recording, tmp_path, route):
    spec = ExperienceSpec({"frames": (64, 64, 3)}, ActionSpace("discrete", (4,)))
    root = make_recording([9, 20, 16, 7, 12, 31], spec=spec)
    alarm = CollapseAlarm(every_n_steps=3, batches=2)
    tiny_routes.fit(route, root, tmp_path / "out", 5, callbacks=[alarm])
    assert alarm.start is not None and len(alarm.found) >= 2


def test_it_looks_at_an_agent_that_learns_online(tmp_path):
    alarm = CollapseAlarm(every_n_steps=2, batches=2)
    tiny_online.fit(tmp_path / "looked", 6, callbacks=(alarm,))
    tiny_online.fit(tmp_path / "plain", 6)
    assert len(alarm.found) == 3 and tiny_online.seen(tmp_path / "looked") == tiny_online.seen(tmp_path / "plain")


def test_looking_changes_nothing_of_the_training():
    weights = []
    for callbacks in ([], [CollapseAlarm(every_n_steps=3, batches=2)]):
        torch.manual_seed(0)
        model = model_of(
            predictor={
                "kind": "conditional",
                "dim": 16,
                "depth": 1,
                "heads": 2,
                "head_width": 8,
                "mlp": 16,
                "dropout": 0.5,
            }
        )
        Trainer(max_steps=12, callbacks=callbacks, enable_checkpointing=False, **QUIET).fit(model, batches())
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_it_can_stop_the_run_and_marks_the_log(tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    alarm = CollapseAlarm(every_n_steps=20, batches=2, stop=True)
    quiet = QUIET | {"logger": TensorBoardLogger(tmp_path, name="", version="")}
    trainer = Trainer(max_steps=600, callbacks=[alarm], enable_checkpointing=False, log_every_n_steps=1, **quiet)
    with pytest.warns(UserWarning, match="the run stops"):
        trainer.fit(model_of(**SHAPES["complete collapse"]), batches())
    assert trainer.global_step < 600
    log = EventAccumulator(str(tmp_path))
    log.Reload()
    assert [event.value for event in log.Scalars("collapse/alarm")][-1] == 1.0
    assert {"collapse/std", "collapse/nmse", "collapse/retrieval", "collapse/rank", "collapse/rankme"} <= set(
        log.Tags()["scalars"]
    )
    assert any(tag.startswith("collapse/alarm") for tag in log.Tags()["tensors"])


def test_a_resumed_run_remembers_how_it_began():
    alarm, again = CollapseAlarm(every_n_steps=5, batches=2), CollapseAlarm(every_n_steps=5, batches=2)
    trained(model_of(), batches(), alarm, steps=12)
    again.load_state_dict(alarm.state_dict())
    assert again.start == alarm.start and again.found == alarm.found and again.state_dict() == alarm.state_dict()


def readings(**changed):
    healthy = {
        "std": 0.5,
        "rms": 0.7,
        "nmse": 0.3,
        "retrieval": 0.6,
        "chance": 0.01,
        "rank": 8.0,
        "rankme": 5.0,
        "predicted_share": 0.8,
    }
    return Readings(**(healthy | changed))


@pytest.mark.parametrize(
    ("now", "start", "says"),
    [
        ({}, {}, None),
        ({"std": 0.004, "rms": 0.005, "retrieval": 0.01}, {}, "complete"),
        ({"std": 0.004, "rank": 15.0, "retrieval": 0.01}, {"std": 0.1}, "complete"),  # its rounding noise has full rank
        ({"std": 0.004}, {}, None),  # little varies, but predictions know it apart
        ({"std": 0.02, "rms": 0.03, "retrieval": 0.01}, {"std": 0.03}, None),  # small from the beginning
        ({"nmse": None}, {}, "complete"),
        ({"rank": 1.4}, {}, "dimensional"),
        ({"rankme": 1.1}, {}, None),  # a healthy representation far from the origin
        ({"nmse": 1.0, "retrieval": 0.01, "predicted_share": 0.01}, {}, "predictor"),
        ({"nmse": 3.0, "retrieval": 0.01}, {}, None),  # wrong, but not collapsed: as every model is at first
    ],
)
def test_diagnosis(now, start, says):
    found = diagnosis(readings(**now), readings(**start), **BOUNDS)
    assert found is None if says is None else found.startswith(says)


def test_readings_of_places_and_rotations():
    torch.manual_seed(0)
    place_only = torch.randn(1, 9, 16).expand(200, 9, 16)  # tokens that tell places apart, but no frames
    z = torch.randn(200, 9, 16)
    assert Readings.of(z[:, 0], z[:, 0], place_only + 1e-6 * z).std < 1e-5
    line = torch.randn(200, 1, 1) * torch.randn(1, 1, 16) + torch.randn(1, 9, 16)
    assert Readings.of(z[:, 0], z[:, 0], line).rank < 1.1 < 15 < Readings.of(z[:, 0], z[:, 0], z).rank
    turn = torch.linalg.qr(torch.randn(16, 16)).Q
    a, b = Readings.of(z[:, 0], z[:, 1], z), Readings.of(z[:, 0] @ turn, z[:, 1] @ turn, z @ turn)
    assert a.nmse == pytest.approx(b.nmse, rel=1e-4) and a.rank == pytest.approx(b.rank, rel=1e-4)


def test_representations_that_are_no_numbers_are_refused():
    model = model_of()
    with torch.no_grad():
        next(model.task.encoder.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        look(model, next(iter(batches())), 0)


def test_too_few_predictions_are_refused():
    with pytest.raises(UserError, match="finds 2 predictions in 1 batches, it needs 8"):
        trained(model_of(), batches(4, size=1), CollapseAlarm(batches=1), steps=2)


@pytest.mark.parametrize("options", [{"every_n_steps": 0}, {"batches": 0}, {"patience": 0}])
def test_settings_that_cannot_work_are_refused(options):
    with pytest.raises(UserError, match="CollapseAlarm"):
        CollapseAlarm(**options)
