"""The report page and the model card show whatever names the data bring as text."""

import re

from medley.training.evaluate import EvaluateConfig
from medley.training.examples import Example
from medley.training.model_card import model_card, plain_text
from medley.training.run_page import RunReport, interval_text, run_page

HOSTILE = "<img src=x onerror=alert(1)> | [a](javascript:alert(1))\n# no heading `x"
ESTIMATE = {"mean": 0.25, "low": 0.2, "high": 0.3, "num_users": 40}
CONFIG = EvaluateConfig(ks=(10,))
METRICS = {"ndcg@10": ESTIMATE}


def report() -> RunReport:
    """Every name that a user of the product may choose is hostile."""
    measured = {
        "num_users": 40,
        "relevance": {"model": {"all": METRICS}, HOSTILE: {"all": METRICS}},
        "compared": {HOSTILE: {"all": {"ndcg@10": {**ESTIMATE, "p_value": 0.04}}}},
        "slices": {HOSTILE: {HOSTILE: {"model": METRICS, HOSTILE: METRICS}}},
        "fairness": {HOSTILE: {"model": {"metric": "ndcg@10", "worst": HOSTILE, "worst_mean": 0.1, "best": "b", "best_mean": 0.2, "gap": 0.1}}},
        "beyond_accuracy": {
            name: {"coverage": 0.5, "gini": 0.1, "novelty_bits": ESTIMATE, "diversity": ESTIMATE, "mean_popularity": ESTIMATE} for name in ("model", HOSTILE)
        },
    }
    return RunReport(
        name=HOSTILE,
        counts={"num_items": 1000},
        history=[{"first_step": 0, "step_losses": [2.0, 1.0], "valid": {"ndcg@10": 0.2}}, {"first_step": 2, "step_losses": [0.5], "valid": {"ndcg@10": None}}],
        evaluation={"run": {"fingerprint": "f", "prepared": "p", "against": None}, "item_groups": {"all": 1000}, "splits": {"valid": measured}},
        modality_shares={"all": {HOSTILE: 0.75, "text": 0.25}},
        examples={"valid": [Example(HOSTILE, 3, 1, [(None, HOSTILE, False)], [(b"\xff\xd8", HOSTILE, True)])]},
        config=CONFIG,
    )


def test_names_of_the_data_cannot_become_part_of_the_page() -> None:
    page = run_page(report())
    assert "<img src=x" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") > 10
    assert re.findall(r"(?:src|href)=\"(?!data:image/)", page) == []


def test_names_of_the_data_cannot_become_part_of_the_card() -> None:
    config = {
        "model": {"encoders": {HOSTILE: {"kind": "tags"}}, "fusion": {"kind": "mean"}, "users": {"kind": "id"}, "head": {"kind": "mf"}, "dimension": 8},
        "train": {"kind": "gradient"},
        "loss": {"kind": "bpr"},
    }
    card = model_card(report(), config, {"torch": "2.14"})
    assert "<img" not in card
    assert "](javascript" not in card.replace("\\]\\(", "")
    assert not [line for line in card.splitlines() if line.startswith("# no")]
    # Four cells a row and five bars around and between them, those in names escaped.
    rows = [line for line in card.splitlines() if line.startswith("| all")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [4]


def test_markdown_marks_are_shown_as_they_are() -> None:
    assert plain_text("a_b*c|d\ne<f") == "a\\_b\\*c\\|d e&lt;f"


def test_an_interval_is_written_behind_its_mean() -> None:
    assert interval_text(ESTIMATE) == "0.2500 [0.2000, 0.3000]"
    assert interval_text({**ESTIMATE, "low": None}) == "0.2500"
    assert interval_text({**ESTIMATE, "mean": None}) == "–"
    assert interval_text({"mean": 1234.5, "low": 1000.0, "high": 2000.0}) == "1234.5 [1000.0, 2000.0]"


def test_a_run_without_steps_has_no_curve() -> None:
    closed_form = RunReport(**{**vars(report()), "history": [{"valid": {"ndcg@10": 0.3}}], "modality_shares": {}, "examples": {}})
    page = run_page(closed_form)
    assert "has no steps" in page
    assert "Modalities" not in page
