"""Which checkpoint a run goes on from, and which ones it keeps: the newest good one, with a stated reason for each that is refused."""

import logging

from medley.manifest import MANIFEST, exists, join_uri, list_folder, open_storage, read_manifest, remove_folder, verify_files
from medley.schema import InputError
from medley.storage import can_rename
from medley.training.checkpoint import CHECKPOINT_KIND, Checkpoint, open_checkpoint
from medley.training.seat import Seat

logger = logging.getLogger(__name__)

ALONE = Seat(0, 1)


def read_checkpoint(folder: str, name: str, seat: Seat = ALONE) -> Checkpoint:
    """One checkpoint, the hash of every file verified, each file by one of the ranks; a damaged one is an InputError that names the file, on every rank."""
    reasons = [reason for reason in seat.gather(_find_damage(folder, name, seat)) if reason is not None]
    if reasons:
        raise reasons[0]
    num_parts = read_manifest(join_uri(folder, name), CHECKPOINT_KIND)["counts"]["parts"]
    return open_checkpoint(folder, name, num_parts)


def _find_damage(folder: str, name: str, seat: Seat) -> InputError | None:
    """What is wrong with this rank's share of the files: that share is verified here, the others by the other ranks."""
    uri = join_uri(folder, name)
    try:
        manifest = read_manifest(uri, CHECKPOINT_KIND)
        own = sorted(manifest["files"])[seat.rank :: seat.num_ranks]
        verify_files(uri, {"files": {file: manifest["files"][file] for file in own}})
    except InputError as error:
        return error
    return None


def read_newest(folder: str, seat: Seat = ALONE) -> Checkpoint | None:
    """The newest good checkpoint, the same one for all ranks, which share its verification; damaged and unfinished ones are skipped with their reason.

    None only where no checkpoint was ever finished: an empty folder, or one with the lone unfinished checkpoint that a crash leaves on an object store.
    """
    # One rank looks: an entry that another rank's look would miss must not part them.
    committed, unfinished = seat.gather(_look_into(folder) if seat.rank == 0 else None)[0]
    reasons = []
    for name in unfinished:
        _say(seat, f"checkpoint {name} counts as absent: it has no {MANIFEST}, so its writing never ended")
        reasons.append(f"{name}: no {MANIFEST}")
    for name in reversed(committed):
        try:
            return read_checkpoint(folder, name, seat)
        except InputError as error:
            _say(seat, f"checkpoint {name} is not used: {error}")
            reasons.append(f"{name}: {error}")
    # A checkpoint begins only after the one before was committed: more than one without a manifest means that manifests were lost.
    if committed or len(unfinished) > 1:
        raise InputError(
            f"no checkpoint of '{folder}' is whole ({'; '.join(reasons)})", "at least one good checkpoint", "restore one, or start anew with --fresh"
        )
    return None


def _say(seat: Seat, reason: str) -> None:
    if seat.rank == 0:
        logger.warning("%s", reason)


def _look_into(folder: str) -> tuple[list[str], list[str]]:
    """Committed and unfinished checkpoints, oldest first."""
    committed = checkpoint_names(folder)
    return committed, [name for name in _step_folders(folder) if name not in committed]


def checkpoint_names(folder: str) -> list[str]:
    """Committed checkpoints, oldest first. Where folders can be renamed, that commits: one that lacks its manifest there was damaged later."""
    names = _step_folders(folder)
    if can_rename(open_storage(folder)[0]):
        return names
    return [name for name in names if exists(join_uri(folder, name, MANIFEST))]


def _step_folders(folder: str) -> list[str]:
    return [name for name in list_folder(folder) if name.startswith("step-") and ".tmp-" not in name]


def remove_old(folder: str, newest: str, keep: int, best: str | None) -> None:
    """Keep `newest`, which was just committed, those before it up to `keep` in all, and the best; remove the others.

    Those of later steps go too: the run that wrote `newest` went on from before them, so they were refused; as one of the kept they would push out a
    good one.
    """
    names = checkpoint_names(folder)
    kept = {*[name for name in names if name <= newest][-keep:], best}
    for name in names:
        if name not in kept:
            remove_folder(join_uri(folder, name))


def remove_leftovers(folder: str) -> None:
    """Remove what writers that died have left: to be called when nobody writes."""
    committed = checkpoint_names(folder)
    for name in list_folder(folder):
        if name.startswith("step-") and name not in committed:
            remove_folder(join_uri(folder, name))
