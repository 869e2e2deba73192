"""Small random PaliGemmas of `tiny`: the weights that the models take, and what the second spelling takes."""

import functools

import numpy as np
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
def spelled():
    """spelled(config): tensors by name, as float64, and the content of config.json: what `one_page` takes."""

    @functools.cache
    def spelled(config=tiny.CONFIG):
        tensors = {name: x.astype(np.float64) for name, x in tiny.random_tensors(config).items()}
        return tensors, tiny.config_json(config)

    return spelled
