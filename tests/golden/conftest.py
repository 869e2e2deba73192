"""Golden files with every tap of the embedded model, a PaliGemma 2 and a Gemma 3, and dumps of ports of the first."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ports import port
from random_models import GEMMAS, PALIGEMMA_2, PROMPT, load_with_suffix, write_model

import npgemma
from npgemma.api.language import LanguageModel
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.golden import Golden, read_golden, record
from npgemma.golden.names import is_in_level


@pytest.fixture(scope="session")
def model() -> VisionLanguageModel:
    return npgemma.load()


@pytest.fixture(scope="session")
def golden_path(model: VisionLanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "ops.safetensors"
    record(model, [npgemma.sample_picture()], "caption en", path, "ops", steps=2)
    return path


@pytest.fixture(scope="session")
def golden(golden_path: Path) -> Golden:
    return read_golden(golden_path)


@pytest.fixture(scope="session")
def model_2(tmp_path_factory: pytest.TempPathFactory) -> VisionLanguageModel:
    """A random PaliGemma 2. Its window is shorter than its prompts, which end with a suffix."""
    return load_with_suffix(write_model(tmp_path_factory.mktemp("paligemma_2"), PALIGEMMA_2), PALIGEMMA_2)


@pytest.fixture(scope="session")
def golden_2(model_2: VisionLanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    path = tmp_path_factory.mktemp("golden_2") / "ops.safetensors"
    record(model_2, [npgemma.sample_picture()], "caption en", path, "ops", steps=1)
    return read_golden(path)


@pytest.fixture(scope="session")
def model_3(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A random Gemma 3, whose window is shorter than its prompts."""
    return LanguageModel.load(write_model(tmp_path_factory.mktemp("gemma_3"), GEMMAS[3]))


@pytest.fixture(scope="session")
def golden_3(model_3: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    path = tmp_path_factory.mktemp("golden_3") / "ops.safetensors"
    record(model_3, [], PROMPT, path, "ops", steps=2)
    return read_golden(path)


@pytest.fixture(scope="session")
def blocks(golden: Golden) -> Golden:
    """The golden file with the taps of the level 'blocks', for tests that need no others."""
    return replace(golden, taps={tap: axes for tap, axes in golden.taps.items() if is_in_level(tap, "blocks")})


@pytest.fixture(scope="session")
def prefill(golden: Golden) -> Golden:
    """The golden file without its steps, for tests of replays that need none."""
    taps = {tap: axes for tap, axes in golden.taps.items() if not tap.startswith("steps.")}
    return replace(golden, taps=taps, truth={**golden.truth, "generated_ids": golden.truth["generated_ids"][:1]})


@pytest.fixture(scope="session")
def one_layer(golden: Golden) -> Golden:
    """The golden file with the taps of layer 1 alone, for tests that compare often."""
    return replace(golden, taps={tap: axes for tap, axes in golden.taps.items() if ".layers.1." in tap})


@pytest.fixture(scope="session")
def float32_port(model: VisionLanguageModel, golden: Golden) -> dict[str, np.ndarray]:
    return port(model, golden)


@pytest.fixture(scope="session")
def bfloat16_port(model: VisionLanguageModel, golden: Golden) -> dict[str, np.ndarray]:
    return port(model, golden, "bfloat16")


@pytest.fixture(scope="session")
def prefill_port(model: VisionLanguageModel, prefill: Golden) -> dict[str, np.ndarray]:
    return port(model, prefill)
