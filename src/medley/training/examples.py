"""A few users for the report: what they had, what they are recommended, what of it was right; with titles and small pictures."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medley.data.prepared import PreparedData
from medley.schema import IMAGE, ITEM_ID, TITLE, USER_ID
from medley.training.evaluate import Questions, Ranked

NUM_USERS, NUM_HISTORY, NUM_RECOMMENDED = 4, 8, 10
SIDE_PIXELS, JPEG_QUALITY = 96, 70
"""of a thumbnail: about 3 KB"""

Tile = tuple[bytes | None, str, bool]
"""picture, caption, whether the user had it in the split"""


@dataclass(frozen=True)
class Example:
    """One user. history: the newest train and given items, oldest first; recommended: best first."""

    user_id: str
    num_train_items: int
    num_relevant: int
    history: list[Tile]
    recommended: list[Tile]


def make_examples(data: PreparedData, questions: Questions, ranked: Ranked) -> list[Example]:
    """Users from the least to the most active one, evenly spaced. ranked: the whole catalogue for the questions' users."""
    if not len(questions.users):
        return []
    by_activity = np.argsort(data.train_lists.lengths[questions.users], kind="stable")
    rows = by_activity[np.unique(np.linspace(0, len(by_activity) - 1, NUM_USERS).round().astype(int))]
    users = questions.users[rows]
    histories = [np.concatenate([data.train.items[data.train.users == user], questions.given.of(user)])[-NUM_HISTORY:] for user in users]
    bests = [best[best >= 0] for best in ranked.items_BK[rows, :NUM_RECOMMENDED].numpy()]
    wanted = np.unique(np.concatenate([*histories, *bests]).astype(np.int64))
    pictures, titles = thumbnails(data, wanted), _titles(data, wanted)
    user_ids = data.users[USER_ID].take(users.tolist()).to_pylist()
    examples = []
    for user, user_id, history, best in zip(users.tolist(), user_ids, histories, bests, strict=True):
        targets = questions.targets.of(user)
        tiles = [(pictures.get(item), titles[item], item in targets) for item in best.tolist()]
        past = [(pictures.get(item), titles[item], False) for item in history.tolist()]
        examples.append(Example(str(user_id), int(data.train_lists.lengths[user]), len(targets), past, tiles))
    return examples


def thumbnails(data: PreparedData, items: np.ndarray) -> dict[int, bytes]:
    """item index → a small JPEG, for those of the items that have a picture."""
    if IMAGE not in data.columns or IMAGE in data.item_facts.column_names:
        return {}
    from PIL import Image

    found = {}
    for item, encoded in zip(items.tolist(), data.item_store().take(items, [IMAGE])[IMAGE].to_pylist(), strict=True):
        if encoded is not None:
            picture = Image.open(io.BytesIO(encoded)).convert("RGB")
            picture.thumbnail((SIDE_PIXELS, SIDE_PIXELS))
            small = io.BytesIO()
            picture.save(small, "JPEG", quality=JPEG_QUALITY)
            found[item] = small.getvalue()
    return found


def _titles(data: PreparedData, items: np.ndarray) -> dict[int, str]:
    """item index → title, or its id where there is none."""
    facts = data.item_facts.take(items)
    names: Sequence[str | None] = facts[TITLE].to_pylist() if TITLE in facts.column_names else [None] * len(items)
    return {item: name or item_id for item, name, item_id in zip(items.tolist(), names, facts[ITEM_ID].to_pylist(), strict=True)}
