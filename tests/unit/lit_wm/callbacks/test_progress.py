"""The progress bar counts updates, not epochs that have no end."""

from types import SimpleNamespace

import pytest

from lit_wm.callbacks.progress import UpdateProgressBar


def trainer(global_step, max_steps):
    metrics = {"loss": 0.5, "v_num": ""}
    return SimpleNamespace(
        global_step=global_step, max_steps=max_steps, max_epochs=-1, loggers=[], progress_bar_metrics=metrics
    )


@pytest.mark.parametrize("most, said", [(3000, "412/3000"), (-1, 412)])
def test_it_counts_updates(most, said):
    shown = UpdateProgressBar().get_metrics(trainer(412, most), None)
    assert shown == {"update": said, "loss": 0.5}
    assert next(iter(shown)) == "update"


def test_the_description_does_not_promise_epochs():
    bar = UpdateProgressBar()
    assert bar._get_train_description(3).strip() == "Epoch 3"
    assert len(bar._get_train_description(3)) == len(bar.validation_description)
