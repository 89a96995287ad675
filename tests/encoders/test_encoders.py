"""The contract of encoders over every member of the union."""

from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from medley.data.reused_memory import ReusedMemory
from medley.encoders import EncoderConfig, PreparesInto, PreparesMany, stack_inputs
from medley.encoders.frozen import freeze
from medley.model import ModelConfig, build_model
from tests.encoder_cases import CASES, Case, Folders

MEMBERS = get_args(get_args(EncoderConfig)[0])


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, model_folder: Folders) -> Case:
    return Case(*CASES[request.param](model_folder))


def test_every_member_of_the_union_has_a_case(model_folder: Folders):
    assert {type(make(model_folder)[0]) for make in CASES.values()} == {*MEMBERS}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_kinds_are_unique():
    kinds = [member.model_fields["kind"].default for member in MEMBERS]
    assert len(set(kinds)) == len(kinds)


def test_prepare_is_deterministic_and_stays_so_in_threads(case: Case):
    alone = [case.encoder.prepare(value) for value in case.values]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(case.encoder.prepare, case.values * 50))
    assert all(equal(prepared, alone[number % len(alone)]) for number, prepared in enumerate(together))


def test_many_items_are_prepared_as_one_by_one(case: Case):
    alone = [case.encoder.prepare(value) for value in case.values]
    if isinstance(case.encoder, PreparesMany):
        many = case.encoder.prepare_many(case.values)
        assert all(equal(*pair) for pair in zip(many, alone, strict=True))
    if isinstance(case.encoder, PreparesInto):
        out = {name: ReusedMemory(row).rows(len(alone)) for name, row in case.encoder.dummy().items()}
        case.encoder.prepare_into([memoryview(value) for value in case.values], out)
        stacked = stack_inputs(alone)
        assert all(torch.equal(out[name], stacked[name]) and out[name].stride() == stacked[name].stride() for name in stacked)


def test_vectors_have_the_stated_width_and_are_finite(case: Case):
    vectors = case.encoder(case.inputs())
    assert vectors.shape == (4, case.encoder.output_dimension)
    assert vectors.dtype == torch.float32
    assert torch.isfinite(vectors).all()


def test_different_items_have_different_vectors(case: Case):
    vectors = case.encoder(case.inputs())
    assert torch.cdist(vectors, vectors)[~torch.eye(4, dtype=torch.bool)].min() > 1e-4


def test_a_dummy_stacks_with_prepared_items_and_gives_a_finite_vector(case: Case):
    dummy = case.encoder.dummy()
    assert {name: tensor.dtype for name, tensor in dummy.items()} == {name: tensor.dtype for name, tensor in case.encoder.prepare(case.values[0]).items()}
    assert torch.isfinite(case.encoder(stack_inputs([dummy]))).all()
    mixed = case.encoder(stack_inputs([dummy, *(case.encoder.prepare(value) for value in case.values)]))
    assert torch.isfinite(mixed).all()
    assert torch.allclose(mixed[1:], case.encoder(case.inputs()), atol=1e-5)


def test_a_rows_vector_does_not_depend_on_the_other_rows(case: Case):
    together = case.encoder(case.inputs())
    for place in range(4):
        assert torch.allclose(case.encoder(case.inputs(place))[0], together[place], atol=1e-5)
    assert torch.allclose(case.encoder(case.inputs(3, 1)), together[[3, 1]], atol=1e-5)


def test_a_rows_vector_does_not_depend_on_the_other_rows_in_training_mode(case: Case):
    case.encoder.train()
    # Dropout draws one number per position of the batch: without it, what is left to differ is statistics over the batch.
    dropouts = {module: module.p for module in case.encoder.modules() if isinstance(getattr(module, "p", None), float)}
    for module in dropouts:
        module.p = 0.0
    together = case.encoder(case.inputs())
    alone = torch.cat([case.encoder(case.inputs(place)) for place in range(4)])
    case.encoder.eval()
    for module, rate in dropouts.items():
        module.p = rate
    assert torch.allclose(alone, together, atol=1e-5)


def test_gradient_reaches_every_trainable_parameter(case: Case):
    torch.manual_seed(2)
    vectors = case.encoder(case.inputs())
    trainable = {name: parameter for name, parameter in case.encoder.named_parameters() if parameter.requires_grad}
    if not trainable:
        assert case.config.kind == "features"
        return
    gradients = torch.autograd.grad((vectors * torch.randn_like(vectors)).sum(), list(trainable.values()), allow_unused=True)
    without = [name for name, gradient in zip(trainable, gradients, strict=True) if gradient is None]
    assert without == []
    # Attention is blind to a constant added to every key, so the gradient of a key's bias is zero by mathematics.
    zero = [name for name, gradient in zip(trainable, gradients, strict=True) if not gradient.any() and not name.endswith(("key.bias", "k_proj.bias"))]
    assert zero == []


def test_learning_and_building_twice_gives_the_same_assets_and_shapes(case: Case):
    assert case.config.learn(case.values) == case.assets
    shapes = {name: tensor.shape for name, tensor in case.encoder.state_dict().items()}
    for pretrained in (True, False):
        built = case.config.build(case.assets, pretrained=pretrained)
        assert {name: tensor.shape for name, tensor in built.state_dict().items()} == shapes
        assert equal(built.prepare(case.values[0]), case.encoder.prepare(case.values[0]))


def test_weights_of_one_build_work_in_another(case: Case):
    built = case.config.build(case.assets, pretrained=False).eval()
    built.load_state_dict(case.encoder.state_dict())
    assert torch.allclose(built(case.inputs()), case.encoder(case.inputs()), atol=1e-6)


def test_a_frozen_encoder_has_no_trainable_weight_in_the_model(case: Case):
    config = ModelConfig(dimension=4, encoders={"m": case.config.model_copy(update={"train": "frozen"})})
    model = build_model(
        config,
        {"m": case.assets},
        train_count_N=torch.tensor([1, 1]),
        user_train_count_V=torch.tensor([1]),
        num_categories={},
        mean_value=0.0,
        pretrained=True,
    )
    assert not any(parameter.requires_grad for parameter in model.encoders.parameters())
    assert any(parameter.requires_grad for parameter in model.fusion.parameters())


def test_a_frozen_encoders_row_has_the_same_bits_alone_and_in_any_company(case: Case):
    frozen = freeze(case.config.build(case.assets, pretrained=True))
    frozen.load_state_dict(case.encoder.state_dict())
    together = frozen(case.inputs())
    assert torch.allclose(together, case.encoder(case.inputs()), atol=1e-5)
    assert not together.requires_grad
    many = list(range(4)) * 11
    generator = torch.Generator().manual_seed(0)
    for places in ([0], [3, 1], [2] * 5, many, [many[place] for place in torch.randperm(44, generator=generator).tolist()]):
        assert torch.equal(frozen(case.inputs(*places)), together[places])
    with_dummies = frozen(stack_inputs([frozen.dummy(), *(frozen.prepare(value) for value in case.values), frozen.dummy()]))
    assert torch.equal(with_dummies[1:5], together)


def test_a_frozen_encoder_stays_in_evaluation_mode_and_keeps_the_names_of_its_weights(case: Case):
    frozen = nn.ModuleDict({"m": freeze(case.config.build(case.assets, pretrained=True))})
    frozen.train()
    assert not any(module.training for module in frozen["m"].modules())
    assert [name.removeprefix("m.") for name in frozen.state_dict()] == list(case.encoder.state_dict())


def test_only_a_frozen_encoder_may_be_cached(case: Case):
    values = case.config.model_dump()
    assert type(case.config)(**{**values, "train": "frozen", "cache": True}).cache
    with pytest.raises(ValidationError, match=r"train: frozen where cache is true \(with train: full"):
        type(case.config)(**{**values, "train": "full", "cache": True})


def test_shorter_inputs_are_padded_with_zeros_at_the_end():
    stacked = stack_inputs([{"x": torch.tensor([1, 2])}, {"x": torch.tensor([3])}])
    assert stacked["x"].tolist() == [[1, 2], [3, 0]]
