"""Low-rank updates of an encoder's linear layers, by peft (the extra `lora`), and their way back into plain weights.

In training and its checkpoints an updated layer X has `X.base_layer.weight`, `X.lora_A.default.weight` and `X.lora_B.default.weight`. A run that
starts from such weights, and the feature cache, read `X.weight`: `merge_lora` makes it, `base_names` finds its place in another encoder with LoRA.
"""

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn

from medley.schema import InputError

DOWN, UP, BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer."


def add_lora(encoder: nn.Module, blocks: Sequence[nn.Module], rank: int, alpha: int, targets: Collection[str]) -> None:
    """Freeze an encoder and give the linear layers that `targets` name (empty: all of the blocks) trainable updates, in place.

    They begin at zero: the encoder's vectors are at first what they were.
    """
    names = linear_layers(encoder, blocks)
    ends = sorted({_end(name) for name in names})
    if not ends:
        raise InputError(f"train: lora for {type(encoder).__name__}, whose blocks have no linear layers", "a transformer", "set train: top_layers or full")
    for target in targets:
        if not any(_is_named(name, target) for name in names):
            raise InputError(f"lora.targets has '{target}', no linear layer of this encoder", f"some of {', '.join(ends)}", "correct lora.targets")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError("train: lora and no package peft", "the extra lora", "pip install 'medley-rec[lora]'") from error

    encoder.requires_grad_(False)
    chosen = [name for name in names if not targets or any(_is_named(name, target) for target in targets)]
    # peft takes the rank and the scale; no dropout, so that training draws no more random numbers than without.
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=chosen), encoder)


def linear_layers(encoder: nn.Module, blocks: Sequence[nn.Module]) -> list[str]:
    """Names of the linear layers of the blocks. torch's own attention reads the weights of its layers without calling them: they do not count."""
    uncalled = {part for module in encoder.modules() if isinstance(module, nn.MultiheadAttention) for part in module.modules()}
    inside = {part for block in blocks for part in block.modules() if isinstance(part, nn.Linear)} - uncalled
    return [name for name, module in encoder.named_modules() if module in inside]


def merge_lora(weights: Mapping[str, Tensor], prefix: str, scale: float) -> dict[str, Tensor]:
    """Weights with the updates of one encoder added to its layers, under the names that an encoder without LoRA has. scale: alpha / rank."""
    merged = {}
    for name, value in weights.items():
        if not name.startswith(prefix):
            merged[name] = value
        elif BASE in name:
            layer = name.rpartition(BASE)[0]
            has_update = name.endswith(".weight")
            merged[name.replace(BASE, ".")] = value + scale * (weights[layer + UP] @ weights[layer + DOWN]) if has_update else value
        elif not name.endswith((DOWN, UP)):
            merged[name] = value
    return merged


def base_names(weights: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Plain weights under the names of a model, some of whose layers have updates: `X.weight` becomes `X.base_layer.weight`."""
    return {_in_base(name) if name not in own and _in_base(name) in own else name: value for name, value in weights.items()}


def _in_base(name: str) -> str:
    layer, _, kind = name.rpartition(".")
    return f"{layer}{BASE}{kind}"


def _is_named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _end(name: str) -> str:
    """What a person would write as a target: the last part of a name, with the one before where that is a number."""
    parts = name.split(".")
    return parts[-1] if not parts[-1].isdigit() else ".".join(parts[-2:])
