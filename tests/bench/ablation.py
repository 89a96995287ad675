"""python -m tests.bench.ablation [--quick]: what each modality is worth on the demo's data.

The demo's model is trained end to end for the same number of epochs with all modalities and with each one left out; NDCG@10 on test as a
share of the oracle's, warm and cold items apart. Figures: the full model's shares, and the loss of share without each modality.
"""

import argparse
import json
import os
import tempfile
from typing import Any

from jobs.evaluate import evaluate
from jobs.prepare import prepare_run

EPOCHS = 3
CONFIG = "jobs/configs/demo.yaml"


def main() -> None:
    """Train four models, print one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ablation", description="What each modality is worth on the demo's data.")
    parser.add_argument("--quick", action="store_true", help="small data, one epoch: only shows that it runs")
    quick = parser.parse_args().quick

    from medley.cluster.session import ray_session
    from medley.config import load_run, override_run
    from medley.data.convert import convert

    small = ["convert.num_items=200", "convert.num_users=80", "convert.interactions_per_user=40", "train.epochs=1"] if quick else [f"train.epochs={EPOCHS}"]
    with tempfile.TemporaryDirectory() as storage, ray_session():
        run = load_run(CONFIG, [f"storage={storage}", *small])
        assert run.convert is not None
        convert(run.convert, run.tables_uri)
        prepare_run(run)
        shares = {"all": measure(run)}
        for name in sorted(run.model.encoders):
            kept = {other: json.loads(config.model_dump_json()) for other, config in run.model.encoders.items() if other != name}
            shares[f"without {name}"] = measure(override_run(run, {"name": f"without-{name}", "model.encoders": kept}))
    figures = {f"share_of_oracle_{group}": shares["all"][group] for group in ("warm", "cold")}
    figures |= {
        f"lost_{name.replace(' ', '_')}_{group}": shares["all"][group] - share[group]
        for name, share in shares.items()
        if name != "all"
        for group in ("warm", "cold")
    }
    print(json.dumps({"bench": "ablation", "figures": figures, "detail": {"shares": shares, "epochs": run.train.epochs, "num_cpus": os.cpu_count()}}))


def measure(run: Any) -> dict[str, float]:
    """Train and evaluate; NDCG@10 on test as a share of the oracle's."""
    from medley.training.run import fit

    fit(run)
    results = evaluate(run)["test"]
    return {group: results["model"][group]["ndcg@10"] / results["oracle"][group]["ndcg@10"] for group in ("all", "warm", "cold")}


if __name__ == "__main__":
    main()
