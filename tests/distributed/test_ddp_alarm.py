"""The collapse alarm over two ranks: both hear what the first one finds, and stop at the same update."""

import another_process
import tiny_routes

from datamodules.experience import ActionSpace, ExperienceSpec
from lit_wm.callbacks import collapse_alarm
from lit_wm.distributed import rank
from lit_wm.evaluation.collapse import Readings

SPEC = ExperienceSpec({"frames": (64, 64, 3)}, ActionSpace("discrete", (4,)))


def fit_with_a_collapse_on_the_first_rank(root, out):
    """Its readings are made up; those of the second rank are healthy."""

    def of(predicted, target, z):
        share = 0.0 if rank() == 0 else 0.8
        return Readings(0.5, 0.7, 0.3, 0.6, 0.01, 8.0, 5.0, share)

    collapse_alarm.Readings.of = staticmethod(of)
    alarm = collapse_alarm.CollapseAlarm(every_n_steps=3, batches=2, patience=2, stop=True)
    tiny_routes.fit("jepa", root, out, 50, devices=2, callbacks=[alarm])
    assert alarm.alarms == ["predictor collapse: representations vary, but the prediction is always the same"]


def test_both_ranks_stop(make_recording, tmp_path):
    root = make_recording([9, 20, 16, 7, 12, 31, 18, 9, 14, 6, 25, 17, 11], spec=SPEC)
    another_process.run_as_two_ranks(fit_with_a_collapse_on_the_first_rank, root, tmp_path / "out")
    first, second = (tiny_routes.seen(tmp_path / "out", number) for number in (0, 1))
    assert [entry["step"] for entry in first] == [entry["step"] for entry in second] == [1, 2, 3, 4, 5]
