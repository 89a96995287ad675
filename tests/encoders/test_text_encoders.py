"""What text encoders promise beside the contract."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from medley.encoders import stack_inputs
from medley.encoders.subword import SubwordConfig
from medley.encoders.transformer_text import TransformerTextConfig
from tests.encoder_cases import CASES, TEXTS, Case, Folders


def test_the_vector_of_a_text_is_the_normalised_mean_of_its_subwords():
    case = Case(SubwordConfig(vocabulary_size=40, dimension=8), TEXTS)
    ids = case.encoder.prepare("a red bird")["token_ids"]
    mean = case.encoder.embedding.weight[ids].mean(dim=0)
    expected = (mean - mean.mean()) / (mean.var(correction=0) + 1e-5).sqrt()
    assert torch.allclose(case.encoder(stack_inputs([{"token_ids": ids}]))[0], expected, atol=1e-5)


def test_a_text_is_cut_lowercased_and_never_empty():
    case = Case(SubwordConfig(vocabulary_size=40, dimension=8, max_tokens=3), TEXTS)
    assert case.encoder.prepare("A RED BIRD")["token_ids"].tolist() == case.encoder.prepare("a red bird")["token_ids"].tolist()
    assert len(case.encoder.prepare("a red bird " * 20)["token_ids"]) == 3
    assert case.encoder.prepare(" ")["token_ids"].tolist() == [1]
    assert case.encoder.prepare("漢字")["token_ids"].tolist()[0] == 1


def test_more_padding_does_not_change_a_transformers_text_vector(model_folder: Folders):
    case = Case(*CASES["bert"](model_folder))
    inputs = case.inputs(0)
    padded = {name: nn.functional.pad(tensor, (0, 9)) for name, tensor in inputs.items()}
    assert torch.allclose(case.encoder(padded), case.encoder(inputs), atol=1e-5)


def test_a_transformers_text_vector_is_the_mean_of_the_models_own_hidden_states(model_folder: Folders):
    from transformers import AutoModel, AutoTokenizer

    case = Case(*CASES["bert"](model_folder))
    tokens = AutoTokenizer.from_pretrained(model_folder("bert"))(TEXTS[0], return_tensors="pt")
    expected = AutoModel.from_pretrained(model_folder("bert")).eval()(**tokens).last_hidden_state.mean(dim=1)
    assert torch.allclose(case.encoder(case.inputs(0)), expected, atol=1e-6)


def test_a_long_text_is_cut_to_max_tokens(model_folder: Folders):
    case = Case(TransformerTextConfig(path=model_folder("bert"), max_tokens=5), TEXTS)
    ids = case.encoder.prepare("bird " * 50)["token_ids"].tolist()
    assert (len(ids), ids[0], ids[-1]) == (5, 2, 3)


def test_a_transformers_text_vector_may_be_its_first_or_last_tokens(model_folder: Folders):
    first, last = (Case(TransformerTextConfig(path=model_folder("bert"), pooling=pooling), TEXTS) for pooling in ("cls", "last"))
    inputs = first.inputs(0, 1)  # five and four tokens with [CLS] and [SEP]
    assert inputs["token_mask"].sum(dim=1).tolist() == [5, 4]
    hidden = first.encoder.model(input_ids=inputs["token_ids"], attention_mask=inputs["token_mask"]).last_hidden_state
    assert torch.equal(first.encoder(inputs), hidden[:, 0])
    assert torch.allclose(last.encoder(inputs), torch.stack([hidden[0, 4], hidden[1, 3]]))


def test_a_transformers_text_encoder_from_scratch_needs_no_weights(model_folder: Folders, tmp_path: Path):
    for path in Path(model_folder("bert")).glob("*.json"):
        shutil.copy(path, tmp_path)
    case = Case(TransformerTextConfig(path=str(tmp_path), from_scratch=True), TEXTS)
    pretrained = Case(TransformerTextConfig(path=model_folder("bert")), TEXTS)
    assert case.encoder.state_dict().keys() == pretrained.encoder.state_dict().keys()
    assert not torch.allclose(case.encoder(case.inputs()), pretrained.encoder(case.inputs()), atol=1e-2)


def test_what_is_built_after_a_transformers_encoder_does_not_see_what_it_drew(model_folder: Folders):
    after = []
    for settings in ({}, {"from_scratch": True}, {"pooling": "cls"}):
        torch.manual_seed(4)
        config = TransformerTextConfig(path=model_folder("bert"), **settings)
        config.build(config.learn([]), pretrained=True)
        after.append(torch.rand(1).item())
    assert after[0] == after[1] == after[2]


@pytest.mark.parametrize(("name", "norm"), [("gru_text", "unit"), ("subword", "layer")])
def test_an_output_norm_acts_on_the_vector_and_adds_no_weights(model_folder: Folders, name: str, norm: str):
    plain = Case(*CASES[name](model_folder))
    normed = plain.changed(output_norm=norm)
    assert normed.encoder.state_dict().keys() == plain.encoder.state_dict().keys()
    vectors = plain.encoder(plain.inputs())
    if norm == "unit":
        assert torch.allclose(normed.encoder(plain.inputs()), vectors / vectors.norm(dim=1, keepdim=True), atol=1e-6)
    else:
        expected = (vectors - vectors.mean(dim=1, keepdim=True)) / (vectors.var(dim=1, correction=0, keepdim=True) + 1e-5).sqrt()
        assert torch.allclose(normed.encoder(plain.inputs()), expected, atol=1e-5)
