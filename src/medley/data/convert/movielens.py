"""MovieLens as GroupLens publishes it, and its split lists (movielens_split_lists.py) → tables; the layout is recognised by its files.

ml-1m       ratings.dat, movies.dat, users.dat (cells between `::`, latin-1)
ml-100k     u.data (tabs), u.item, u.user (cells between `|`, latin-1)
ml-latest   ratings.csv, movies.csv, tags.csv (also ml-20m, ml-25m, ml-32m)
split lists train.txt, valid.txt, item_map.csv, user_map.csv, items.jsonl, users.dat, posters/
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from medley.data.convert import movielens_split_lists
from medley.data.convert.catalogue_mapping import CatalogueMapping, FeatureFile, InteractionsMapping, ItemsMapping, UsersMapping
from medley.data.convert.mapped_tables import RawFolder, write_mapped_tables
from medley.data.convert.row_files import Rows, bad_line, read_rows, read_separated
from medley.manifest import StagedFolder, list_folder
from medley.schema import InputError

FILES: Mapping[str, tuple[str, ...]] = {
    "ml-1m": ("ratings.dat", "movies.dat", "users.dat"),
    "ml-100k": ("u.data", "u.item", "u.user"),
    "ml-latest": ("ratings.csv", "movies.csv", "tags.csv"),
    "split lists": movielens_split_lists.FILES,
}
"""Layout -> the files it needs; the first one tells it from the others."""
# fmt: off
GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy", "Film-Noir", "Horror",
    "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
# fmt: on
"""What the 19 flags of a line of u.item mean."""
_CELLS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ratings.dat": ("::", ("userId", "movieId", "rating", "timestamp")),
    "movies.dat": ("::", ("movieId", "title", "genres")),
    "users.dat": ("::", movielens_split_lists.USER_CELLS),
    "u.data": ("\t", ("userId", "movieId", "rating", "timestamp")),
    "u.item": ("|", ("movieId", "title", "released", "released_on_video", "url", *GENRES_100K)),
    "u.user": ("|", ("userId", "age", "gender", "occupation", "zip")),
}
"""File without a header -> separator, names of the cells."""


class MovieLensConfig(BaseModel):
    """A MovieLens folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["movielens"] = "movielens"
    raw: str
    """Folder (path or URI) with the unpacked files."""
    test_file: str | None = None
    """Test list of the split lists (`user item item …`): a path in `raw`, an absolute path or a URI; null: no test rows."""
    features: dict[str, FeatureFile] = {}
    """Feature column -> file of precomputed vectors by movieId, in `raw`."""


def write_tables(config: MovieLensConfig, stage: StagedFolder) -> dict[str, int]:
    """Write items (title, text, genres …), interactions (rating as value, or split) and users where the layout has them; returns counts.

    Ids are MovieLens's own. A folder that is no whole layout and a broken line are InputErrors.
    """
    layout = _recognise(config.raw)
    if layout == "split lists":
        return movielens_split_lists.write_tables(config.raw, config.test_file, config.features, stage)
    if config.test_file is not None:
        raise InputError(f"test_file '{config.test_file}' for the layout {layout}", "a test list for split lists only", "leave test_file out")
    ratings, movies, third = FILES[layout]
    mapping = CatalogueMapping(
        items=ItemsMapping(
            file=movies,
            id="movieId",
            title="title",
            text="title",
            tags={"genres": "genres", "tags": "tags"} if layout == "ml-latest" else {"genres": "genres"},
            features=config.features,
        ),
        interactions=InteractionsMapping(file=ratings, user="userId", item="movieId", value="rating", timestamp="timestamp", timestamp_format="seconds"),
        users=None if layout == "ml-latest" else UsersMapping(file=third, id="userId", attributes={name: name for name in ("gender", "age", "occupation")}),
    )
    tags_of_movie = _read_tags(config.raw) if layout == "ml-latest" else {}

    def read(raw: str, file: str, table: str, fields: Mapping[str, str]) -> Rows:
        if table == "items":
            return _with_lists(_movies(raw, file), tags_of_movie)
        return read_rows(raw, file, table, fields) if layout == "ml-latest" else read_separated(raw, file, *_CELLS[file], encoding="latin-1")

    return write_mapped_tables(RawFolder(config.raw, read, refuses_bad_rows=True), mapping, stage)


def _recognise(raw: str) -> str:
    """The layout whose first file is in the folder, all of its files present."""
    found = list_folder(raw)
    layouts = [layout for layout, files in FILES.items() if files[0] in found]
    if len(layouts) != 1:
        got = f"has the files of {' and '.join(layouts)}" if layouts else f"is no MovieLens folder (found: {', '.join(found[:20]) or 'nothing'})"
        raise InputError(f"'{raw}' {got}", f"one of {', '.join(files[0] for files in FILES.values())}", "point raw to the unpacked folder of one data set")
    missing = [file for file in FILES[layouts[0]] if file not in found]
    if missing:
        raise InputError(f"file '{missing[0]}' does not exist in '{raw}'", f"{', '.join(FILES[layouts[0]])} ({layouts[0]})", "copy the data set again, whole")
    return layouts[0]


def _movies(raw: str, file: str) -> Rows:
    if file == "movies.csv":
        return read_rows(raw, file, "items", {"id": "movieId", "title": "title", "tags.genres": "genres"})
    return read_separated(raw, file, *_CELLS[file], encoding="latin-1")


def _with_lists(rows: Rows, tags_of_movie: Mapping[str, list[str]]) -> Rows:
    """Movies with their genres, which every layout writes in its own way, and people's tags as lists."""
    for line_number, row in rows:
        if isinstance(row, dict):
            genres = row["genres"].split("|") if "genres" in row else [genre for genre in GENRES_100K if row[genre] == "1"]
            row = row | {"genres": [genre for genre in genres if genre != "(no genres listed)"], "tags": tags_of_movie.get(row["movieId"])}
        yield line_number, row


def _read_tags(raw: str) -> dict[str, list[str]]:
    """movieId -> the tags that people gave it, in small letters, those of most people first, ties by name."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for line_number, row in read_rows(raw, "tags.csv", "tags", {"movieId": "movieId", "tag": "tag"}):
        if isinstance(row, str):
            raise bad_line(raw, "tags.csv", line_number, row)
        if tag := row["tag"].strip().casefold():
            counts[row["movieId"]][tag] += 1
    return {movie: sorted(tags, key=lambda tag: (-tags[tag], tag)) for movie, tags in counts.items()}
