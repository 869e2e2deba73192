"""The small random PaliGemmas of `tiny` as the weights of the models, and one of them to hand."""

import functools

import pytest
import tiny


@pytest.fixture(scope="session")
def load(tmp_path_factory):
    """load(config, dtype): a PaliGemma whose tensors are tiny.random_tensors(config), stored as dtype."""

    @functools.cache
    def load(config=tiny.CONFIG, dtype="float32"):
        return tiny.weights(tiny.write_folder(tmp_path_factory.mktemp("tiny"), config, dtype=dtype), config)

    return load


@pytest.fixture(scope="session")
def tensors():
    """The tensors of the weights that load() gives without arguments, by plain name: what the second spelling reads."""
    return tiny.random_tensors()
