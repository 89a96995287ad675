"""Folders of tiny models, written once."""

from collections.abc import Callable

import pytest
import torch

from tests.encoder_cases import SAVERS


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Name of a model → its folder."""
    found: dict[str, str] = {}

    def folder(name: str) -> str:
        if name not in found:
            path = tmp_path_factory.mktemp(name)
            torch.manual_seed(0)
            SAVERS[name](path)
            found[name] = str(path)
        return found[name]

    return folder
