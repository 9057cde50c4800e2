"""What an ablation file may say, and what is refused in one line."""

import shutil

import pytest
import yaml

from lit_wm.ablation.definition import read_ablation
from lit_wm.errors import UserError

BASE = {"name": "base", "model": {"class_path": "lit_wm.genie.GenieModule"}}
SAID = {
    "question": "Which?",
    "base": "base.yaml",
    "set": {"trainer.max_steps": 7, "a": 1},
    "budgets": {"quick": {"trainer.max_steps": 3}, "full": {}},
    "arms": {"one": {}, "two": {"a": 2}},
    "measures": ["codes"],
    "columns": ["codes/effect_ami"],
    "claims": [{"says": "x", "source": "y", "metric": "codes/effect_ami", "above": "one", "below": "two"}],
}


@pytest.fixture
def read(tmp_path):
    """``read(budget, **changes)``: the ablation that the file says with these changes (None: without the key)."""
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))

    def read(budget="quick", **changes):
        said = {key: value for key, value in (SAID | changes).items() if value is not None}
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(said, sort_keys=False))
        return read_ablation(tmp_path / "small.yaml", budget, lambda name: str(tmp_path / name))

    return read


def test_the_budget_wins_over_what_all_share_and_the_arm_over_both(read):
    quick = read()
    assert quick.arms == {"one": {"trainer.max_steps": 3, "a": 1}, "two": {"trainer.max_steps": 3, "a": 2}}
    assert read("full").arms["two"] == {"trainer.max_steps": 7, "a": 2}
    assert read(None) == quick, "the first"
    assert quick.name == "small" and quick.claims[0].published == ""


def test_equal_trainings_share_a_folder_and_others_do_not(read, tmp_path):
    def names(ablation, seed=0):
        return {arm: ablation.run_name(overrides, seed) for arm, overrides in (ablation.first | ablation.arms).items()}

    one = names(read())["one"]
    assert one == names(read(arms={"other": {"trainer.max_steps": 3}}, claims=None))["other"]
    assert one == names(read(first={"before": {"a": 1, "trainer.max_steps": 3}}))["before"], (
        "an arm may go before another"
    )
    took = {"one": {"b": "{before}"}, "two": {}}
    others = {
        names(read())["two"],
        names(read(), 1)["one"],
        names(read("full"))["one"],
        names(read(first={"before": {"c": 1}}, arms=took))["one"],
        names(read(first={"before": {"c": 2}}, arms=took))["one"],
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE | {"seed_everything": 1}))
    assert len(others | {one, names(read())["one"]}) == 7, "an edited base is another training"


def test_other_data_is_another_training(read, make_recording):
    root = make_recording([9, 9, 9])
    said = {"arms": {"one": {"data.init_args.root": str(root)}}, "claims": None}
    before = read(**said)
    names = [before.run_name(before.arms["one"], 0)]
    assert names == [before.run_name(before.arms["one"], 0)]
    shutil.rmtree(root)
    make_recording([9, 9, 10])
    assert before.run_name(before.arms["one"], 0) not in names


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"meassures": ["codes"]}, "did you mean 'measures'"),
        ({"measures": ["code"]}, "'code' is not one of codes"),
        ({"measures": None}, "lacks the key 'measures'"),
        ({"arms": {}}, "arms must be a mapping"),
        ({"arms": {"one": [1], "two": {}}}, "arms.one must be a mapping"),
        ({"arms": {"One two": {}}}, "'One two'"),
        ({"columns": "codes/effect_ami"}, "columns must be a list"),
        ({"first": {"x": {}}, "arms": {"one": {"a": "{y}"}, "two": {}}}, "takes {y}, which is not one of first: x"),
        ({"claims": [{**SAID["claims"][0], "above": "three"}]}, "'three' is not one of the arms one, two"),
        ({"claims": [{**SAID["claims"][0], "abov": "three"}]}, "did you mean 'above'"),
        ({"claims": [{"says": "x"}]}, "claims.0 lacks the key 'source'"),
        ({"claims": [{**SAID["claims"][0], "above": "two"}]}, "claims.0 compares 'two' with itself"),
        ({"claims": 3}, "claims must be a list"),
        ({"first": ["x"]}, "first must be a mapping"),
        ({"first": {"x": {"a": "{x}"}}}, "first.x.a takes {x}, but only arms take a checkpoint"),
        ({"first": {"x": {}}, "arms": {"one": {"a": ["{x}"]}, "two": {}}}, "arms.one.a takes {x}, but only arms"),
        ({"arms": {"one": {"a": "{x-1}"}, "two": {}}}, "takes {x-1}, which is not one of first"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_file_and_key(read, changes, word):
    with pytest.raises(UserError) as refused:
        read(**changes)
    assert word in str(refused.value) and "small.yaml" in str(refused.value)


def test_a_budget_that_the_file_does_not_have_is_refused(read):
    with pytest.raises(UserError, match="no budget 'huge': quick, full"):
        read("huge")
