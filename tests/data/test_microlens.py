"""A MicroLens folder becomes tables from either form of its pairs; covers and sounds are optional, a damaged copy is refused."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from medley.data.convert import convert
from medley.data.convert.microlens import MicroLensConfig
from medley.manifest import read_parquet
from medley.schema import InputError

TITLES = {"MicroLens-50k_titles.csv": 'item,title\n1,"Rain, again"\n2,\n'}
CSV = {"MicroLens-50k_pairs.csv": "user,item,timestamp\n7,2,1583378629552\n7,1,1583378629553\n8,1,1583378629554\n"}
TSV = {"MicroLens-50k_pairs.tsv": "7\t2 1\n8\t1\n"}
MEDIA = {"MicroLens-50k_covers/1.jpg": "cover", "MicroLens-50k_audios/2.mp3": "sound"}


def tables(tmp_path: Path, files: dict[str, str]) -> tuple[dict, list[dict], list[dict]]:
    (tmp_path / "raw").mkdir()
    for name, content in files.items():
        (tmp_path / "raw" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "raw" / name).write_text(content)
    result = convert(MicroLensConfig(raw=str(tmp_path / "raw")), str(tmp_path / "tables"))
    items, interactions = (read_parquet(str(tmp_path / "tables" / name)).to_pylist() for name in ("items", "interactions"))
    return result, items, interactions


def test_titles_pairs_covers_and_sounds_become_tables(tmp_path):
    counts, items, interactions = tables(tmp_path, TITLES | CSV | TSV | MEDIA)
    assert items == [
        {"item_id": "1", "title": "Rain, again", "text": "Rain, again", "image": b"cover", "audio": None},
        {"item_id": "2", "title": None, "text": None, "image": None, "audio": b"sound"},
    ]
    assert interactions[0] == {"user_id": "7", "item_id": "2", "timestamp": datetime(2020, 3, 5, 3, 23, 49, 552_000, tzinfo=UTC)}
    assert (counts["num_items_with_image"], counts["num_items_with_audio"], counts["num_interactions"], counts["num_quarantined"]) == (1, 1, 3, 0)


def test_pairs_by_user_are_taken_where_the_csv_file_is_absent(tmp_path):
    _, items, interactions = tables(tmp_path, {name.replace("50k", "1M"): content for name, content in (TITLES | TSV).items()})
    assert [tuple(row.values()) for row in interactions] == [("7", "2"), ("7", "1"), ("8", "1")]
    assert list(items[0]) == ["item_id", "title", "text"]


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        (CSV, ["has no file …_titles.csv (found: MicroLens-50k_pairs.csv)"]),
        (TITLES | {"other_titles.csv": ""}, ["has 2 files …_titles.csv"]),
        (TITLES, ["neither 'MicroLens-50k_pairs.csv' nor 'MicroLens-50k_pairs.tsv' is in"]),
        (TITLES | {"MicroLens-50k_pairs.csv": "user,item,timestamp\n7,2,1\n7,1\n"}, ["line 3 of 'MicroLens-50k_pairs.csv' in", "2 cells, the header 3"]),
        (TITLES | {"MicroLens-50k_pairs.csv": "user,item\n7,2\n"}, ["field 'timestamp' (interactions.timestamp) is in no row of 'MicroLens-50k_pairs.csv'"]),
        (TITLES | {"MicroLens-50k_pairs.tsv": "7\t1\n7 2\n"}, ["line 2 of 'MicroLens-50k_pairs.tsv' in", "no tab between the user and the items"]),
        (CSV | {"MicroLens-50k_titles.csv": "item,title\n1,A\n1,B\n"}, ["line 3 of 'MicroLens-50k_titles.csv' in", "'1' is the id of an earlier row"]),
    ],
)
def test_missing_files_and_broken_lines_are_refused_with_file_and_line(tmp_path, files, parts):
    with pytest.raises(InputError) as caught:
        tables(tmp_path, files)
    for part in [*parts, "; expected "]:
        assert part in str(caught.value)
