"""Importance of settings, by hand."""

from medley.search.report import importance
from medley.search.spaces import Dimension, Space
from medley.search.trials import TrialRecord


def trial(number: int, best: float, **sampled: object) -> TrialRecord:
    return TrialRecord(number, sampled, sampled, [best], 0.0, 1.0, False, None)


def test_a_setting_that_orders_the_trials_explains_all_and_one_that_does_not_explains_nothing() -> None:
    space = Space((Dimension("rate", "uniform", (0, 10), ""), Dimension("kind", "choice", ("a", "b"), ""), Dimension("fixed", "int", (1, 2), "")), {})
    # rate: the metric falls with it. kind: a and b alternate symmetrically, so both have mean rank 3.5.
    kinds = ["a", "b", "b", "a", "a", "b", "b", "a"]
    records = [trial(number, 1 - 0.1 * number, rate=float(number) ** 3, kind=kinds[number], fixed=1) for number in range(8)]
    assert importance(records, space) == {"rate": 1.0, "kind": 0.0, "fixed": 0.0}


def test_a_choice_that_decides_the_better_half_explains_what_halves_explain() -> None:
    space = Space((Dimension("kind", "choice", ("a", "b"), ""),), {})
    # Ranks 0…7, halves with means 1.5 and 5.5: variance between them 4, of all ranks 63 / 12.
    records = [trial(number, 0.1 * number, kind="a" if number < 4 else "b") for number in range(8)]
    assert importance(records, space)["kind"] == round(4 / (63 / 12), 4)


def test_few_trials_give_no_importance() -> None:
    space = Space((Dimension("kind", "choice", ("a", "b"), ""),), {})
    assert importance([trial(0, 0.5, kind="a"), trial(1, 0.6, kind="b")], space) == {"kind": None}
