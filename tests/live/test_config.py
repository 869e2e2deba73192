"""The configs of model folders as transformers reads and saves them."""

import copy
import json
from pathlib import Path

import pytest

from npgemma.checkpoints.config_keys import TANH_GELU
from npgemma.checkpoints.known_keys import unknown_keys
from npgemma.checkpoints.paligemma import read_config
from npgemma.errors import BadModel
from npgemma.io.model_folder import EMBEDDED

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")
pytest.importorskip("google.protobuf", reason="transformers reads a tokenizer.model with protobuf")

from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

ABSENT = object()
CONFIG = json.loads((EMBEDDED / "config.json").read_text())


def write(folder: Path, changes: dict[str, object], generation: object = ABSENT) -> Path:
    """The embedded model with values of its config by path, and with a generation_config.json."""
    config = copy.deepcopy(CONFIG)
    for path, value in changes.items():
        *sections, key = path.split(".")
        at = config
        for section in sections:
            at = at[section]
        at.pop(key, None)
        if value is not ABSENT:
            at[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not ABSENT:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def as_ids(value: int | list[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def their_generation(folder: Path) -> "transformers.GenerationConfig":
    """As from_pretrained of a model finds it: in its file, else in config.json."""
    try:
        return transformers.GenerationConfig.from_pretrained(folder)
    except OSError:
        return transformers.GenerationConfig.from_pretrained(folder, "config.json", _from_model_config=True)


@pytest.mark.parametrize("generation", [ABSENT, {"eos_token_id": 7}, {"eos_token_id": [1, 7], "bos_token_id": 9}])
@pytest.mark.parametrize("outer", [1, [1, 5], None, ABSENT])
@pytest.mark.parametrize("inner", [3, [3, 4]])
def test_end_tokens(generation: object, outer: object, inner: object, tmp_path: Path) -> None:
    write(tmp_path, {"eos_token_id": outer, "text_config.eos_token_id": inner}, generation)
    assert read_config(tmp_path).eos_token_ids == as_ids(their_generation(tmp_path).eos_token_id)


@pytest.mark.parametrize("place", ["", "text_config."])
def test_settings_for_generation_in_config_json(place: str, tmp_path: Path) -> None:
    """They are in force, and so refused, unless there is a generation_config.json."""
    write(tmp_path, {f"{place}repetition_penalty": 1.5})
    assert their_generation(tmp_path).repetition_penalty == 1.5
    with pytest.raises(BadModel, match="repetition_penalty"):
        read_config(tmp_path)
    write(tmp_path, {f"{place}repetition_penalty": 1.5}, {"eos_token_id": 1})
    assert their_generation(tmp_path).repetition_penalty is None
    read_config(tmp_path)


@pytest.mark.parametrize("inner", [ABSENT, True, False])
@pytest.mark.parametrize("outer", [ABSENT, True, False])
def test_a_tied_head(outer: object, inner: object, tmp_path: Path) -> None:
    write(tmp_path, {"tie_word_embeddings": outer, "text_config.tie_word_embeddings": inner})
    config = transformers.PaliGemmaConfig.from_pretrained(tmp_path)
    config.text_config.num_hidden_layers = config.vision_config.num_hidden_layers = 1
    model = transformers.PaliGemmaForConditionalGeneration(config)
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert read_config(tmp_path).tied == tied


@pytest.mark.parametrize("old", [1744, ABSENT])
@pytest.mark.parametrize("new", [1700, ABSENT])
def test_the_image_token(old: object, new: object, tmp_path: Path) -> None:
    if old is new is ABSENT:
        pytest.skip("npgemma's default is that of the hub's models")
    write(tmp_path, {"image_token_index": old, "image_token_id": new})
    theirs = transformers.PaliGemmaConfig.from_pretrained(tmp_path)
    assert read_config(tmp_path).image_token_index == theirs.image_token_index


@pytest.mark.parametrize("theta", [500.0, ABSENT])
@pytest.mark.parametrize("parameters", [ABSENT, None, {}, {"rope_theta": 777.0}, {"rope_type": "linear", "factor": 1}])
@pytest.mark.parametrize(
    "scaling", [ABSENT, None, {}, {"type": "default"}, {"type": "linear", "factor": 1.0}, {"rope_theta": 9.0}]
)
def test_rotary_positions(scaling: object, parameters: object, theta: object, tmp_path: Path) -> None:
    changes = {"rope_scaling": scaling, "rope_parameters": parameters, "rope_theta": theta}
    write(tmp_path, {f"text_config.{key}": value for key, value in changes.items()})
    config = transformers.PaliGemmaConfig.from_pretrained(tmp_path).text_config
    rotary = transformers.models.gemma.modeling_gemma.GemmaRotaryEmbedding(config)
    ours = read_config(tmp_path).text
    expected = ours.rope_theta ** -(torch.arange(0, ours.head_dim, 2).double() / ours.head_dim)
    torch.testing.assert_close(rotary.inv_freq.double(), expected, rtol=2**-20, atol=0)


@pytest.mark.parametrize("value", [{"rope_type": "linear", "factor": 8.0}, {"rope_type": "dynamic", "factor": 1.0}])
def test_positions_are_stretched_by_the_factor(value: dict, tmp_path: Path) -> None:
    write(tmp_path, {"text_config.rope_scaling": value})
    config = transformers.PaliGemmaConfig.from_pretrained(tmp_path).text_config
    rotary = transformers.models.gemma.modeling_gemma.GemmaRotaryEmbedding(config)
    ours = 10000.0 ** -(torch.arange(0, 32, 2).double() / 32) / read_config(tmp_path).text.rope_factor
    assert torch.allclose(rotary.inv_freq.double(), ours, rtol=2**-20, atol=0)


def test_what_transformers_saves_contains_no_unknown_keys(tmp_path: Path) -> None:
    """With every default for generation that it knows, and a chat template."""
    tokenizer = transformers.GemmaTokenizer.from_pretrained(EMBEDDED)
    pictures = SiglipImageProcessorPil.from_pretrained(EMBEDDED)
    transformers.PaliGemmaProcessor(pictures, tokenizer, chat_template="{{ messages }}").save_pretrained(tmp_path)
    transformers.PaliGemmaConfig.from_pretrained(EMBEDDED).save_pretrained(tmp_path)
    defaults = transformers.GenerationConfig._get_default_generation_params()
    transformers.GenerationConfig(eos_token_id=1, **defaults).save_pretrained(tmp_path)
    assert {"config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert unknown_keys(tmp_path) == []


def test_every_setting_for_generation_is_known(tmp_path: Path) -> None:
    """Whatever transformers can save."""
    known = [key for key in vars(transformers.GenerationConfig()) if not key.startswith("_")]
    assert len(known) > 50
    write(tmp_path, {}, dict.fromkeys(known))
    assert unknown_keys(tmp_path) == []


def test_a_config_with_all_defaults_of_transformers_has_no_unknown_keys(tmp_path: Path) -> None:
    """to_dict, unlike save_pretrained of today, writes them all, as older releases did."""
    content = transformers.PaliGemmaConfig().to_dict()
    content["image_token_index"] = 257152
    (tmp_path / "config.json").write_text(json.dumps(content, default=str))
    assert unknown_keys(tmp_path) == []


@pytest.mark.parametrize("name", TANH_GELU)
def test_every_name_of_the_gelu_with_a_tanh_is_that_function(name: str) -> None:
    """The constants in transformers have ten digits or more."""
    x = torch.linspace(-8, 8, 1000, dtype=torch.float64)
    expected = torch.nn.functional.gelu(x, approximate="tanh")
    torch.testing.assert_close(transformers.activations.ACT2FN[name](x), expected, rtol=0, atol=1e-9)


def test_no_other_activation_is_the_gelu_with_a_tanh() -> None:
    x = torch.linspace(-8, 8, 1000, dtype=torch.float64)
    expected = torch.nn.functional.gelu(x, approximate="tanh")
    found = set()
    for name in transformers.activations.ACT2CLS:
        try:
            y = transformers.activations.ACT2FN[name](x)
        except (RuntimeError, TypeError, ImportError, NotImplementedError):
            continue  # an activation with weights in float32
        if y.shape == x.shape and torch.allclose(y.double(), expected, rtol=0, atol=1e-6):
            found.add(name)
    assert found == set(TANH_GELU)
