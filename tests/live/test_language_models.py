"""Gemma 1, 2 and 3 as language models against transformers: logits, and greedy ids past the window."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import npgemma

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("transformers", reason="the live tests compare with transformers")

from make_fixtures import greedy, in_float64, truth  # noqa: E402
from torch_gemmas import CASES, EVERY, FULL, SLIDING, UNTIED, inputs_of, noisy, random_ids, rotations, save, save_as  # noqa: E402
from torch_logits import FLOAT32_RATIO, compare_logits, logits_of, wide  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

STEPS = 40
FEW = 16  # steps that are more than any window here
SHORT, LONG = 2, 12  # tokens of a prompt: fewer than any window, and more
LENGTHS = (SHORT, LONG, 25)
SEED = 12


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path, ratios: dict[str, float]) -> None:
    """In float64 up to rounding, and in float32 as near to the truth as transformers."""
    case, generator = CASES[name], torch.Generator().manual_seed(SEED)
    save(case, tmp_path, generator)
    prompts = [inputs_of(random_ids(case, length, generator)) for length in LENGTHS]
    ratio = ratios[name] = compare_logits(tmp_path, prompts, case.kind)
    assert ratio <= FLOAT32_RATIO


@pytest.mark.parametrize("name", [name for name in CASES if "untied" not in name])
def test_greedy_ids_are_those_that_transformers_finds_likeliest(name: str, tmp_path: Path) -> None:
    """A prefill, then steps through caches that keep `window` rows on sliding layers, against one pass without a cache.

    Heads are untied: with a tied one, a token follows itself.
    """
    case, generator = CASES[name].changed(**UNTIED), torch.Generator().manual_seed(SEED)
    model = noisy(case, generator)
    ours = npgemma.load(save_as(model, case, tmp_path), "float64")
    double = in_float64(model)
    for length in (SHORT, LONG):
        ids = random_ids(case, length, generator)
        found = ours.generate_ids(ids.numpy(), FEW, eos_ids=())
        assert len(set(found)) > 3  # otherwise equal ids would say little
        with truth():
            rows = logits_of(double, inputs_of([*ids, *found]))[length - 1 : -1]
        assert found == rows.argmax(-1).tolist()


@pytest.mark.parametrize(("length", "dtype"), [(SHORT, "float64"), (LONG, "float64"), (LONG, "float32")])
@pytest.mark.parametrize("name", EVERY)
def test_greedy_ids_equal_those_of_transformers(name: str, length: int, dtype: str, tmp_path: Path) -> None:
    """Of its `generate`, whose caches forget, too."""
    case, generator = EVERY[name].changed(**UNTIED), torch.Generator().manual_seed(SEED)
    model = noisy(case, generator)
    model.generation_config.eos_token_id = None
    ours = npgemma.load(save_as(model, case, tmp_path), dtype)
    ids = random_ids(case, length, generator)
    with wide(model) if dtype == "float64" else nullcontext(model) as theirs:
        expected = greedy(theirs, inputs_of(ids), STEPS).tolist()
    assert len(set(expected)) > 3
    assert ours.generate_ids(ids.numpy(), STEPS, eos_ids=()) == expected


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each family."""
    return {
        name: save(case, tmp_path_factory.mktemp("model"), torch.Generator().manual_seed(0))
        for name, case in EVERY.items()
    }


# Other values than the config's, and what they change a logit by, at least; float32 rounds by less than 1e-4.
NOTICED = 0.01
NORMS = {"rms_norm_eps": 0.1}
WINDOWED = NORMS | {"query_pre_attn_scalar": 8, "sliding_window": 6}
OTHER_VALUES = {
    "Gemma 1": NORMS | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "Gemma 2": WINDOWED
    | {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    | {"layer_types": [FULL, FULL, SLIDING, SLIDING]},
    "Gemma 3": WINDOWED | {"final_logit_softcapping": 3.0, "layer_types": [SLIDING] * 7},
}
OTHERS = [(name, key, value) for name, values in OTHER_VALUES.items() for key, value in values.items()]
OTHERS += [("Gemma 3", "rope_parameters", rotations(*angles)) for angles in [(1e5, 1e4), (1e6, 1e3), (1e6, 1e4, 4.0)]]


@pytest.mark.parametrize(("name", "key", "value"), OTHERS)
def test_every_value_of_the_config_changes_the_logits(name: str, key: str, value, folders, tmp_path: Path) -> None:
    """So a test above would fail if npgemma read it wrongly."""
    shutil.copy(folders[name] / "model.safetensors", tmp_path)
    config = json.loads((folders[name] / "config.json").read_text())
    assert config[key] != value
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    ids = random_ids(EVERY[name], LONG, torch.Generator().manual_seed(0)).numpy()
    found, other = (npgemma.load(each).forward(ids) for each in (folders[name], tmp_path))
    assert np.abs(found - other).max() > NOTICED
