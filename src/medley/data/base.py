"""An earlier prepared set whose numbers of users and items a new one keeps."""

from dataclasses import dataclass

from medley.data.tables import TableFile, open_file
from medley.manifest import absolute_uri, find_manifest, verify_files
from medley.schema import InputError

PREPARED_KIND = "prepared"
ITEM_FACTS, USERS = "item_facts.parquet", "users.parquet"


@dataclass(frozen=True)
class BaseSet:
    """What is read of it: the ids in the order of their numbers."""

    identity: str
    num_items: int
    num_users: int
    item_files: tuple[TableFile, ...]
    user_files: tuple[TableFile, ...]


def base_identity(uri: str) -> str:
    """The fingerprint of the prepared set at `uri`; an InputError where there is none."""
    manifest = find_manifest(absolute_uri(uri))
    if manifest is None or manifest.get("kind") != PREPARED_KIND:
        found = "no finished folder" if manifest is None else f"a folder of kind '{manifest.get('kind')}'"
        raise InputError(
            f"data.base='{uri}' is {found}",
            "the URI of a prepared set (PREPARED_ROOT/FINGERPRINT)",
            "prepare it first, correct the path, or leave data.base out",
        )
    return str(manifest["fingerprint"])


def open_base(uri: str) -> BaseSet:
    """Its ids, their files checked against the manifest."""
    identity, uri = base_identity(uri), absolute_uri(uri)
    manifest = find_manifest(uri)
    assert manifest is not None
    for name in (ITEM_FACTS, USERS):
        verify_files(uri, manifest, prefix=name)
    items, users = ((open_file(uri, name),) for name in (ITEM_FACTS, USERS))
    return BaseSet(identity, items[0].num_rows, users[0].num_rows, items, users)
