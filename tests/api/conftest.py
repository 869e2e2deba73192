"""The small model of `small_model`, as a folder and loaded."""

from pathlib import Path

import pytest
import small_model

import npgemma


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model.write_folder(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def small(small_folder: Path) -> npgemma.VisionLanguageModel:
    return npgemma.load(small_folder)
