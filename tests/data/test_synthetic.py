"""The synthetic data set: decided by its seed, a third of taste in each modality, cold items late, media that decode."""

import io
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from PIL import Image

from medley import schema
from medley.data.convert import synthetic_media as media
from medley.data.convert.synthetic import (
    SyntheticConfig,
    draw_interactions,
    draw_topic_shares,
    draw_truth,
    project_factors,
    project_topics,
    stream,
    write_tables,
)
from medley.index.scorer import Scorer
from medley.manifest import read_parquet, staged_folder

TINY = SyntheticConfig(num_items=120, num_users=60, interactions_per_user=12, cold_item_share=0.2, missing_share=0.25)


def write(config: SyntheticConfig, folder: Path) -> dict:
    with staged_folder(str(folder)) as stage:
        counts = write_tables(config, stage)
        return stage.commit("tables", "synthetic", parents={}, counts=counts, config=config.model_dump())


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "tables"
    write(TINY, folder)
    return folder


def cut_by_time(num_interactions: int) -> tuple[int, int]:
    return int(0.8 * num_interactions), int(0.9 * num_interactions)


def test_same_seed_writes_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    first, again = write(TINY, tmp_path / "first"), write(TINY, tmp_path / "again")
    other = write(TINY.model_copy(update={"seed": 1}), tmp_path / "other")
    assert first["files"] == again["files"]
    assert {name.split("/")[0] for name in first["files"]} == {"items", "interactions", "users", "truth"}
    unchanged = {name for name in first["files"] if first["files"][name] == other["files"][name]}
    assert unchanged == {"truth/users.parquet"}, "only the list of user ids does not depend on the seed"


def test_an_item_looks_the_same_whatever_the_size_of_the_catalogue(tmp_path: Path) -> None:
    assert stream(TINY, "image", 7).random() == stream(TINY.model_copy(update={"num_items": 500}), "image", 7).random()
    assert stream(TINY, "image", 7).random() != stream(TINY, "audio", 7).random()
    assert stream(TINY, "image", 7).random() != stream(TINY, "image", 8).random()


def test_factor_vectors_have_mean_zero_and_mean_squared_length_one_third_over_all_combinations() -> None:
    matrices = project_factors(np.random.default_rng(3), (4, 4, 4), width=5)
    vectors = np.array([sum(matrix[value] for matrix, value in zip(matrices, values, strict=True)) for values in product(range(4), repeat=3)])
    np.testing.assert_allclose(vectors.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose((vectors**2).sum(axis=1).mean(), 1 / 3, rtol=1e-12)


def test_topic_vectors_have_mean_squared_length_one_third_in_expectation() -> None:
    generator = np.random.default_rng(3)
    vectors = draw_topic_shares(generator, 100_000, 12) @ project_topics(generator, 12, width=5)
    np.testing.assert_allclose(vectors.mean(axis=0), 0, atol=0.01)
    np.testing.assert_allclose((vectors**2).sum(axis=1).mean(), 1 / 3, rtol=0.01)


def test_each_modality_carries_a_third_of_the_variance_of_the_true_scores() -> None:
    truth = draw_truth(SyntheticConfig(num_items=2000, num_users=2000))
    width = SyntheticConfig().taste_dimensions
    parts = [truth.user_vectors_VD[:, start : start + width] @ truth.item_vectors_ND[:, start : start + width].T for start in range(0, 3 * width, width)]
    shares = np.array([part.var() for part in parts]) / sum(parts).var()
    np.testing.assert_allclose(shares, 1 / 3, atol=0.05)
    correlations = np.corrcoef([part.ravel() for part in parts])[np.triu_indices(3, 1)]
    np.testing.assert_allclose(correlations, 0, atol=0.05)


def test_cold_items_are_taken_in_the_last_fifth_only() -> None:
    truth = draw_truth(TINY)
    _, items, times = draw_interactions(TINY, truth)
    assert (np.diff(times) > 0).all()
    train_end, valid_end = cut_by_time(len(items))
    assert truth.is_cold.sum() == 24
    assert not truth.is_cold[items[:train_end]].any()
    assert truth.is_cold[items[train_end:valid_end]].any()
    assert truth.is_cold[items[valid_end:]].any()


def test_users_never_take_an_item_twice_and_are_active_throughout() -> None:
    config = TINY.model_copy(update={"num_items": 400, "interactions_per_user": 40.0})
    users, items, _ = draw_interactions(config, draw_truth(config))
    assert len(np.unique(users * config.num_items + items)) == len(users)
    train_end, valid_end = cut_by_time(len(users))
    assert set(users[valid_end:]) <= set(users[:train_end])
    assert len(users) / config.num_users == pytest.approx(40, rel=0.2)


def test_missing_modalities_are_null_and_every_item_keeps_one(tiny_folder: Path) -> None:
    table = read_parquet(f"{tiny_folder}/items")
    present = np.array([table[name].is_valid().to_numpy() for name in (schema.TEXT, schema.IMAGE, schema.AUDIO)])
    np.testing.assert_allclose(1 - present.mean(axis=1), 0.25, atol=0.03)
    assert present.any(axis=0).all()
    assert table[schema.TITLE].null_count == 0


def test_pictures_and_sounds_decode_to_their_sizes(tiny_folder: Path) -> None:
    table = read_parquet(f"{tiny_folder}/items")
    for data in table[schema.IMAGE].drop_null().to_pylist():
        picture = Image.open(io.BytesIO(data))
        assert (picture.format, picture.size, picture.mode) == ("JPEG", (48, 48), "RGB")
        picture.load()
    for data in table[schema.AUDIO].drop_null().to_pylist():
        info = soundfile.info(io.BytesIO(data))
        samples, sample_rate_hz = soundfile.read(io.BytesIO(data))
        assert (info.format, info.subtype, sample_rate_hz, samples.shape) == ("FLAC", "PCM_16", 8000, (8000,))
        assert 0.25 < np.abs(samples).max() < 1


def test_texts_are_told_with_the_words_of_their_topics(tiny_folder: Path) -> None:
    truth = draw_truth(TINY)
    topic_of_word = {word: topic for topic, (_, words) in enumerate(media.TOPICS.values()) for word in words.split()}
    for text, shares in zip(read_parquet(f"{tiny_folder}/items")[schema.TEXT].to_pylist(), truth.topic_shares, strict=True):
        words = (text or "").split()
        assert len(words) in (0, TINY.words_per_text)
        assert all(shares[topic_of_word[word]] > 0 for word in words if word in topic_of_word)


def test_titles_name_neither_picture_nor_sound(tiny_folder: Path) -> None:
    telling = {*media.SHAPES, *media.COLOURS, *media.TEXTURES, *media.CHORDS_HZ, *media.TEMPOS_HZ, *media.TIMBRES}
    titles = read_parquet(f"{tiny_folder}/items")[schema.TITLE].to_pylist()
    assert not telling & {word.lower() for title in titles for word in title.split()}


def test_interactions_have_the_columns_of_the_contract(tiny_folder: Path) -> None:
    table = read_parquet(f"{tiny_folder}/interactions")
    for name in table.column_names:
        assert table.schema.field(name).type == schema.INTERACTIONS_SCHEMA.field(name).type
    assert table.column_names == [schema.USER_ID, schema.ITEM_ID, schema.TIMESTAMP, schema.EVENT]
    assert set(table[schema.USER_ID].to_pylist()) == set(read_parquet(f"{tiny_folder}/users")[schema.USER_ID].to_pylist())
    assert table[schema.TIMESTAMP].type == pa.timestamp("us", tz="UTC")


def test_the_written_truth_scores_like_the_drawn_truth(tiny_folder: Path) -> None:
    scorer, truth = Scorer.load(f"{tiny_folder}/truth/scorer.safetensors"), draw_truth(TINY)
    scores = scorer.user_vectors_VD @ scorer.item_vectors_ND.T + scorer.item_bias_N
    np.testing.assert_allclose(scores.numpy(), truth.user_vectors_VD @ truth.item_vectors_ND.T + truth.item_bias_N, atol=1e-5)
    rows = read_parquet(f"{tiny_folder}/truth/items.parquet")
    assert rows[schema.ITEM_ID].to_pylist() == read_parquet(f"{tiny_folder}/items")[schema.ITEM_ID].to_pylist()
    assert rows["colour"].to_pylist() == [media.IMAGE_FACTORS["colour"][place] for place in truth.image_factors[:, 1]]
    assert len(read_parquet(f"{tiny_folder}/truth/users.parquet")) == TINY.num_users


def test_the_true_scores_rank_far_better_than_popularity() -> None:
    config = SyntheticConfig(num_items=300, num_users=200, interactions_per_user=20)
    truth = draw_truth(config)
    users, items, _ = draw_interactions(config, truth)
    train_end, _ = cut_by_time(len(users))
    popularity = np.bincount(items[:train_end], minlength=config.num_items)
    true_scores = truth.user_vectors_VD @ truth.item_vectors_ND.T + truth.item_bias_N
    means = []
    for scores in (true_scores, np.tile(popularity.astype(float), (config.num_users, 1))):
        scores[users[:train_end], items[:train_end]] = -np.inf
        means.append(mean_ndcg_at_10(scores, users[train_end:], items[train_end:]))
    assert means[0] > 3 * means[1]


def mean_ndcg_at_10(scores: np.ndarray, users: np.ndarray, items: np.ndarray) -> float:
    """Mean over users with a relevant item of DCG@10 over the best possible one."""
    discounts = 1 / np.log2(np.arange(2, 12))
    values = []
    for user in np.unique(users):
        relevant = items[users == user]
        best = np.argsort(-scores[user], kind="stable")[:10]
        values.append(discounts @ np.isin(best, relevant) / discounts[: len(relevant)].sum())
    return float(np.mean(values))
