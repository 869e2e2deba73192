"""Folders of Gemma 1, 2 and 3 as language models, in every form that transformers writes, and folders of other models.

Both sides read the same folder, and the logits are compared.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import npgemma
from npgemma.errors import BadModel

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

from make_fixtures import sizes  # noqa: E402
from paligemma_2_models import overwritten  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch_gemmas import EVERY, GEMMA, GEMMA_3, SCALE, SIZES, inputs_of, noisy, random_ids, save  # noqa: E402
from torch_logits import FLOAT32_RATIO, compare_logits  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

LENGTHS = (4, 17)  # less than the window of five tokens, and more


@pytest.fixture
def generator() -> "torch.Generator":
    return torch.Generator().manual_seed(7)


def prompts(generator: "torch.Generator") -> list[dict]:
    return [inputs_of(random_ids(GEMMA, length, generator)) for length in LENGTHS]


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    """Change the config.json of a folder."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


# ------------------------------------------------------------------------------------------------------ files and names


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_half_precision_in_shards(name: str, stored: "torch.dtype", generator, tmp_path: Path) -> None:
    model = noisy(EVERY[name], generator).to(stored)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert compare_logits(tmp_path, prompts(generator), EVERY[name].kind) <= FLOAT32_RATIO


@pytest.mark.parametrize("name", EVERY)
def test_the_decoder_alone(name: str, generator, tmp_path: Path) -> None:
    """Saved without a head: names begin with `layers.`, not with `model.`."""
    noisy(EVERY[name], generator).model.save_pretrained(tmp_path)
    assert "layers.0.mlp.gate_proj.weight" in load_file(tmp_path / "model.safetensors")
    assert compare_logits(tmp_path, prompts(generator), EVERY[name].kind) <= FLOAT32_RATIO


@pytest.mark.parametrize("name", EVERY)
def test_a_head_that_equals_the_table(name: str, generator, tmp_path: Path) -> None:
    """Other programs store both, although the config says that they are one."""
    folder = save(EVERY[name], tmp_path, generator)
    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in tensors
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(tensors | head, folder / "model.safetensors", {"format": "pt"})
    assert compare_logits(tmp_path, prompts(generator), EVERY[name].kind) <= FLOAT32_RATIO


# ------------------------------------------------------------------------------------------------------------- configs


def old(config: dict) -> None:
    """Gemma 3 as transformers 4 wrote it."""
    rotation = config.pop("rope_parameters")
    scaled = rotation["full_attention"]
    config |= {"rope_theta": scaled.pop("rope_theta"), "rope_scaling": scaled}
    config["rope_local_base_freq"] = rotation["sliding_attention"]["rope_theta"]
    del config["layer_types"], config["use_bidirectional_attention"]
    config["sliding_window_pattern"] = 3


def older(config: dict) -> None:
    """With both names of `rope_type`, and the pattern that is the default.

    Not with `type` alone: transformers 5 then does not scale, as if the key were absent.
    """
    old(config)
    config["rope_scaling"]["type"] = config["rope_scaling"]["rope_type"]
    del config["sliding_window_pattern"]


def published(config: dict) -> None:
    """Gemma 3 without scaled angles, as the models without a tower are."""
    old(config)
    config["rope_scaling"] = None
    config |= {"cache_implementation": "hybrid", "torch_dtype": "bfloat16", "attention_bias": False}


def without_rotations(config: dict) -> None:
    """The defaults of the class: 1e6 and 1e4, unscaled."""
    del config["rope_parameters"]


def unchanged(config: dict) -> None:
    """The spelling of transformers 5."""
    assert {*config["rope_parameters"]} == {*config["layer_types"]}


@pytest.mark.parametrize(
    "spelling", [unchanged, old, older, published, without_rotations], ids=lambda each: each.__name__
)
def test_spellings_of_gemma_3(spelling: Callable[[dict], None], generator, tmp_path: Path) -> None:
    edit(save(GEMMA_3, tmp_path, generator), spelling)
    assert compare_logits(tmp_path, prompts(generator), GEMMA_3.kind) <= FLOAT32_RATIO


@pytest.mark.parametrize(("pattern", "factor"), [(2, 8.0), (3, 8.0), (6, 8.0), (6, 4.0)])
def test_every_value_of_the_old_spelling_counts(pattern: int, factor: float, generator, tmp_path: Path) -> None:
    save(GEMMA_3, tmp_path, generator)
    edit(tmp_path, old)
    scaling = {"rope_type": "linear", "factor": factor}
    edit(tmp_path, lambda config: config.update(sliding_window_pattern=pattern, rope_scaling=scaling))
    assert compare_logits(tmp_path, prompts(generator), GEMMA_3.kind) <= FLOAT32_RATIO


DEFAULTS = {
    "Gemma 1": ("head_dim", "rms_norm_eps"),
    "Gemma 2": (
        *("layer_types", "rms_norm_eps", "hidden_activation", "query_pre_attn_scalar", "sliding_window"),
        *("attn_logit_softcapping", "final_logit_softcapping"),
    ),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_keys_that_are_absent_have_the_defaults_of_transformers(name: str, generator, tmp_path: Path) -> None:
    """rope_theta takes the place of rope_parameters, as in older folders."""
    case = EVERY[name].changed(**({"head_dim": 256} if name == "Gemma 1" else {}))
    save(case, tmp_path, generator)

    def change(config: dict) -> None:
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
        for key in DEFAULTS[name]:
            del config[key]

    edit(tmp_path, change)
    assert compare_logits(tmp_path, prompts(generator), case.kind) <= FLOAT32_RATIO


# ------------------------------------------------------------------------------------------ Gemma 3 with a vision tower

TOWER = sizes(16, 24, 2, 2, image_size=12, patch_size=4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spelling", [unchanged, old], ids=lambda each: each.__name__)
def test_the_decoder_of_a_gemma_3_with_a_vision_tower(
    spelling: Callable[[dict], None], tied: bool, generator, tmp_path: Path
) -> None:
    """npgemma reads text_config and leaves the tower out; transformers runs without a picture."""
    config = transformers.Gemma3Config(
        text_config=GEMMA_3.keys,
        vision_config=dict(model_type="siglip_vision_model", vision_use_head=False, **TOWER),
        mm_tokens_per_image=9,
        image_token_index=63,
        boi_token_index=62,
        eoi_token_index=61,
        tie_word_embeddings=tied,
    )
    kind = transformers.Gemma3ForConditionalGeneration
    overwritten(kind(config), generator, torch.float32).save_pretrained(tmp_path)
    edit(tmp_path, lambda config: spelling(config["text_config"]))
    text = [inputs_of(random_ids(GEMMA, length, generator) % 61) for length in LENGTHS]
    assert compare_logits(tmp_path, text, kind) <= FLOAT32_RATIO


# -------------------------------------------------------------------------------------------------------- other models


def refusal(folder: Path) -> str:
    """What npgemma says about a folder: one sentence that names a file in it."""
    with pytest.raises(BadModel) as error:
        npgemma.load(folder)
    said = str(error.value)
    assert str(folder) in said
    assert "\n" not in said
    assert ". " not in said.replace(str(folder), "")
    return said


@pytest.mark.parametrize("where", ["alone", "with a tower"])
def test_a_model_that_looks_in_both_directions_is_refused(where: str, tmp_path: Path) -> None:
    text = transformers.Gemma3TextConfig(**GEMMA_3.keys, use_bidirectional_attention=True)
    if where == "alone":
        transformers.Gemma3TextModel(text).save_pretrained(tmp_path)
    else:
        vision = dict(model_type="siglip_vision_model", vision_use_head=False, **TOWER)
        config = transformers.Gemma3Config(text_config=text.to_dict(), vision_config=vision)
        transformers.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    assert "use_bidirectional_attention" in refusal(tmp_path)


CLASSIFIERS = {
    "GemmaForSequenceClassification": (transformers.GemmaConfig, SIZES),
    "GemmaForTokenClassification": (transformers.GemmaConfig, SIZES),
    "Gemma2ForSequenceClassification": (transformers.Gemma2Config, SIZES | SCALE),
    "Gemma3TextForSequenceClassification": (transformers.Gemma3TextConfig, GEMMA_3.keys),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_is_refused(name: str, tmp_path: Path) -> None:
    make, keys = CLASSIFIERS[name]
    getattr(transformers, name)(make(**keys, num_labels=3)).save_pretrained(tmp_path)
    assert name in refusal(tmp_path)
