"""Space files: what they mean, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from medley.config import Run, make_run
from medley.schema import InputError
from medley.search.spaces import read_space

SPACES = Path(__file__).resolve().parents[2] / "tune" / "spaces"


def run_with(**settings: Any) -> Run:
    return make_run({"name": "x", "model": {"encoders": {"text": {"kind": "subword"}}}, **settings}, "test")


def write(folder: Path, text: str) -> str:
    path = folder / "space.yaml"
    path.write_text(text)
    return str(path)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        read_space(write(folder, text), run_with())
    return str(caught.value)


def test_ranges_and_choices_become_domains_with_both_ends(tmp_path: Path) -> None:
    text = "model.dimension: {int: [4, 5]}\nloss.temperature: {uniform: [0.5, 1]}\ntrain.optimizer.learning_rate: {log_uniform: [1.0e-4, 0.1]}\n"
    domains = read_space(write(tmp_path, text), run_with()).domains()
    assert {domains["model.dimension"].sample() for _ in range(60)} == {4, 5}
    assert 0.5 <= domains["loss.temperature"].sample() <= 1
    assert 1e-4 <= domains["train.optimizer.learning_rate"].sample() <= 0.1


def test_a_choice_may_be_a_group_of_settings(tmp_path: Path) -> None:
    space = read_space(write(tmp_path, "model.fusion: {choice: [{kind: gated}, {kind: concat, hidden_dimension: 7}]}"), run_with())
    texts = space.domains()["model.fusion"].categories
    assert space.changes({"model.fusion": texts[1]}) == {"model.fusion": {"kind": "concat", "hidden_dimension": 7}}


def test_the_first_point_is_the_configuration_as_it_is(tmp_path: Path) -> None:
    text = "model.fusion: {choice: [{kind: concat}, {kind: gated}]}\ntrain.optimizer.table_weight_decay: {log_uniform: [0.001, 1]}\n"
    space = read_space(write(tmp_path, text), run_with())
    assert space.own_point == {"model.fusion": '{"kind": "gated"}', "train.optimizer.table_weight_decay": 0.001}
    assert space.changes(space.own_point) == {}


def test_an_own_value_outside_the_choices_joins_them(tmp_path: Path) -> None:
    space = read_space(write(tmp_path, "model.dimension: {choice: [8, 16]}"), run_with())
    assert space.domains()["model.dimension"].categories == ["8", "16", "64"]


def test_a_group_is_set_before_the_settings_in_it(tmp_path: Path) -> None:
    text = "model.fusion.modality_dropout: {uniform: [0, 0.5]}\nmodel.fusion: {choice: [{kind: gated}, {kind: concat}]}\n"
    space = read_space(write(tmp_path, text), run_with())
    changes = space.changes({"model.fusion.modality_dropout": 0.25, "model.fusion": '{"kind": "concat"}'})
    assert list(changes) == ["model.fusion", "model.fusion.modality_dropout"]


def test_a_setting_that_only_one_choice_has_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, "model.fusion: {choice: [{kind: gated}, {kind: concat}]}\nmodel.fusion.hidden_dimension: {int: [8, 16]}\n")
    assert "line 2" in message
    assert "unknown setting 'model.fusion.hidden_dimension'" in message


def test_an_unknown_setting_gets_a_suggestion_and_its_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, "model.dimension: {int: [4, 8]}\ntrain.optimizer.learnin_rate: {uniform: [0.1, 1]}\n")
    assert "space.yaml line 2': unknown setting 'train.optimizer.learnin_rate'" in message
    assert "did you mean 'learning_rate'?" in message


def test_a_value_that_the_run_refuses_is_found_at_the_ends(tmp_path: Path) -> None:
    assert "'model.item_id.dropout' is 1.5" in refusal(tmp_path, "model.item_id.dropout: {uniform: [0, 1.5]}")
    assert "'loss.kind' is 'mee'" in refusal(tmp_path, "loss: {choice: [{kind: mse}, {kind: mee}]}")


@pytest.mark.parametrize(
    "line",
    [
        "seed: {int: [0, 5]}",
        "data.k_core.users: {int: [1, 5]}",
        "model.encoders.text.dimension: {int: [8, 16]}",
        "train.epochs: {int: [1, 5]}",
        "evaluate.given_share: {uniform: [0, 0.5]}",
    ],
)
def test_settings_that_trials_share_are_refused(tmp_path: Path, line: str) -> None:
    message = refusal(tmp_path, line)
    assert f"a search cannot vary '{line.partition(':')[0]}'" in message
    assert "set it in the configuration" in message


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("model.dimension: {unifrom: [1, 2]}", "did you mean 'uniform'?"),
        ("model.dimension: 5", "is 5; expected one of choice, int, log_uniform, uniform"),
        ("model.dimension: {int: [8, 4]}", "[8, 4]; expected two whole numbers, the lower first"),
        ("model.dimension: {int: [4, 8.5]}", "two whole numbers"),
        ("loss.temperature: {log_uniform: [0, 1]}", "two numbers above 0"),
        ("loss.temperature: {choice: []}", "a list of values"),
    ],
)
def test_badly_written_values_are_refused(tmp_path: Path, line: str, part: str) -> None:
    assert part in refusal(tmp_path, line)


@pytest.mark.parametrize("path", sorted(SPACES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_space_fits_a_run_with_encoders(path: Path) -> None:
    assert read_space(str(path), run_with()).dimensions
    assert path.read_text().startswith("# python -m tune.search")
