"""The presets for ports, held against dumps of the ports where they are there, and against their names and layouts.

The dumps of keras-hub and mlx-vlm are those of real runs. Those of hkproj and big_vision are npgemma's own run in the
names, shapes and conventions of these ports, as their sources have them.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from npgemma import BadGolden
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.golden import Dump, Golden, Report, compare, preset, read_dump, read_golden, replay
from npgemma.golden.file import EMBEDDED_GOLDEN
from npgemma.golden.port_presets import PORTS

PORT = dict[str, np.ndarray]
REAL = Path(__file__).parents[3] / "shared" / "ports"
# Worse than this is no rounding: the largest ratio of a correct port is 9.5, where few numbers meet a lucky run.
ROUNDING = 20


@pytest.fixture(scope="module")
def embedded() -> Golden:
    return read_golden(EMBEDDED_GOLDEN)


def worst(report: Report) -> float:
    """The largest ratio of any tap to its envelope, in the comparison and in the replay; infinite if one has none."""
    verdicts = [*report.verdicts, *report.replayed]
    ratios = [max(v.ratios.values(), default=0.0 if v.explained else np.inf) for v in verdicts]
    return max(ratios)


def notes(report: Report) -> set[str]:
    return {note for verdict in report.verdicts for note in verdict.note.splitlines()}


CONVENTIONS = {
    "keras-hub": {
        "it holds the 4 ids of the text without those of the picture; harmless",
        "its rows after those of the tap are taken for padding; harmless",
        "its rotary pairs are interleaved; harmless",
        "positions count from 0; harmless",
        "of its rows that of the last token alone is compared; harmless",
    },
    "mlx-vlm": {
        "it is scaled by 0.08839, and scaled back later; harmless",
        "positions count from 0; harmless",
        "of its rows that of the last token alone is compared; harmless",
    },
}
DUMPS = {"keras-hub": ("keras_hub_jax_float32.npz", 44), "mlx-vlm": ("mlx_vlm_float32.npz", 50)}


@pytest.mark.parametrize("name", DUMPS)
def test_real_dump_is_mapped_as_a_whole(name: str, embedded: Golden, model: VisionLanguageModel) -> None:
    file, count = DUMPS[name]
    if not (REAL / file).exists():
        pytest.skip(f"{REAL / file} is not there")
    dump = read_dump(REAL / file)
    report = compare(embedded, dump, preset(name, embedded))
    assert (report.pairing.unmapped, report.pairing.missing, len(report.verdicts)) == ([], [], count)
    assert notes(report) == CONVENTIONS[name]
    assert worst(replay(model, embedded, dump, report)) < ROUNDING


def hkproj(x: PORT, steps: int) -> PORT:
    """Modules with forward hooks, merged embeddings divided by sqrt(D), an additive mask, caches [B K S H]."""
    found = {
        "pixel_values": x["pixel_values"],
        "input_ids": x["prompts.0.input_ids"][None],
        "attention_mask": np.zeros((1, 1, 40, 40), np.float32),
        "multi_modal_projector": x["projector"],
        "multi_modal_projector.linear": x["projector"],
        "vision_tower": x["vision.norm"],
        "vision_tower.vision_model.post_layernorm": x["vision.norm"],
        "vision_tower.vision_model.embeddings": x["vision.embedding"],
        "vision_tower.vision_model.embeddings.patch_embedding": x["vision.embedding.patches"]
        .reshape(1, 6, 6, 128)
        .transpose(0, 3, 1, 2),
    }
    modules = {
        "layer_norm1": "attn_norm",
        "layer_norm2": "mlp_norm",
        "self_attn.out_proj": "attn.out",
        "self_attn.0": "attn.out",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.out",
        "mlp": "mlp.out",
    }
    for i in range(4):
        tap, name = f"vision.layers.{i}.", f"vision_tower.vision_model.encoder.layers.{i}"
        found |= {f"{name}.{theirs}": x[tap + ours] for theirs, ours in modules.items()}
        found |= {f"{name}.self_attn.{p}_proj": x[f"{tap}attn.{p}"].reshape(1, 36, 128) for p in "qkv"}
        found[f"{name}.self_attn.1"] = x[f"{tap}attn.pictures.0.probs"][None]
        found[name] = x[f"{tap}out"]
    for step in range(steps + 1):
        before, tap_before = (f"step{step}.", f"steps.{step}.") if step else ("", "")
        found |= {before + theirs: tensor for theirs, tensor in hkproj_decoder(x, tap_before).items()}
    return found


def hkproj_decoder(x: PORT, before: str) -> PORT:
    """The decoder's part of one call."""
    modules = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "mlp_norm",
        "self_attn.o_proj": "attn.out",
        "mlp.gate_proj": "mlp.gate",
        "mlp.up_proj": "mlp.up",
        "mlp.down_proj": "mlp.out",
    }
    length = len(x[f"{before}text.norm"])
    rows = np.zeros((1, length, 1792), np.float32)
    rows[:, -1] = x[f"{before}logits"]
    found = {
        "inputs_embeds": x[f"{before}text.embedding"][None] / np.sqrt(np.float32(128)),
        "position_ids": x[f"{before}positions"][None],
        "language_model.model.norm": x[f"{before}text.norm"][None],
        "language_model.lm_head": rows,
    }
    if before:
        found["input_ids"] = x[f"{before}input_ids"][None]
    for i in range(4):
        tap, name = f"{before}text.layers.{i}.", f"language_model.model.layers.{i}"
        found |= {f"{name}.{theirs}": x[tap + ours][None] for theirs, ours in modules.items()}
        found |= {f"{name}.self_attn.{p}_proj": x[f"{tap}attn.{p}"].reshape(1, length, -1) for p in "qkv"}
        found[f"{name}.self_attn.1"] = x[f"{tap}attn.segments.0.probs"][None]
        found[name] = x[f"{tap}out"][None]
        for theirs, ours in (("key_cache", "keys"), ("value_cache", "values")):
            found[f"kv_cache.{theirs}.{i}"] = x[f"{tap}attn.segments.0.{ours}"].transpose(1, 0, 2)[None]
    return found


def big_vision(x: PORT, steps: int) -> PORT:
    """What a call returns as `out`, with layers stacked in the cache [B L S K H], text padded to 7 tokens, from 0."""

    def earlier(keys: np.ndarray) -> np.ndarray:
        first, second = np.split(keys.astype(np.float64), 2, -1)
        turned = (first + 1j * second) * np.exp(-1j * 10000.0 ** -(np.arange(16) / 16))
        return np.concatenate([turned.real, turned.imag], -1).astype(np.float32)

    def rows(tensor: np.ndarray, more: int = 3) -> np.ndarray:
        return np.pad(tensor, ((0, more), (0, 0)))[None]

    mask = np.pad(np.ones((1, 40, 40), bool), ((0, 0), (0, 3), (0, 3)))
    found = {
        "image": x["pixel_values"].transpose(0, 2, 3, 1),
        "text": np.pad(x["prompts.0.input_ids"][36:], (0, 3))[None],
        "img/stem": x["vision.embedding.patches"].reshape(1, 6, 6, 128),
        "img/with_posemb": x["vision.embedding"],
        "img/encoder/pre_ln": x["vision.layers.3.out"],
        "img/encoded": x["vision.norm"],
        "img/pre_logits": x["vision.norm"],
        "img/logits": x["projector"],
        "img/zimg": x["projector"],
        "llm/ztxt": rows(x["text.embedding"][36:]),
        "attn_mask": mask,
        "llm/encoded": rows(x["text.layers.3.out"]),
        "llm/pre_logits": rows(x["text.norm"]),
        "llm/logits": np.pad(x["logits"], ((39, 3), (0, 48)))[None, :, :1744],
    }
    for i in range(4):
        for theirs, ours in {"sa": "attn.out", "+sa": "mid", "mlp": "mlp.out", "+mlp": "out"}.items():
            found[f"img/encoder/block{i:02}/{theirs}"] = x[f"vision.layers.{i}.{ours}"]
    for step in range(steps + 1):
        before, tap = (f"step{step}/", f"steps.{step}.") if step else ("", "")
        for theirs, ours in (("k_cache", "keys"), ("v_cache", "values")):
            layers = [x[f"{tap}text.layers.{i}.attn.segments.0.{ours}"] for i in range(4)]
            layers = [earlier(layer) if ours == "keys" else layer for layer in layers]
            padded = np.pad(np.array(layers), ((0, 0), (0, steps - step), (0, 0), (0, 0)))
            found[f"{before}cache/llm/layers/attn/{theirs}"] = padded[None]
        found[f"{before}cache/llm/layers/attn/idx"] = np.full((1, 4), 40 + step)
        if step:
            found[f"{before}logits"] = x[f"{tap}logits"][None, :, :1744]
    return found


@pytest.mark.parametrize(("name", "spell", "count"), [("hkproj", hkproj, 217), ("big_vision", big_vision, 53)])
def test_run_in_the_names_and_layouts_of_a_port_is_mapped_as_a_whole(
    name: str, spell, count: int, golden: Golden, float32_port: PORT
) -> None:
    dump = Dump(spell(float32_port, 2))
    report = compare(golden, dump, preset(name, golden))
    assert (report.pairing.unmapped, report.pairing.missing, report.pairing.unrecorded) == ([], [], [])
    assert [verdict.name for verdict in report.verdicts if not verdict.explained] == []
    assert len(report.verdicts) == count
    assert report.status == 0


@pytest.mark.parametrize(
    ("name", "spell", "theirs"),
    [
        ("hkproj", hkproj, "step2.kv_cache.key_cache.1"),
        ("big_vision", big_vision, "step2/cache/llm/layers/attn/k_cache"),
    ],
)
def test_wrong_row_of_a_cache_is_found_through_a_preset(
    name: str, spell, theirs: str, golden: Golden, float32_port: PORT
) -> None:
    dump = spell(float32_port, 2)
    dump[theirs] = dump[theirs].copy()
    dump[theirs].reshape(-1, 32)[-32 * 0 - 1 if name == "hkproj" else 42 + 41] += 0.1
    report = compare(golden, Dump(dump), preset(name, golden))
    wrong = [(v.name, v.bad_rows) for v in report.verdicts if not v.explained]
    assert wrong == [("steps.2.text.layers.1.attn.segments.0.keys", (41,))]


@pytest.mark.parametrize("name", PORTS)
def test_preset_for_another_model_is_refused(name: str, golden_2: Golden, golden_3: Golden) -> None:
    for golden in (golden_2, golden_3):
        with pytest.raises(BadGolden, match=f"preset '{name}' is for PaliGemma 1"):
            preset(name, golden)


@pytest.mark.parametrize("name", PORTS)
def test_rules_of_a_preset_name_each_tap_once(name: str, golden: Golden) -> None:
    """A narrowed golden file does not change what a preset means."""
    narrowed = replace(golden, taps={"logits": "B V"})
    assert preset(name, narrowed).rules
    parts = [(rule.theirs, rule.ours) for rule in preset(name, golden).rules]
    assert len(parts) == len(set(parts))
