"""The run's fingerprint, without Ray: it changes with what decides the result and with nothing else."""

from pathlib import Path
from typing import Any

import pytest

from medley.config import Run, dump_run, make_run
from medley.data.prepared import PreparedData
from medley.schema import InputError
from medley.training.claim import claim
from medley.training.run import run_fingerprint

DATA = PreparedData("nowhere", {"fingerprint": "feedc0ffee123456"})


def run_of(**settings: Any) -> Run:
    return make_run({"name": "one", "model": {"dimension": 4, "encoders": {"text": {"kind": "subword"}}}, **settings}, "test")


def fingerprint_of(**evaluate: Any) -> str:
    return run_fingerprint(run_of(evaluate=evaluate), DATA)


@pytest.mark.parametrize("change", [{"fold_in_unseen_weight": 0.5}, {"fold_in_regularization": 7.0}])
def test_fold_in_settings_decide_where_new_users_are_given_a_history(change: dict[str, float]) -> None:
    # They decide which epoch is best, and so which weights the run ends with.
    assert fingerprint_of(given_share=0.5, **change) != fingerprint_of(given_share=0.5)
    assert fingerprint_of(**change) == fingerprint_of()


def test_what_is_only_measured_afterwards_does_not_decide() -> None:
    assert fingerprint_of(given_share=0.5, ks=(3,), splits=("valid",)) == fingerprint_of(given_share=0.5)


@pytest.mark.parametrize(
    ("evaluate", "named"),
    [
        ({"given_share": 0.5}, "evaluate.given_share"),
        ({"given_share": 0.5, "fold_in_regularization": 7.0}, "evaluate.fold_in_regularization, evaluate.given_share"),
    ],
)
def test_a_refused_resume_names_only_the_settings_that_changed(tmp_path: Path, evaluate: dict[str, float], named: str) -> None:
    first, other = run_of(storage=str(tmp_path)), run_of(storage=str(tmp_path), evaluate=evaluate)
    assert claim(first.run_uri, run_fingerprint(first, DATA), dump_run(first)) is None
    with pytest.raises(InputError, match=f"was made with other {named}; "):
        claim(other.run_uri, run_fingerprint(other, DATA), dump_run(other))
