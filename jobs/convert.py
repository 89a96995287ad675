"""python -m jobs.convert DATASET RAW_DIR OUT_DIR [key=value …]: a raw data set → item, interaction and user tables."""

import argparse
from typing import Any

from jobs.entry import run_entry

DATASETS = {
    "catalogue": "a folder with a mapping file",
    "movielens": "ml-100k, ml-1m, ml-latest, or split lists of ml-1m",
    "amazon_reviews": "reviews and metadata of 2023, JSON lines",
    "microlens": "the published folders",
    "synthetic": "drawn data with a known answer",
}
"""The converters of medley.data.convert, named here too: --help imports nothing heavy."""


def main() -> dict[str, Any]:
    """Parse, convert, return what was written."""
    parser = argparse.ArgumentParser(prog="python -m jobs.convert", description="Raw data set → item, interaction and user tables.")
    parser.add_argument("dataset", choices=tuple(DATASETS), help="; ".join(f"{name}: {what}" for name, what in DATASETS.items()))
    parser.add_argument("raw_dir", metavar="RAW_DIR", help="folder of the raw data; '-' for synthetic")
    parser.add_argument("out_dir", metavar="OUT_DIR", help="new folder for the tables")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the converter, such as mapping=FILE.yaml or num_items=500")
    arguments = parser.parse_args()

    from medley.config import load_converter
    from medley.data.convert import convert
    from medley.manifest import absolute_uri

    raw = [] if arguments.dataset == "synthetic" else [f"raw={arguments.raw_dir}"]
    return convert(load_converter(arguments.dataset, [*raw, *arguments.settings]), absolute_uri(arguments.out_dir))


if __name__ == "__main__":
    run_entry(main)
