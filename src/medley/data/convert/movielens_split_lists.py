"""MovieLens with a shipped split, as ranking papers use it: lists of item numbers per user, with titles, plots, genres and posters beside.

train.txt, valid.txt        `user item item …` by number; a test list may stand anywhere
item_map.csv, user_map.csv  number → MovieLens id (item,movieId and user,userId); what is in them is the catalogue and the users
items.jsonl                 movieId, title, genres, plot, director, actors (names between commas; awards came later and are not read)
users.dat                   as in ml-1m                   posters/MOVIEID.jpg
"""

from collections.abc import Iterator, Mapping

from medley import schema
from medley.data.convert.catalogue_mapping import CatalogueMapping, FeatureFile, InteractionsMapping, ItemsMapping, UsersMapping
from medley.data.convert.mapped_tables import RawFolder, write_mapped_tables
from medley.data.convert.row_files import Rows, bad_line, open_lines, read_rows, read_separated
from medley.manifest import StagedFolder, join_uri, list_folder

FILES = ("train.txt", "valid.txt", "item_map.csv", "user_map.csv", "items.jsonl", "users.dat", "posters")
USER_CELLS = ("userId", "gender", "age", "occupation", "zip")
"""The cells of a line of users.dat, between `::`."""


def write_tables(raw: str, test_file: str | None, features: dict[str, FeatureFile], stage: StagedFolder) -> dict[str, int]:
    """Write the tables; every movie of item_map.csv is an item, with nulls where items.jsonl or posters/ has nothing for it.

    test_file: a test list in `raw`, or elsewhere; without one the interactions have only train and valid rows.
    """
    movie_of_item, user_of_number = _read_map(raw, "item_map.csv", "item", "movieId"), _read_map(raw, "user_map.csv", "user", "userId")
    posters = frozenset(list_folder(join_uri(raw, "posters")))

    def read(_raw: str, file: str, table: str, _fields: Mapping[str, str]) -> Rows:
        if table == "items":
            return _movies(raw, set(movie_of_item.values()), posters)
        return _users(raw, user_of_number) if table == "users" else _interactions(raw, test_file, movie_of_item, user_of_number)

    mapping = CatalogueMapping(
        items=ItemsMapping(
            file="items.jsonl",
            id="movieId",
            title="title",
            text=("title", "plot"),
            tags={"genres": "genres", "directors": "directors", "actors": "actors"},
            image="poster",
            features=features,
        ),
        interactions=InteractionsMapping(file="train.txt", user="user", item="item", split="split"),
        users=UsersMapping(file="users.dat", id="userId", attributes={name: name for name in ("gender", "age", "occupation")}),
    )
    return write_mapped_tables(RawFolder(raw, read, refuses_bad_rows=True), mapping, stage)


def _read_map(raw: str, file: str, number: str, id_: str) -> dict[str, str]:
    """Number in the lists -> MovieLens id; each of both stands once."""
    ids: dict[str, str] = {}
    known: set[str] = set()
    for line_number, row in read_rows(raw, file, file.removesuffix(".csv"), {number: number, id_: id_}):
        if isinstance(row, str):
            raise bad_line(raw, file, line_number, row)
        if not row[number] or not row[id_] or row[number] in ids or row[id_] in known:
            raise bad_line(raw, file, line_number, f"{number} '{row[number]}', {id_} '{row[id_]}': empty or in an earlier line")
        ids[row[number]] = row[id_]
        known.add(row[id_])
    return ids


def _movies(raw: str, movies: set[str], posters: frozenset[str]) -> Rows:
    """Rows of items.jsonl that are in the lists, with the path of their poster; then the movies that it does not have."""
    rest = set(movies)
    fields = {"id": "movieId", "title": "title", "text": "plot", "tags.genres": "genres"}
    line_number = 0
    for line_number, row in read_rows(raw, "items.jsonl", "items", fields):
        if isinstance(row, dict):
            movie = str(row.get("movieId") or "")
            # A row without an id goes on: it is refused like any bad line.
            if movie and movie not in movies:
                continue
            rest.discard(movie)
            row = row | _poster(movie, posters) | {"directors": _names(row.get("director")), "actors": _names(row.get("actors"))}
        yield line_number, row
    for movie in sorted(rest):
        yield line_number, {"movieId": movie} | _poster(movie, posters)


def _poster(movie: str, posters: frozenset[str]) -> dict[str, str | None]:
    return {"poster": f"posters/{movie}.jpg" if f"{movie}.jpg" in posters else None}


def _names(text: object) -> list[str] | None:
    """Names of people between commas; what is no text, or empty, is missing."""
    return [name.strip() for name in text.split(",") if name.strip()] or None if isinstance(text, str) else None


def _users(raw: str, user_of_number: Mapping[str, str]) -> Rows:
    """Rows of users.dat whose user is in the lists."""
    users = set(user_of_number.values())
    for line_number, row in read_separated(raw, "users.dat", "::", USER_CELLS, encoding="latin-1"):
        if isinstance(row, str) or row["userId"] in users:
            yield line_number, row


def _interactions(raw: str, test_file: str | None, movie_of_item: Mapping[str, str], user_of_number: Mapping[str, str]) -> Rows:
    """One row for each item of each line of the lists; a number that no map has is an InputError with its line."""
    lists = [(raw, "train.txt", "train"), (raw, "valid.txt", "valid")]
    if test_file is not None:
        folder, _, name = (test_file if "://" in test_file else join_uri(raw, test_file)).rpartition("/")
        lists.append((folder or "/", name, "test"))
    for folder, file, split in lists:
        for line_number, (user, *items) in _lines(folder, file):
            if user not in user_of_number:
                raise bad_line(folder, file, line_number, f"user '{user[:100]}' is not in user_map.csv")
            for item in items:
                if item not in movie_of_item:
                    raise bad_line(folder, file, line_number, f"item '{item[:100]}' is not in item_map.csv")
                yield line_number, {"user": user_of_number[user], "item": movie_of_item[item], schema.SPLIT: split}


def _lines(folder: str, file: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and words of each line that has any."""
    with open_lines(folder, file) as lines:
        for line_number, line in enumerate(lines, 1):
            # Bytes that are no digits belong to no map, whatever letters they are shown as.
            if words := line.decode("latin-1").split():
                yield line_number, words
