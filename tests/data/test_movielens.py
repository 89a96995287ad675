"""Every published layout of MovieLens becomes tables with MovieLens's own ids; a copy that is not whole is refused with file and line."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from medley.data.convert import convert
from medley.data.convert.movielens import GENRES_100K, MovieLensConfig
from medley.manifest import read_parquet
from medley.schema import InputError

SPLIT_LISTS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "ml1m"

ML_1M = {
    "ratings.dat": "1::10::5::978300760\n2::10::3::978300761\n\n",
    "movies.dat": "10::Café Noir (1995)::Drama|Film-Noir\n20::Blank (1996)::Comedy\n",
    "users.dat": "1::F::25::10::48067\n2::M::56::16::70072\n",
}


def flags(*genres: str) -> str:
    return "|".join(str(int(genre in genres)) for genre in GENRES_100K)


ML_100K = {
    "u.data": "1\t10\t5\t881250949\n2\t20\t1\t881250950\n",
    "u.item": f"10|Café Noir (1995)|01-Jan-1995||http://x|{flags('Drama', 'Film-Noir')}\n20|Blank (1996)||||{flags()}\n",
    "u.user": "1|24|F|writer|85711\n2|53|M|other|94043\n",
}
ML_LATEST = {
    "ratings.csv": "userId,movieId,rating,timestamp\n1,10,4.5,964982703\n",
    "movies.csv": 'movieId,title,genres\n10,"Café, Noir (1995)",Drama|Film-Noir\n20,Blank (1996),(no genres listed)\n',
    "tags.csv": "userId,movieId,tag,timestamp\n1,10,Slow,1\n2,10,dark,2\n3,10, Dark,3\n1,99,lost,4\n",
}
LISTS = {
    "train.txt": "0 0 1\n1 2\n",
    "valid.txt": "0 2\n",
    "item_map.csv": "item,movieId,certain\n0,10,1\n1,20,0\n2,30,1\n",
    "user_map.csv": "user,userId\n0,7\n1,8\n",
    "items.jsonl": '{"movieId": 10, "title": "Noir (1995)", "genres": ["Drama"], "plot": "It rains.", "director": "A. Way", "actors": "B. Low, C. Hi"}\n'
    '{"movieId": 20, "title": "Blank (1996)", "genres": [], "plot": null}\n{"movieId": 99, "title": "Elsewhere", "genres": [], "plot": "."}\n',
    "users.dat": "6::F::1::0::1\n7::M::25::10::2\n8::F::56::16::3\n",
    "posters/10.jpg": "poster of 10",
    "posters/99.jpg": "poster of 99",
}


def write_folder(folder: Path, files: dict[str, str]) -> str:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8" if name.endswith((".csv", ".jsonl")) else "latin-1")
    return str(folder)


def tables(tmp_path: Path, files: dict[str, str], **settings) -> dict[str, list[dict]]:
    out = tmp_path / "tables"
    convert(MovieLensConfig(raw=write_folder(tmp_path / "raw", files), **settings), str(out))
    return {name: read_parquet(str(out / name)).to_pylist() for name in ("items", "interactions", "users") if (out / name).exists()}


def refusal(tmp_path: Path, files: dict[str, str], **settings) -> str:
    with pytest.raises(InputError) as caught:
        tables(tmp_path, files, **settings)
    assert not (tmp_path / "tables").exists()
    return str(caught.value)


def test_the_dat_files_of_ml_1m_are_read_in_latin_1(tmp_path):
    found = tables(tmp_path, ML_1M)
    assert found["items"] == [
        {"item_id": "10", "title": "Café Noir (1995)", "text": "Café Noir (1995)", "genres": ["Drama", "Film-Noir"]},
        {"item_id": "20", "title": "Blank (1996)", "text": "Blank (1996)", "genres": ["Comedy"]},
    ]
    assert found["interactions"][0] == {"user_id": "1", "item_id": "10", "timestamp": datetime(2000, 12, 31, 22, 12, 40, tzinfo=UTC), "value": 5.0}
    assert found["users"] == [
        {"user_id": "1", "gender": "F", "age": 25.0, "occupation": 10.0},
        {"user_id": "2", "gender": "M", "age": 56.0, "occupation": 16.0},
    ]


def test_the_flags_of_ml_100k_become_genres(tmp_path):
    found = tables(tmp_path, ML_100K)
    assert [(item["item_id"], item["title"], item["genres"]) for item in found["items"]] == [
        ("10", "Café Noir (1995)", ["Drama", "Film-Noir"]),
        ("20", "Blank (1996)", None),
    ]
    assert [(row["user_id"], row["item_id"], row["value"]) for row in found["interactions"]] == [("1", "10", 5.0), ("2", "20", 1.0)]
    assert found["users"][0] == {"user_id": "1", "gender": "F", "age": 24.0, "occupation": "writer"}


def test_the_csv_files_of_ml_latest_bring_peoples_tags_the_most_given_first(tmp_path):
    found = tables(tmp_path, ML_LATEST)
    assert found["items"] == [
        {"item_id": "10", "title": "Café, Noir (1995)", "text": "Café, Noir (1995)", "genres": ["Drama", "Film-Noir"], "tags": ["dark", "slow"]},
        {"item_id": "20", "title": "Blank (1996)", "text": "Blank (1996)", "genres": None, "tags": None},
    ]
    assert found["interactions"] == [{"user_id": "1", "item_id": "10", "timestamp": datetime(2000, 7, 30, 18, 45, 3, tzinfo=UTC), "value": 4.5}]
    assert "users" not in found


def test_split_lists_become_rows_with_their_split_and_every_listed_movie_an_item(tmp_path):
    found = tables(tmp_path, LISTS)
    assert found["items"] == [
        {
            **{"item_id": "10", "title": "Noir (1995)", "text": "Noir (1995)\nIt rains.", "image": b"poster of 10"},
            **{"genres": ["Drama"], "directors": ["A. Way"], "actors": ["B. Low", "C. Hi"]},
        },
        {"item_id": "20", "title": "Blank (1996)", "text": "Blank (1996)", "genres": None, "directors": None, "actors": None, "image": None},
        {"item_id": "30", "title": None, "text": None, "genres": None, "directors": None, "actors": None, "image": None},
    ]
    assert [tuple(row.values()) for row in found["interactions"]] == [("7", "10", "train"), ("7", "20", "train"), ("8", "30", "train"), ("7", "30", "valid")]
    assert found["users"] == [
        {"user_id": "7", "gender": "M", "age": 25.0, "occupation": 10.0},
        {"user_id": "8", "gender": "F", "age": 56.0, "occupation": 16.0},
    ]


@pytest.mark.parametrize("is_outside", [False, True])
def test_a_test_list_in_the_folder_or_elsewhere_adds_test_rows(tmp_path, is_outside):
    write_folder(tmp_path, {"held/test.txt": "1 0\n", "raw/test.txt": "1 0\n"})
    found = tables(tmp_path, LISTS, test_file=str(tmp_path / "held" / "test.txt") if is_outside else "test.txt")
    assert [tuple(row.values()) for row in found["interactions"]][4:] == [("8", "10", "test")]


@pytest.mark.parametrize("files", [ML_1M, ML_100K, ML_LATEST, LISTS], ids=["ml-1m", "ml-100k", "ml-latest", "split lists"])
def test_a_missing_file_of_a_layout_is_named(tmp_path, files):
    for number, missing in enumerate(name for name in list(files)[1:] if not name.startswith("posters")):
        folder = tmp_path / str(number)
        message = refusal(folder, {name: content for name, content in files.items() if name != missing})
        assert f"file '{missing}' does not exist in '{folder}/raw'" in message


@pytest.mark.parametrize(
    ("files", "broken", "parts"),
    [
        (ML_1M, {"ratings.dat": "1::10::5::978300760\n2::10::3\n"}, ["line 2 of 'ratings.dat' in", "line has 3 cells, expected 4"]),
        (ML_1M, {"ratings.dat": "1::10::five::978300760\n"}, ["line 1 of 'ratings.dat' in", "in column 'value': 'five' is not a number"]),
        (ML_1M, {"movies.dat": "10::A::B\n10::C::D\n"}, ["line 2 of 'movies.dat' in", "'10' is the id of an earlier row"]),
        (ML_1M, {"users.dat": "1::F\n"}, ["line 1 of 'users.dat' in", "line has 2 cells, expected 5"]),
        (ML_100K, {"u.data": "1\t10\t5\tx\n"}, ["line 1 of 'u.data' in", "'x' is not a time of the format seconds"]),
        (ML_100K, {"u.item": "10|A\n"}, ["line 1 of 'u.item' in", "line has 2 cells, expected 24"]),
        (ML_LATEST, {"ratings.csv": "userId,movieId,rating,timestamp\n1,10\n"}, ["line 2 of 'ratings.csv' in", "2 cells, the header 4"]),
        (ML_LATEST, {"ratings.csv": "userId,movieId,stars,timestamp\n1,10,1,1\n"}, ["field 'rating' (interactions.value) is in no row of 'ratings.csv'"]),
        (ML_LATEST, {"tags.csv": "userId,movieId,tag,timestamp\n1\n"}, ["line 2 of 'tags.csv' in"]),
        (LISTS, {"train.txt": "0 0\n0 5\n"}, ["line 2 of 'train.txt' in", "item '5' is not in item_map.csv"]),
        (LISTS, {"valid.txt": "9 0\n"}, ["line 1 of 'valid.txt' in", "user '9' is not in user_map.csv"]),
        (LISTS, {"item_map.csv": "item,movieId\n0,10\n1,10\n"}, ["line 3 of 'item_map.csv' in", "item '1', movieId '10': empty or in an earlier line"]),
        (LISTS, {"items.jsonl": LISTS["items.jsonl"] + "{"}, ["line 4 of 'items.jsonl' in", "line is not JSON"]),
        (LISTS, {"users.dat": "7::M\n"}, ["line 1 of 'users.dat' in"]),
    ],
)
def test_a_broken_line_is_refused_with_file_and_line(tmp_path, files, broken, parts):
    message = refusal(tmp_path, files | broken)
    for part in [*parts, "; expected "]:
        assert part in message


def test_folders_of_no_layout_and_of_two_and_a_test_list_for_ratings_are_refused(tmp_path):
    assert "is no MovieLens folder (found: a.csv); expected one of ratings.dat, u.data" in refusal(tmp_path / "none", {"a.csv": ""})
    assert "has the files of ml-1m and ml-100k" in refusal(tmp_path / "two", ML_1M | ML_100K)
    assert "test_file 'test.txt' for the layout ml-1m" in refusal(tmp_path / "test", ML_1M, test_file="test.txt")
    assert "file 'absent.txt' does not exist" in refusal(tmp_path / "absent", LISTS, test_file="absent.txt")


@pytest.mark.skipif(not SPLIT_LISTS.exists(), reason="the MovieLens split lists are not beside the repository")
def test_the_real_split_lists_convert_whole(tmp_path):
    result = convert(MovieLensConfig(raw=str(SPLIT_LISTS)), str(tmp_path / "tables"))
    counts = {name: result[name] for name in result if name.startswith("num_")}
    # Of the 3,400 posters in the folder 37 are of movies that are in no list.
    assert counts == {"num_items": 3_628, "num_items_with_image": 3_363, "num_interactions": 671_630, "num_users": 6_039, "num_quarantined": 0}
    assert len(list((SPLIT_LISTS / "posters").iterdir())) == 3_400
    splits = pq.read_table(tmp_path / "tables" / "interactions", columns=["split"])["split"]
    assert {entry["values"]: entry["counts"] for entry in pc.value_counts(splits).to_pylist()} == {"train": 590_733, "valid": 80_897}
    assert pq.read_schema(tmp_path / "tables" / "items" / "part-00000.parquet").field("image").type == pa.binary()
