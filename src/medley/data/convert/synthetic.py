"""A data set whose right answer is known: words, pictures and sounds each carry a third of the users' taste.

How it is made:
    1. Every item draws factor values: a mixture of two topics, a shape, colour and texture, a chord, tempo and timbre, all independent.
    2. A fixed random projection turns them into one taste vector per modality (`draw_truth`).
    3. Every user draws a Gaussian preference vector. True score = Σ over modalities preference · taste vector + popularity of the item.
    4. Users draw items without replacement from softmax(score / temperature); the cold ones fall in late moments only (`draw_interactions`).
    5. Words, pictures and sounds show the factor values under noise and distractors (synthetic_media.py); some are missing at random.
`truth/` holds the true scores as a scorer, so a trained model can be compared with the best possible ranking.

Everything is decided by the seed. The bytes are the same for the same versions of NumPy, Pillow, libsndfile and pyarrow.
"""

import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from medley import schema
from medley.data.convert import synthetic_media as media
from medley.manifest import StagedFolder, write_bytes, write_parquet

START_MICROSECONDS = 1_704_067_200_000_000
"""2024-01-01 00:00 UTC, the first moment of the data set."""
COUNTRIES = ("AR", "DE", "IN", "JP", "KE", "SE")
AGE_GROUPS = ("under 25", "25-39", "40-59", "60 and over")
MAIN_TOPIC_SHARE_LOW = 0.6
"""An item's main topic has a share drawn evenly between this and 1; a second topic has the rest."""
ITEMS_SCHEMA = pa.schema(
    [
        pa.field(schema.ITEM_ID, pa.string(), nullable=False),
        pa.field(schema.TITLE, pa.string()),
        pa.field(schema.TEXT, pa.string()),
        pa.field(schema.IMAGE, pa.binary()),
        pa.field(schema.AUDIO, pa.binary()),
    ]
)
ROWS_PER_FILE = 500
ROWS_PER_GROUP = 100


class SyntheticConfig(BaseModel):
    """Sizes, shares and difficulty of the synthetic data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["synthetic"] = "synthetic"
    seed: int = Field(default=0, ge=0)
    """Decides every byte."""
    num_items: int = Field(default=2000, ge=10)
    num_users: int = Field(default=800, ge=10)
    interactions_per_user: float = Field(default=220, gt=0)
    """Mean number of items a user takes; the number of a user is negative binomial around it, at least 3 and at most a quarter of the catalogue."""
    activity_shape: float = Field(default=8.0, gt=0)
    """Evenness of the users' activity: its squared coefficient of variation is about 1 / activity_shape."""
    cold_item_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of items that appear late: nobody can take them before `cold_from_share` of all interactions have happened."""
    cold_from_share: float = Field(default=0.81, gt=0, lt=1)
    """Share of all interactions, in time order, before the cold items appear. Just above 0.8, so that under the default split (global time, 8:1:1 by
    number of interactions) cold items have no train interaction, whichever way the cut is rounded, and are taken in valid and in test."""
    missing_share: float = Field(default=0.03, ge=0, lt=1)
    """Share of items without text, without image, without audio, each drawn on its own; every item keeps at least one of the three."""
    taste_dimensions: int = Field(default=6, ge=1)
    """Width of the taste vector of each of the three modalities."""
    popularity_strength: float = Field(default=0.1, ge=0)
    """Standard deviation of the items' popularity bias; the personal part of the score has 1."""
    temperature: float = Field(default=0.4, gt=0)
    """Softmax temperature of the choices: lower means that users follow their true scores more strictly."""
    country_taste_share: float = Field(default=0.1, ge=0, le=1)
    """Share of the preference variance that users of one country have in common. The age group says nothing about taste."""
    days: float = Field(default=200, gt=0)
    """Length of the recorded time; every user is active throughout it."""
    words_per_text: int = Field(default=30, ge=1)
    topic_word_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the words that belong to the item's topics."""
    distractor_word_share: float = Field(default=0.1, ge=0, le=1)
    """Share of the words that name colours, shapes and sounds at random; what is left is filler."""
    image_side_pixels: int = Field(default=48, ge=16)
    image_noise: float = Field(default=0.06, ge=0)
    """Standard deviation of the pixel noise; 1 is the full range from black to white."""
    num_image_distractors: int = Field(default=4, ge=0)
    """Grey rectangles behind the shape."""
    clip_seconds: float = Field(default=1.0, gt=0)
    sample_rate_hz: int = Field(default=8000, ge=4000)
    audio_noise: float = Field(default=0.1, ge=0)
    """Standard deviation of the white noise relative to the sound's."""
    audio_distractor_gain: float = Field(default=0.2, ge=0)
    """Amplitude of a steady tone of random pitch relative to the sound's standard deviation."""


@dataclass(frozen=True)
class Truth:
    """What the data set hides.

    topic_shares: (N, topics), rows sum to 1. image_factors, audio_factors: int (N, 3), positions in the values of IMAGE_FACTORS and AUDIO_FACTORS.
    item_vectors_ND and user_vectors_VD: text, image and audio parts side by side, `taste_dimensions` columns each. is_cold: bool (N,).
    present: bool (N, 3), whether the item has text, image, audio. country, age_group: int (V,).
    """

    topic_shares: np.ndarray
    image_factors: np.ndarray
    audio_factors: np.ndarray
    item_vectors_ND: np.ndarray
    item_bias_N: np.ndarray
    user_vectors_VD: np.ndarray
    is_cold: np.ndarray
    present: np.ndarray
    country: np.ndarray
    age_group: np.ndarray


def stream(config: SyntheticConfig, purpose: str, number: int = 0) -> np.random.Generator:
    """The random stream of one purpose and one item or user."""
    entropy = (config.seed, zlib.crc32(purpose.encode()))
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy, spawn_key=(number,))))


def project_factors(generator: np.random.Generator, num_values: tuple[int, ...], width: int) -> list[np.ndarray]:
    """One (values, width) matrix per factor, such that the sum of one row of each has mean 0 and mean squared length 1/3.

    The means are over evenly and independently drawn values; every factor has the same part.
    """
    matrices = []
    for count in num_values:
        matrix = generator.standard_normal((count, width))
        matrix -= matrix.mean(axis=0)
        matrices.append(matrix / np.sqrt((matrix**2).sum(axis=1).mean() * 3 * len(num_values)))
    return matrices


def project_topics(generator: np.random.Generator, num_topics: int, width: int) -> np.ndarray:
    """A (topics, width) matrix W such that θ W has mean 0 and mean squared length 1/3 for the mixtures θ of `draw_topic_shares`.

    With W's columns centred and the topics exchangeable, E|θW|² = (E θ_k² − E θ_k θ_l) · ‖W‖².
    """
    matrix = generator.standard_normal((num_topics, width))
    matrix -= matrix.mean(axis=0)
    low = MAIN_TOPIC_SHARE_LOW
    mean_sum_of_squares = (1 - low**3) / (3 * (1 - low)) + (1 - low) ** 2 / 3
    mean_product = (1 - mean_sum_of_squares) / (num_topics * (num_topics - 1))
    return matrix / np.sqrt(3 * (mean_sum_of_squares / num_topics - mean_product) * (matrix**2).sum())


def draw_topic_shares(generator: np.random.Generator, num_items: int, num_topics: int) -> np.ndarray:
    """(N, topics): a main and another topic per item, all topics alike."""
    main = generator.integers(num_topics, size=num_items)
    second = (main + generator.integers(1, num_topics, size=num_items)) % num_topics
    main_share = generator.uniform(MAIN_TOPIC_SHARE_LOW, 1, size=num_items)
    shares = np.zeros((num_items, num_topics))
    shares[np.arange(num_items), main] = main_share
    shares[np.arange(num_items), second] = 1 - main_share
    return shares


def draw_truth(config: SyntheticConfig) -> Truth:
    """Factors, taste vectors, popularity, preferences, cold items and missing modalities."""
    num_items, num_users, width = config.num_items, config.num_users, config.taste_dimensions
    factors = stream(config, "factors")
    topic_shares = draw_topic_shares(factors, num_items, len(media.TOPICS))
    image_counts, audio_counts = (tuple(len(values) for values in table.values()) for table in (media.IMAGE_FACTORS, media.AUDIO_FACTORS))
    image_factors, audio_factors = (factors.integers(counts, size=(num_items, 3)) for counts in (image_counts, audio_counts))

    projections = stream(config, "projections")
    parts = [topic_shares @ project_topics(projections, len(media.TOPICS), width)]
    for counts, values in ((image_counts, image_factors), (audio_counts, audio_factors)):
        parts.append(sum(matrix[values[:, column]] for column, matrix in enumerate(project_factors(projections, counts, width))))

    people = stream(config, "users")
    country, age_group = people.integers(len(COUNTRIES), size=num_users), people.integers(len(AGE_GROUPS), size=num_users)
    shared, own = people.standard_normal((len(COUNTRIES), 3 * width)), people.standard_normal((num_users, 3 * width))
    share = config.country_taste_share

    availability = stream(config, "availability")
    is_cold = np.zeros(num_items, dtype=bool)
    is_cold[availability.permutation(num_items)[: round(config.cold_item_share * num_items)]] = True
    present = np.ones((num_items, 3), dtype=bool)
    for column in range(3):
        present[availability.permutation(num_items)[: round(config.missing_share * num_items)], column] = False
    kept = availability.integers(3, size=num_items)
    present[np.arange(num_items), kept] |= ~present.any(axis=1)

    return Truth(
        topic_shares=topic_shares,
        image_factors=image_factors,
        audio_factors=audio_factors,
        item_vectors_ND=np.concatenate(parts, axis=1),
        item_bias_N=config.popularity_strength * stream(config, "popularity").standard_normal(num_items),
        user_vectors_VD=np.sqrt(share) * shared[country] + np.sqrt(1 - share) * own,
        is_cold=is_cold,
        present=present,
        country=country,
        age_group=age_group,
    )


def draw_interactions(config: SyntheticConfig, truth: Truth) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, items and times (int64 microseconds since 1970, all different) of all interactions, oldest first.

    The moments are dealt out to the users evenly, so that every user is active throughout. A user with k moments takes the k items with the highest
    score / temperature + Gumbel noise, which is drawing k times without replacement from the softmax (Vieira 2014; Kool et al. 2019). They fall on the
    user's moments in random order, the cold items on late moments only: were the favourites taken first, train would hold them all and
    valid and test only what is hardest to tell apart. Cold items fill at most half of a user's late moments, and warm ones take the place of the
    others, so that valid and test hold both kinds.
    """
    plan = stream(config, "moments")
    rate = plan.gamma(config.activity_shape, config.interactions_per_user / config.activity_shape, size=config.num_users)
    counts = np.clip(plan.poisson(rate), 3, config.num_items // 4)
    user_of_moment = plan.permutation(np.repeat(np.arange(config.num_users), counts))
    num_moments = len(user_of_moment)
    gaps = plan.exponential(size=num_moments)
    # One extra microsecond per moment keeps all times apart, so a cut between two of them is never a tie.
    microseconds = (np.cumsum(gaps) / gaps.sum() * config.days * 86_400e6).astype(np.int64) + np.arange(num_moments)

    first_cold_moment = int(np.ceil(config.cold_from_share * num_moments))
    moments_of_user = np.split(np.argsort(user_of_moment, kind="stable"), np.cumsum(counts)[:-1])
    items = np.empty(num_moments, dtype=np.int64)
    for user, moments in enumerate(moments_of_user):
        generator = stream(config, "choices", user)
        wish = (truth.item_vectors_ND @ truth.user_vectors_VD[user] + truth.item_bias_N) / config.temperature
        order = np.argsort(-(wish + generator.gumbel(size=config.num_items)), kind="stable")
        late_moments = moments[moments >= first_cold_moment]
        chosen = order[: len(moments)]
        cold_items = chosen[truth.is_cold[chosen]][: len(late_moments) // 2]
        warm_items = order[~truth.is_cold[order]][: len(moments) - len(cold_items)]
        cold_moments = generator.permutation(late_moments)[: len(cold_items)]
        items[cold_moments] = cold_items
        items[np.setdiff1d(moments, cold_moments)] = generator.permutation(warm_items)
    return user_of_moment, items, START_MICROSECONDS + microseconds


def write_tables(config: SyntheticConfig, stage: StagedFolder) -> dict[str, int]:
    """Write `items/`, `interactions/`, `users/` and `truth/` into a staged folder; returns the counts for its manifest.

    `truth/scorer.safetensors` has the fields of `medley.index.scorer.Scorer`; `truth/items.parquet` and `truth/users.parquet` name its rows,
    the former with the items' factors.
    """
    truth = draw_truth(config)
    item_ids = [f"item-{number:05d}" for number in range(config.num_items)]
    user_ids = [f"user-{number:05d}" for number in range(config.num_users)]

    for part, start in enumerate(range(0, config.num_items, ROWS_PER_FILE)):
        rows = [_item_row(config, truth, number, item_ids[number]) for number in range(start, min(start + ROWS_PER_FILE, config.num_items))]
        table = pa.Table.from_pylist(rows, schema=ITEMS_SCHEMA)
        # Media do not get smaller by compressing them again.
        write_parquet(stage.path("items", f"part-{part:05d}.parquet"), table, row_group_size=ROWS_PER_GROUP, compression="none")

    users, items, microseconds = draw_interactions(config, truth)
    columns = [schema.USER_ID, schema.ITEM_ID, schema.TIMESTAMP, schema.EVENT]
    table = pa.table(
        [
            pa.array(user_ids).take(pa.array(users)),
            pa.array(item_ids).take(pa.array(items)),
            pa.array(microseconds).cast(pa.timestamp("us", tz="UTC")),
            pa.repeat("play", len(users)),
        ],
        schema=pa.schema([schema.INTERACTIONS_SCHEMA.field(name) for name in columns]),
    )
    write_parquet(stage.path("interactions", "part-00000.parquet"), table)

    attributes = {"country": [COUNTRIES[place] for place in truth.country], "age_group": [AGE_GROUPS[place] for place in truth.age_group]}
    write_parquet(stage.path("users", "part-00000.parquet"), pa.table({schema.USER_ID: user_ids, **attributes}))
    _write_truth(truth, item_ids, user_ids, stage)
    return {
        "num_items": config.num_items,
        "num_users": config.num_users,
        "num_interactions": len(users),
        "num_cold_items": int(truth.is_cold.sum()),
        **{f"num_items_without_{name}": int((~truth.present[:, column]).sum()) for column, name in enumerate((schema.TEXT, schema.IMAGE, schema.AUDIO))},
    }


def _item_row(config: SyntheticConfig, truth: Truth, number: int, item_id: str) -> dict[str, Any]:
    shares = truth.topic_shares[number]
    has_text, has_image, has_audio = truth.present[number]
    row: dict[str, Any] = {
        schema.ITEM_ID: item_id,
        schema.TITLE: media.write_title(stream(config, "title", number), list(media.TOPICS)[int(shares.argmax())]),
    }
    if has_text:
        generator = stream(config, "text", number)
        row[schema.TEXT] = media.write_text(generator, shares, config.words_per_text, config.topic_word_share, config.distractor_word_share)
    if has_image:
        pixels = media.draw_image(
            stream(config, "image", number), truth.image_factors[number], config.image_side_pixels, config.image_noise, config.num_image_distractors
        )
        row[schema.IMAGE] = media.encode_jpeg(pixels)
    if has_audio:
        num_samples = round(config.clip_seconds * config.sample_rate_hz)
        generator = stream(config, "audio", number)
        samples = media.play_sound(generator, truth.audio_factors[number], num_samples, config.sample_rate_hz, config.audio_noise, config.audio_distractor_gain)
        row[schema.AUDIO] = media.encode_flac(samples, config.sample_rate_hz)
    return row


def _write_truth(truth: Truth, item_ids: list[str], user_ids: list[str], stage: StagedFolder) -> None:
    from safetensors.numpy import save

    tensors = {
        "user_vectors_VD": truth.user_vectors_VD,
        "item_vectors_ND": truth.item_vectors_ND,
        "user_bias_V": np.zeros(len(user_ids)),
        "item_bias_N": truth.item_bias_N,
        "global_bias": np.zeros(()),
    }
    write_bytes(stage.path("truth", "scorer.safetensors"), save({name: value.astype(np.float32) for name, value in tensors.items()}))
    columns: dict[str, Any] = {schema.ITEM_ID: item_ids, "is_cold": truth.is_cold, "topic_shares": list(truth.topic_shares)}
    for table, factors in ((media.IMAGE_FACTORS, truth.image_factors), (media.AUDIO_FACTORS, truth.audio_factors)):
        for column, (name, values) in enumerate(table.items()):
            columns[name] = [values[place] for place in factors[:, column]]
    write_parquet(stage.path("truth", "items.parquet"), pa.table(columns))
    write_parquet(stage.path("truth", "users.parquet"), pa.table({schema.USER_ID: user_ids}))
