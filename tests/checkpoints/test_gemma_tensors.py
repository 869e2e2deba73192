"""A decoder's tensors against its config: another family's are refused in one sentence, other sizes by name."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from npgemma import testing
from npgemma.checkpoints import gemma
from npgemma.checkpoints.gemma_config import IN_PALIGEMMA, LANGUAGE_MODELS, GemmaConfig
from npgemma.checkpoints.layout import Part, make_layout
from npgemma.checkpoints.paligemma import read_config, read_tensors
from npgemma.errors import BadModel

SIZES = {
    "hidden_size": 12,
    "intermediate_size": 17,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 31,
}
SMALL = {kind: replace(config, **SIZES) for kind, config in LANGUAGE_MODELS.items()}
FILE = Path("model.safetensors")


def layout(config: GemmaConfig):
    return make_layout(gemma.blank(config, tied=True), Part(gemma.hf_lines(config), gemma.sizes(config)))


TENSORS = {kind: testing.layout_tensors(layout(config)) for kind, config in SMALL.items()}


@pytest.mark.parametrize("kind", SMALL)
def test_the_tensors_of_the_family_are_accepted(kind: str) -> None:
    gemma.check_family(TENSORS[kind], SMALL[kind], "", FILE)
    layout(SMALL[kind]).check(TENSORS[kind], FILE)


@pytest.mark.parametrize(
    ("says", "holds", "found"),
    [
        ("gemma2", "gemma", "lack model.layers.0.pre_feedforward_layernorm.weight, which belongs to gemma2 and gemma3"),
        ("gemma3_text", "gemma", "lack model.layers.0.pre_feedforward_layernorm.weight, which belongs to gemma2"),
        ("gemma", "gemma2", "hold model.layers.0.pre_feedforward_layernorm.weight, which belongs to gemma2 and gemma3"),
        ("gemma", "gemma3_text", "hold model.layers.0.pre_feedforward_layernorm.weight, which belongs to gemma2"),
        ("gemma2", "gemma3_text", "hold model.layers.0.self_attn.q_norm.weight, which belongs to gemma3_text"),
        ("gemma3_text", "gemma2", "lack model.layers.0.self_attn.q_norm.weight, which belongs to gemma3_text"),
    ],
)
@pytest.mark.parametrize("layers", [2, 3, 4])
def test_tensors_of_another_family_are_refused_in_one_sentence(says: str, holds: str, found: str, layers: int) -> None:
    """Whether config and tensors have the same number of layers, or not."""
    config = replace(SMALL[says], num_hidden_layers=layers)
    with pytest.raises(BadModel, match=rf"^model\.safetensors: the tensors {found}") as error:
        gemma.check_family(TENSORS[holds], config, "", FILE)
    assert f"config.json says that the model_type is {says!r}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spelling", tiny.SPELLINGS)
@pytest.mark.parametrize(("says", "holds", "found"), [("gemma2", "gemma", "lack"), ("gemma", "gemma2", "hold")])
def test_a_paligemma_folder_of_two_families_is_refused(says, holds, found, spelling, tmp_path) -> None:
    """However the names are spelled, the message has the one that transformers 5 saves."""
    config = replace(tiny.CONFIG, text=replace(IN_PALIGEMMA[holds], **SIZES), image_token_index=30)
    tiny.write_folder(tmp_path, config, spelling=spelling)
    content = json.loads((tmp_path / "config.json").read_text())
    content["text_config"]["model_type"] = says
    (tmp_path / "config.json").write_text(json.dumps(content))
    norm = r"language_model\.model\.layers\.0\.pre_feedforward_layernorm\.weight"
    with pytest.raises(BadModel, match=rf"the tensors {found} {norm}, .*the model_type is '{says}'"):
        read_tensors(tmp_path, read_config(tmp_path))


@pytest.mark.parametrize("name", ["pre_feedforward_layernorm", "self_attn.q_norm"])
def test_one_norm_too_few_is_a_missing_tensor_and_not_another_family(name: str) -> None:
    lost = f"model.layers.1.{name}.weight"
    tensors = {key: x for key, x in TENSORS["gemma3_text"].items() if key != lost}
    gemma.check_family(tensors, SMALL["gemma3_text"], "", FILE)
    with pytest.raises(BadModel, match=rf"\(1 missing, 0 unexpected, 0 mis-shaped\)\n  missing +{lost}"):
        layout(SMALL["gemma3_text"]).check(tensors, FILE)


def sized(**sizes: int) -> Callable[[], None]:
    return lambda: layout(replace(SMALL["gemma2"], **sizes)).check(TENSORS["gemma2"], FILE)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        # D/N for head_dim: PaliGemma 2 28b's 144, which is its query_pre_attn_scalar
        (sized(head_dim=2), r"q_proj\.weight: stored \(48, 12\), expected \(12, 12\)"),
        (sized(num_key_value_heads=3), r"k_proj\.weight: stored \(16, 12\), expected \(24, 12\)"),
        (sized(num_hidden_layers=4), r"missing     model\.layers\.3\."),
        (sized(num_hidden_layers=2), r"unexpected  model\.layers\.2\."),
        (sized(vocab_size=32), r"embed_tokens\.weight: stored \(31, 12\), expected \(32, 12\)"),
    ],
)
def test_sizes_that_do_not_fit_the_tensors_are_refused(check: Callable[[], None], message: str) -> None:
    with pytest.raises(BadModel, match=message):
        check()
