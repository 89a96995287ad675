"""Rankings worked out on paper, the fold-in against numpy, and answers that do not depend on the batch they came in."""

import dataclasses
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from medley.bundle import read_bundle
from medley.data.item_lists import ItemLists
from medley.index.scorer import Scorer
from medley.schema import InputError
from medley.serving.recommender import Query, Recommender, UnknownIdError
from medley.training.evaluate import EvaluateConfig, Questions, VectorRanker, rank_users, whole_catalogue


@pytest.fixture(scope="module")
def hand(hand_bundle: str) -> Recommender:
    return Recommender.load(hand_bundle)


def ids(answer) -> str:
    return "".join(item.item_id for item in answer.items)


def test_a_known_user_gets_the_best_unseen_items(hand: Recommender):
    answer = hand.recommend("ann")
    # ann = (1, 0): e 2, c 1, f 0 + bias 0.5, b 0; all plus user bias 0.5 and global bias 0.25. a and d are seen.
    assert [(item.item_id, item.score) for item in answer.items] == [("e", 2.75), ("c", 1.75), ("f", 1.25), ("b", 0.75)]
    assert (answer.source, answer.model_version, answer.items[0].title) == ("personal", "hand00000000", "Title e")


def test_seen_items_come_back_on_request_and_ties_go_by_item_index(hand: Recommender):
    assert ids(hand.recommend("ann", include_seen=True)) == "eacfbd"


def test_k_cuts_the_list(hand: Recommender):
    assert ids(hand.recommend("ann", k=2)) == "ec"


def test_a_cold_item_is_ranked_by_its_vector(hand: Recommender):
    assert hand.recommend("cid", k=1).items[0].item_id == "e"  # train_count 0, (2, 1)·(1, 1) = 3 is the highest


def test_excluded_items_and_the_history_of_a_known_user_are_left_out(hand: Recommender):
    answer = hand.recommend("ann", history=["c"], exclude=["f"])
    assert (ids(answer), answer.source) == ("eb", "personal")


def test_excluded_items_stay_out_even_with_include_seen(hand: Recommender):
    assert ids(hand.recommend("ann", exclude=["a"], history=["e"], include_seen=True)) == "ecfbd"


def test_only_candidates_are_ranked_and_seen_ones_are_still_left_out(hand: Recommender):
    assert ids(hand.recommend("ann", candidates=["b", "a", "c", "b"])) == "cb"
    assert ids(hand.recommend(candidates=["d", "b"])) == "bd"
    assert ids(hand.recommend("ann", candidates=[])) == ""


def test_unknown_ids_are_ignored_and_listed_once(hand: Recommender):
    answer = hand.recommend("ann", history=["?1"], exclude=["?2", "?1"], candidates=["e", "?3"])
    assert (ids(answer), answer.unknown_items) == ("e", ["?1", "?2", "?3"])


def test_an_unknown_user_with_a_history_is_folded_in(hand: Recommender):
    answer = hand.recommend("zoe", history=["a"])
    # Mean user (2/3, 2/3, 1), highest scores 2, 1, 3: an own item should score 2, a scores 2/3, so 4/3 is missing. Gram matrix [[7, 3], [3, 3]];
    # aaᵀ + 0.3 gram + 1 = [[4.1, 0.9], [0.9, 1.9]]; its inverse times (4/3, 0) is 4/3 (1.9, -0.9) / 6.98. Item f scores its bias.
    x, y = 2 / 3 + 4 / 3 * 1.9 / 6.98, 2 / 3 - 4 / 3 * 0.9 / 6.98
    expected = {"e": 2 * x + y, "c": x + y, "f": 0.5, "b": y, "d": -x}
    assert (ids(answer), answer.source) == ("ecfbd", "fold_in")
    assert [item.score for item in answer.items] == pytest.approx(list(expected.values()), abs=1e-6)


def test_fold_in_agrees_with_numpy_for_chosen_weights(random_bundle: str):
    recommender = Recommender.load(random_bundle, unseen_weight=0.3, regularization=2.5)
    scorer = read_bundle(random_bundle).scorer
    vectors, users = scorer.item_columns_ND.double().numpy(), scorer.user_columns_VD.double().numpy()
    mean_user, own_score = users.mean(axis=0), (users @ vectors.T).max(axis=1).mean()
    liked = vectors[[3, 40, 99]]
    normal = liked.T @ liked + 0.3 * vectors.T @ vectors + 2.5 * np.eye(17)
    user = mean_user + np.linalg.solve(normal, liked.T @ (own_score - liked @ mean_user))
    item_ids = [f"item-{index}" for index in range(300)]
    assert recommender.score(None, item_ids, history=["item-3", "item-40", "item-99"]) == pytest.approx((vectors @ user).tolist(), abs=1e-5)


def test_a_history_is_folded_in_with_the_weights_of_the_run(random_bundle: str):
    bundle = read_bundle(random_bundle)
    of_run = Recommender(dataclasses.replace(bundle, config={"evaluate": {"fold_in_unseen_weight": 0.7, "fold_in_regularization": 3.0}}))
    chosen, default = Recommender(bundle, unseen_weight=0.7, regularization=3.0), Recommender(bundle)
    answers = [recommender.recommend(history=["item-3", "item-40"]) for recommender in (of_run, chosen, default)]
    assert answers[0] == answers[1] != answers[2]


def test_evaluation_and_serving_rank_a_new_user_alike(random_bundle: str):
    bundle = read_bundle(random_bundle)
    vectors_VD = bundle.scorer.user_vectors_VD.clone()
    vectors_VD[0] = 0  # user-0 came after training
    scorer = dataclasses.replace(bundle.scorer, user_vectors_VD=vectors_VD)
    history, target = ItemLists.from_pairs(np.zeros(2, int), np.array([3, 40]), 120), np.zeros(1, int)
    served = Recommender(dataclasses.replace(bundle, scorer=scorer, seen=history)).recommend("user-0", k=50)
    assert served.source == "fold_in"
    for place in (0, 7, 33):
        # Asked for the item that serving puts at this place, evaluation finds it at the same place.
        item = int(served.items[place].item_id.removeprefix("item-"))
        questions = Questions(target, ItemLists.from_pairs(target, np.array([item]), 120), history, history, bundle.items["train_count"].to_numpy())
        ranker = VectorRanker.of(scorer, questions, EvaluateConfig())
        assert rank_users(ranker, questions, whole_catalogue(300), 50)["all"].metrics((50,))["mrr@50"].tolist() == pytest.approx([1 / (place + 1)])


def test_nobody_known_gets_popular_items_marked_as_such(hand: Recommender):
    answer = hand.recommend("zoe", k=3, history=["unheard of"], exclude=["b"])
    assert [(item.item_id, item.score) for item in answer.items] == [("a", 5.0), ("c", 3.0), ("d", 2.0)]
    assert (answer.source, answer.unknown_items) == ("popular", ["unheard of"])
    assert ids(hand.recommend()) == "abcdfe"


def test_a_history_of_a_model_without_vectors_falls_back_to_popular_items(popularity_bundle: str):
    answer = Recommender.load(popularity_bundle).recommend(history=["y"])
    assert (ids(answer), answer.source) == ("zx", "popular")


def test_an_all_seen_catalogue_gives_an_empty_list(hand: Recommender):
    assert hand.recommend("bob", exclude=list("abcdef")).items == []


def test_scores_are_those_of_the_recommendations(hand: Recommender):
    assert hand.score("ann", ["b", "e", "a"]) == [0.75, 2.75, 1.75]


def test_similar_items_by_cosine_without_the_item_itself(hand: Recommender):
    similar = hand.similar("a", k=3)
    assert [item.item_id for item in similar] == ["e", "c", "b"]
    assert [item.score for item in similar] == pytest.approx([2 / 5**0.5, 1 / 2**0.5, 0.0])
    assert [item.score for item in hand.similar("f", k=10)] == [0.0] * 5


def test_unknown_ids_are_refused_where_nothing_else_could_answer(hand: Recommender):
    with pytest.raises(UnknownIdError, match="item 'zzz' is not in bundle hand00000000"):
        hand.similar("zzz")
    with pytest.raises(UnknownIdError, match="item 'zzz'"):
        hand.score("ann", ["zzz"])
    with pytest.raises(UnknownIdError, match=r"user 'zoe'.*history holds no known items"):
        hand.score("zoe", ["a"], history=["zzz"])


def test_an_unknown_id_error_survives_pickling():
    error = pickle.loads(pickle.dumps(UnknownIdError("got", "expected", "remedy")))
    assert (type(error), error.got, error.remedy) == (UnknownIdError, "got", "remedy")


@pytest.mark.parametrize("k", [0, -1, 1001])
def test_k_outside_1_to_1000_is_refused(hand: Recommender, k: int):
    with pytest.raises(InputError, match=f"k is {k}; expected a number of results from 1 to 1000"):
        hand.recommend("ann", k=k)
    with pytest.raises(InputError, match=f"k is {k}"):
        hand.similar("a", k=k)


def test_a_fold_in_that_could_not_be_solved_is_refused(hand_bundle: str):
    with pytest.raises(InputError, match="regularization 0"):
        Recommender.load(hand_bundle, regularization=0)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_answers_do_not_depend_on_the_batch_or_on_threads(random_bundle: str, num_threads: int):
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    recommender = Recommender.load(random_bundle)
    queries = [Query(f"user-{index}", k=1 + index % 40) for index in range(120)]
    queries += [Query(None, k=25, history=[f"item-{index}", f"item-{2 * index}"]) for index in range(1, 40)]
    queries += [Query(f"user-{index}", candidates=[f"item-{index * step % 300}" for step in range(50)]) for index in range(10)] + [Query()]
    alone = [recommender.recommend_many([query])[0] for query in queries]
    for size in (2, 7, 32, len(queries)):
        batched = [answer for start in range(0, len(queries), size) for answer in recommender.recommend_many(queries[start : start + size])]
        assert batched == alone
    torch.set_num_threads(threads_before)


def test_rankings_are_those_of_exact_arithmetic(random_bundle: str):
    bundle = read_bundle(random_bundle)
    scores = bundle.scorer.user_vectors_VD.double() @ bundle.scorer.item_vectors_ND.double().T + bundle.scorer.item_bias_N.double()
    recommender = Recommender(bundle)
    for user in range(0, 120, 7):
        exact = scores[user].numpy().astype(np.float32)
        exact[bundle.seen.of(user)] = -np.inf
        expected = [f"item-{index}" for index in np.argsort(-exact, kind="stable")[:20]]
        assert [item.item_id for item in recommender.recommend(f"user-{user}", k=20).items] == expected


def test_more_ties_than_spare_results_are_still_ordered_by_item_index(popularity_bundle: str):
    bundle = read_bundle(popularity_bundle)
    items = pa.table({"item_id": [f"{index:03d}" for index in range(500)], "title": [None] * 500, "train_count": [1] * 500})
    tied = dataclasses.replace(bundle, scorer=Scorer.of_items(torch.ones(500), num_users=1), items=items)
    answer = Recommender(tied).recommend("ann", k=5)
    assert ids(answer) == "000002003004005"  # 001 is seen


def test_a_changed_byte_is_refused_and_the_file_named(hand_bundle: str, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(hand_bundle, copy)
    content = bytearray((copy / "scorer.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "scorer.safetensors").write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"file 'scorer\.safetensors'.*the file was changed or damaged"):
        Recommender.load(str(copy))


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"has no manifest\.json; expected a finished folder of kind 'bundle'"):
        Recommender.load(str(tmp_path))


def test_the_description_says_what_is_served(hand: Recommender):
    description = hand.description
    assert (description.num_items, description.num_users, description.dimension) == (6, 3, 2)
    assert (description.metrics, description.parents) == ({"ndcg@10": 0.5}, {"prepared": "0123456789abcdef"})
