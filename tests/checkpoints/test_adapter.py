"""LoRA adapters: W + scale B A spelt out here in float64, every spelling of names, and refusals of all that is else."""

import contextlib
import dataclasses
import json
import math
import mmap
import shutil
from pathlib import Path

import hub
import numpy as np
import pytest
import tiny

import npgemma
from npgemma.checkpoints.adapter import merged, read_adapter, untied
from npgemma.checkpoints.paligemma import head_and_table, read_tensors
from npgemma.commands.cli import main
from npgemma.errors import BadModel
from npgemma.io.model_folder import EMBEDDED
from npgemma.layers.bits import pack
from npgemma.testing import draw_row

PICTURE = EMBEDDED.parent / "sample.png"
HEAD, TABLE = head_and_table(tiny.CONFIG)
LAYER_1 = "language_model.model.layers.1"
QUERY = f"{LAYER_1}.self_attn.q_proj"
UP = "vision_tower.encoder.layers.0.mlp.fc1"
BIAS = "vision_tower.encoder.layers.1.mlp.fc2.bias"
NORM = "language_model.model.layers.2.input_layernorm.weight"
LINEAR = "multi_modal_projector.linear"
Halves = dict[str, tuple[np.ndarray, np.ndarray]]


def halves(module: str, rank: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A [r, in] and B [out, r] for a matrix of the small model; float32 numbers, whose products are none."""
    shape = tiny.random_tensors()[f"{module}.weight"].shape
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(each).astype(np.float32) for each in ((rank, shape[1]), (shape[0], rank)))


def stored_tensors(lora: Halves, replaced: dict[str, np.ndarray] = {}, spelling: str = "saved 5.x") -> dict:  # noqa: B006
    """As PEFT saves them. It keeps those of a table, which it looks up, transposed: A is the rows, B the columns."""
    tensors = {}
    for module, (a, b) in lora.items():
        name = f"base_model.model.{tiny.spell(module, spelling)}"
        if "embed_tokens" in module:
            tensors |= {f"{name}.lora_embedding_A": b.T, f"{name}.lora_embedding_B": a.T}
        else:
            tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    for name, x in replaced.items():
        tensors[f"base_model.model.{tiny.spell(name, spelling)}"] = x
    return tensors


def write_adapter(folder: Path, tensors: dict[str, np.ndarray], dtype: str = "float32", **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tiny.save(tensors, folder / "adapter_model.safetensors", dtype)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 8} | config))
    return folder


def updated(w: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    """W + scale B A, element by element, in float64."""
    w, a, b = (x.astype(np.float64) for x in (w, a, b))
    expected = w.copy()
    for out in range(w.shape[0]):
        for column in range(w.shape[1]):
            expected[out, column] += scale * sum(b[out, r] * a[r, column] for r in range(len(a)))
    return expected


def assert_rounded_once(found: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    """`expected` as `dtype`. The sums of a float64 product may come in another order, of up to 8 terms below 100."""
    atol = 8 * 100 * 2.0**-53 + (0 if dtype == "float64" else 100 * 2.0**-24)
    np.testing.assert_allclose(found, expected.astype(dtype), rtol=0, atol=atol, strict=True)


def merge(folder: Path, dtype: str = "float32", tensors: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    adapter = read_adapter(folder)
    return merged(untied(tensors or tiny.random_tensors(), adapter, HEAD, TABLE), adapter, np.dtype(dtype))


LORA = {QUERY: 3, UP: 4, TABLE.removesuffix(".weight"): 2}


def all_kinds(seed: int = 0) -> tuple[Halves, dict[str, np.ndarray]]:
    """Updates of a decoder's matrix, a tower's, and the table; a bias and a norm replaced."""
    tensors = tiny.random_tensors(seed=seed + 100)
    lora = {module: halves(module, rank, seed + i) for i, (module, rank) in enumerate(LORA.items())}
    return lora, {name: tensors[name] for name in (BIAS, NORM)}


def expected_tensors(lora: Halves, replaced: dict[str, np.ndarray], alpha: float) -> dict[str, np.ndarray]:
    """What becomes of the small model's tensors, in float64 where they change."""
    tensors = tiny.random_tensors()
    tensors[HEAD] = tensors[TABLE]
    for module, (a, b) in lora.items():
        tensors[f"{module}.weight"] = updated(tensors[f"{module}.weight"], a, b, alpha / len(a))
    return tensors | {name: x.astype(np.float64) for name, x in replaced.items()}


# ---------------------------------------------------------------------------------------------------------- the formula


def test_one_update_by_hand(tmp_path):
    """W = [[1 2] [3 4] [5 6]], A = [[1 10]], B = [[1] [0] [-2]], alpha 6, r 1: W + 6 B A."""
    module = "language_model.model.layers.0.self_attn.q_proj"
    a, b = np.array([[1, 10]], np.float32), np.array([[1], [0], [-2]], np.float32)
    folder = write_adapter(tmp_path, stored_tensors({module: (a, b)}), lora_alpha=6)
    w = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    found = merge(folder, "float32", {f"{module}.weight": w})
    expected = np.array([[7, 62], [3, 4], [-7, -114]], np.float32)
    np.testing.assert_array_equal(found[f"{module}.weight"], expected, strict=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_kind_of_change_at_once(dtype, tmp_path):
    lora, replaced = all_kinds()
    folder = write_adapter(tmp_path, stored_tensors(lora, replaced), lora_alpha=5)
    found, expected = merge(folder, dtype), expected_tensors(lora, replaced, 5)
    changed = {*(f"{module}.weight" for module in lora), *replaced}
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        if name in changed:
            assert_rounded_once(found[name], x, dtype)
            assert np.abs(found[name] - tiny.random_tensors()[name]).max() > 0.1
        else:
            np.testing.assert_array_equal(found[name], x, strict=True)


def test_float32_is_float64_rounded_once(tmp_path):
    """Worked out in float32, about one element in three would be another."""
    lora, replaced = all_kinds()
    folder = write_adapter(tmp_path, stored_tensors(lora, replaced))
    single, double = merge(folder, "float32"), merge(folder, "float64")
    for module in lora:
        name = f"{module}.weight"
        np.testing.assert_array_equal(single[name], double[name].astype(np.float32), strict=True)


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("base", ["float32", "float16", "bfloat16"])
def test_the_base_and_the_adapter_are_widened_as_they_are_stored(base, stored, tmp_path):
    lora, replaced = all_kinds()
    grid = {module: tuple((np.round(x * 16) / 16).clip(-3, 3) for x in pair) for module, pair in lora.items()}
    model = tiny.write_folder(tmp_path / "model", dtype=base)
    folder = write_adapter(tmp_path / "adapter", stored_tensors(grid, replaced), stored)
    found, expected = merge(folder, "float64", read_tensors(model, tiny.CONFIG)), expected_tensors(grid, replaced, 8)
    for name in (*(f"{module}.weight" for module in lora), *replaced):
        assert_rounded_once(found[name], expected[name], "float64")


@pytest.mark.parametrize(("alpha", "rank"), [(8, 4), (1, 3), (16.5, 2), (3, 7)])
@pytest.mark.parametrize("stabilised", [False, True])
def test_the_scale_is_alpha_over_the_rank_or_its_root(alpha, rank, stabilised, tmp_path):
    """Of the rank that the matrices have, whatever r says: rank_pattern gives some another."""
    a, b = halves(QUERY, rank)
    folder = write_adapter(tmp_path, stored_tensors({QUERY: (a, b)}), lora_alpha=alpha, r=5, use_rslora=stabilised)
    scale = alpha / (math.sqrt(rank) if stabilised else rank)
    assert read_adapter(folder).added[f"{QUERY}.weight"].scale == scale
    expected = updated(tiny.random_tensors()[f"{QUERY}.weight"], a, b, scale)
    assert_rounded_once(merge(folder)[f"{QUERY}.weight"], expected, "float32")


def test_alpha_is_8_where_the_config_does_not_say(tmp_path):
    """PEFT's default; null counts as not said."""
    folder = write_adapter(tmp_path, stored_tensors({QUERY: halves(QUERY, 4)}), lora_alpha=None, use_rslora=None)
    assert read_adapter(folder).added[f"{QUERY}.weight"].scale == 2


def test_a_large_matrix_is_merged_in_blocks(tmp_path):
    """Some thousand rows, which are several blocks, and whose number no block divides."""
    module, rng = "language_model.model.layers.0.self_attn.q_proj", np.random.default_rng(0)
    w, a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((3001, 300), (2, 300), (3001, 2)))
    folder = write_adapter(tmp_path, stored_tensors({module: (a, b)}), lora_alpha=2)
    expected = np.einsum("or,ri->oi", b, a, dtype=np.float64) + w
    found = merge(folder, "float64", {f"{module}.weight": w})[f"{module}.weight"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=8 * 100 * 2.0**-53, strict=True)


# ------------------------------------------------------------------------------------------------------- alpha_pattern

# module name, patterns -> which alpha; as PEFT's get_pattern_key has it: re.match(rf"(.*\.)?({pattern})$", name)
PATTERNS = {
    "the whole name": ({"model.language_model.layers.1.self_attn.q_proj": 3}, 3),
    "its end": ({"q_proj": 3}, 3),
    "a longer end": ({"1.self_attn.q_proj": 3}, 3),
    "another end": ({"v_proj": 3}, 8),
    "half a word": ({"_proj": 3, "proj": 4}, 8),
    "the beginning": ({"model.language_model": 3}, 8),
    "the first of several": ({"v_proj": 2, "self_attn.q_proj": 3, "q_proj": 4}, 3),
    "another layer": ({"layers.0.self_attn.q_proj": 3}, 8),
    "an expression": ({r"layers\.[01]\.self_attn\.q_proj": 3}, 3),
    "an expression for another": ({r"layers\.[02]\.self_attn\.q_proj": 3}, 8),
    "anything": ({".*": 3}, 3),
    "alternatives": ({"v_proj|q_proj": 3}, 3),
    "a caret": ({r"^model\..*q_proj": 3}, 3),
    "a caret at another beginning": ({r"^layers\.1\.self_attn\.q_proj": 3}, 8),
    "a number of layers": ({r"layers\.\d+\.self_attn\.q_proj": 3}, 3),
}


@pytest.mark.parametrize(("patterns", "alpha"), PATTERNS.values(), ids=PATTERNS)
def test_alpha_pattern_gives_some_matrices_another_alpha(patterns, alpha, tmp_path):
    """Patterns are regular expressions; taken for plain ends of names they would be passed over, without a word."""
    tensors = stored_tensors({QUERY: halves(QUERY, 2)}, spelling="memory 5.6")
    folder = write_adapter(tmp_path, tensors, alpha_pattern=patterns)
    assert read_adapter(folder).added[f"{QUERY}.weight"].scale == alpha / 2


def test_alpha_pattern_with_root_and_ranks(tmp_path):
    lora = {module: halves(module, rank) for module, rank in LORA.items()}
    config = dict(use_rslora=True, alpha_pattern={"fc1": 5, "q_proj": 2}, rank_pattern={"q_proj": 3}, lora_alpha=16)
    added = read_adapter(write_adapter(tmp_path, stored_tensors(lora), **config)).added
    scales = [added[f"{module}.weight"].scale for module in lora]
    assert scales == [2 / math.sqrt(3), 5 / math.sqrt(4), 16 / math.sqrt(2)]


@pytest.mark.parametrize("pattern", ["(", "[", "*", "(?P<"])
def test_a_pattern_that_is_no_expression_is_no_traceback(pattern, tmp_path):
    """Refused in a sentence, or taken for what fits nothing."""
    folder = write_adapter(tmp_path, stored_tensors({QUERY: halves(QUERY, 2)}), alpha_pattern={pattern: 3})
    with contextlib.suppress(BadModel):
        assert read_adapter(folder).added[f"{QUERY}.weight"].scale == 4


# ---------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
@pytest.mark.parametrize("spelling", tiny.SPELLINGS)
def test_every_spelling_is_the_same_adapter(spelling, prefix, tmp_path):
    """PEFT's own prefix stands before what the release of transformers called it; a converter may have dropped it."""
    lora, replaced = all_kinds()
    tensors = stored_tensors(lora, replaced, spelling)
    tensors = {prefix + name.removeprefix("base_model.model."): x for name, x in tensors.items()}
    found = read_adapter(write_adapter(tmp_path, tensors))
    assert found.added.keys() == {f"{module}.weight" for module in lora}
    assert found.replaced.keys() == replaced.keys()
    assert found.changed == {*found.added, *found.replaced}
    for name, (a, b) in lora.items():
        np.testing.assert_array_equal(found.added[f"{name}.weight"].a, a.astype(np.float64), strict=True)
        np.testing.assert_array_equal(found.added[f"{name}.weight"].b, b.astype(np.float64), strict=True)


@pytest.mark.parametrize("kind", ["added", "replaced"])
def test_two_spellings_of_one_name_are_refused(kind, tmp_path):
    """One of them would win without a word."""
    tensors = {}
    for seed, spelling in enumerate(["hub", "memory 4.52"]):
        change = ({QUERY: halves(QUERY, 2, seed)}, {}) if kind == "added" else ({}, {NORM: np.full(11, seed, "f4")})
        tensors |= stored_tensors(*change, spelling)
    with pytest.raises(BadModel, match="two spellings"):
        read_adapter(write_adapter(tmp_path, tensors))


# ------------------------------------------------------------------------------------------------------- table and head


@pytest.mark.parametrize("kind", ["added", "replaced"])
def test_a_tied_head_stays_what_it_was_when_only_the_table_changes(kind, tmp_path):
    """PEFT wraps the table alone; the head keeps the matrix they had in common."""
    module, new = TABLE.removesuffix(".weight"), tiny.random_tensors(seed=9)[TABLE]
    lora, replaced = ({module: halves(module, 2)}, {}) if kind == "added" else ({}, {TABLE: new})
    found = merge(write_adapter(tmp_path, stored_tensors(lora, replaced)))
    np.testing.assert_array_equal(found[HEAD], tiny.random_tensors()[TABLE], strict=True)
    assert np.abs(found[TABLE] - found[HEAD]).max() > 0.1


@pytest.mark.parametrize("kind", ["added", "replaced"])
def test_a_tied_head_that_changes_leaves_the_table(kind, tmp_path):
    module, new = HEAD.removesuffix(".weight"), tiny.random_tensors(seed=9)[TABLE]
    a, b = halves(TABLE.removesuffix(".weight"), 2)
    # tiny.spell knows no head
    names = {"added": {"lm_head.lora_A.weight": a, "lm_head.lora_B.weight": b}, "replaced": {"lm_head.weight": new}}
    for prefix in ("base_model.model.", "base_model.model.language_model."):
        tensors = {prefix + name: x for name, x in names[kind].items()}
        found = merge(write_adapter(tmp_path, tensors))
        table = tiny.random_tensors()[TABLE]
        np.testing.assert_array_equal(found[TABLE], table, strict=True)
        assert module == "lm_head"
        assert_rounded_once(found[HEAD], updated(table, a, b, 4) if kind == "added" else new, "float32")


def test_both_may_change_each_its_own_way(tmp_path):
    table, head = (tiny.random_tensors(seed=seed)[TABLE] for seed in (8, 9))
    tensors = stored_tensors({}, {TABLE: table}) | {"base_model.model.lm_head.weight": head}
    found = merge(write_adapter(tmp_path, tensors))
    np.testing.assert_array_equal(found[TABLE], table, strict=True)
    np.testing.assert_array_equal(found[HEAD], head, strict=True)


def test_a_head_of_its_own_is_changed_where_it_stands(tmp_path):
    tensors = tiny.random_tensors(dataclasses.replace(tiny.CONFIG, tied=False))
    head = tensors[HEAD].copy()
    assert np.abs(head - tensors[TABLE]).max() > 0.1
    folder = write_adapter(tmp_path / "table", stored_tensors({}, {TABLE: tiny.random_tensors(seed=9)[TABLE]}))
    np.testing.assert_array_equal(merge(folder, tensors=tensors)[HEAD], head, strict=True)
    a, b = halves(TABLE.removesuffix(".weight"), 2)
    names = {"base_model.model.lm_head.lora_A.weight": a, "base_model.model.lm_head.lora_B.weight": b}
    folder = write_adapter(tmp_path / "head", names)
    assert_rounded_once(merge(folder, tensors=tensors)[HEAD], updated(head, a, b, 4), "float32")


def test_an_adapter_elsewhere_leaves_the_head_tied(tmp_path):
    """No second matrix, which would take memory."""
    assert HEAD not in merge(write_adapter(tmp_path, stored_tensors({QUERY: halves(QUERY, 2)})))


# ---------------------------------------------------- what PEFT saves beside the halves: the layer under them, a bias


def test_the_table_that_peft_saves_with_its_update_is_the_table(tmp_path):
    """Where the embedding is a target, save_pretrained writes its own weight, too, as base_layer.weight."""
    module, base = TABLE.removesuffix(".weight"), tiny.random_tensors(seed=9)[TABLE]
    a, b = halves(module, 2)
    tensors = stored_tensors({module: (a, b)})
    tensors[f"base_model.model.{tiny.spell(module, 'saved 5.x')}.base_layer.weight"] = base
    found = merge(write_adapter(tmp_path, tensors))
    assert_rounded_once(found[TABLE], updated(base, a, b, 4), "float32")


def test_biases_that_were_trained_with_the_update_are_replaced(tmp_path):
    """bias='lora_only' or 'all': the bias of a changed layer is saved under base_layer."""
    new = tiny.random_tensors(seed=9)[f"{UP}.bias"]
    a, b = halves(UP, 2)
    tensors = stored_tensors({UP: (a, b)})
    tensors[f"base_model.model.{tiny.spell(UP, 'saved 5.x')}.base_layer.bias"] = new
    found = merge(write_adapter(tmp_path, tensors, bias="lora_only"))
    np.testing.assert_array_equal(found[f"{UP}.bias"], new, strict=True)
    assert_rounded_once(found[f"{UP}.weight"], updated(tiny.random_tensors()[f"{UP}.weight"], a, b, 4), "float32")


# ------------------------------------------------------------------------------------------------------------- models


@pytest.fixture(scope="module")
def adapted(tmp_path_factory) -> tuple[Path, Path, Path]:
    """A model, an adapter to it, and the model of the same sums worked out here, rounded to float32 as a file is."""
    made = tmp_path_factory.mktemp("adapted")
    lora, replaced = all_kinds()
    lora = {module: (a * np.float32(0.1), b) for module, (a, b) in lora.items()}
    model = tiny.write_folder(made / "model")
    adapter = write_adapter(made / "adapter", stored_tensors(lora, replaced), lora_alpha=5)
    tensors = expected_tensors(lora, replaced, 5)
    merged_folder = tiny.write_folder(made / "merged")
    head = {"lm_head.weight": tensors.pop(HEAD)}
    tensors = head | {tiny.spell(name, "saved 5.x"): x for name, x in tensors.items()}
    tiny.save({name: x.astype(np.float32) for name, x in tensors.items()}, merged_folder / "model.safetensors")
    return model, adapter, merged_folder


def logits(model: npgemma.VisionLanguageModel) -> np.ndarray:
    row = draw_row(model.config)
    return model.forward(row.input_ids, row.pixel_values, row.token_type_ids)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_model_with_an_adapter_is_the_merged_model(dtype, resident, adapted):
    """The file of the merged model was rounded to float32: where all is float64, the two differ by that."""
    model, adapter, merged_folder = adapted
    found = logits(npgemma.load(model, dtype, resident, adapter))
    expected = logits(npgemma.load(merged_folder, dtype, resident))
    assert np.abs(found - logits(npgemma.load(model, dtype))).max() > 0.1
    scale = float(np.abs(expected).max())
    # 100: a dozen roundings a layer on the way to a logit. In float32 both round the same sums.
    np.testing.assert_allclose(found, expected, rtol=0, atol=100 * 2.0**-24 * scale, strict=True)
    assert found.dtype == dtype


def test_resident_changes_no_number_of_it(adapted):
    model, adapter, _ = adapted
    for dtype in ("float32", "float64"):
        mapped, resident = (npgemma.load(model, dtype, each, adapter) for each in (False, True))
        np.testing.assert_allclose(logits(mapped), logits(resident), rtol=1e-6 if dtype == "float32" else 1e-13)
        q = [each.weights.text.blocks[1].attn.q for each in (mapped, resident)]
        np.testing.assert_array_equal(*q, strict=True)
        assert q[0].dtype == dtype


def test_what_an_adapter_leaves_stays_mapped(adapted):
    model, adapter, _ = adapted
    found = npgemma.load(model, "float64", adapter=adapter).weights.text
    assert found.blocks[1].attn.q.dtype == np.float64
    assert found.blocks[0].attn.q.dtype == np.float32
    assert not found.blocks[0].attn.q.flags.writeable
    assert found.embedding.dtype == np.float64
    assert found.head.dtype == np.float32


def is_mapped(x: object) -> bool:
    """Whether an array is a view of a mapped file, however far down."""
    while isinstance(x, np.ndarray):
        x = x.base
    return isinstance(x.obj if isinstance(x, memoryview) else x, mmap.mmap)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_of_an_adapter_stays_mapped(dtype, tmp_path):
    """Nobody watches its file, as the files of a model are: cut short while it is mapped, it would end the process."""
    lora, replaced = all_kinds()
    model = tiny.write_folder(tmp_path / "model")
    folder = write_adapter(tmp_path / "adapter", stored_tensors(lora, replaced))
    adapter = read_adapter(folder)
    found = merged(read_tensors(model, tiny.CONFIG), adapter, np.dtype(dtype))
    assert is_mapped(found["language_model.model.layers.0.self_attn.q_proj.weight"])
    assert [name for name in adapter.changed if is_mapped(found[name])] == []


def test_an_adapter_goes_with_a_model_in_one_file(adapted):
    model, adapter, _ = adapted
    found, expected = (logits(npgemma.load(each, adapter=adapter)) for each in (model / "model.safetensors", model))
    np.testing.assert_array_equal(found, expected, strict=True)


def test_an_adapter_of_the_cache(adapted, tmp_path, monkeypatch):
    model, adapter, _ = adapted
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    hub.download(tmp_path, "org/adapter", adapter, refs=["main", "v2"])
    expected = logits(npgemma.load(model, adapter=adapter))
    for name in ("org/adapter", "org/adapter@v2", f"org/adapter@{hub.COMMIT}"):
        np.testing.assert_array_equal(logits(npgemma.load(model, adapter=name)), expected, strict=True)


def test_the_position_table_is_merged_in_float64_and_becomes_float32(tmp_path):
    """As `load` says of it, and of norms and biases, in a float64 model too: they are added, not multiplied."""
    module = "vision_tower.embeddings.position_embedding"
    a, b = halves(module, 2)
    name = f"base_model.model.{tiny.spell(module, 'saved 5.x')}"
    tensors = {f"{name}.lora_embedding_A": b.T, f"{name}.lora_embedding_B": a.T}
    folder = write_adapter(tmp_path / "adapter", tensors)
    expected = updated(tiny.random_tensors()[f"{module}.weight"], a, b, 4)
    assert_rounded_once(merge(folder, "float64")[f"{module}.weight"], expected, "float64")
    model = npgemma.load(tiny.write_folder(tmp_path / "model"), "float64", adapter=folder)
    assert_rounded_once(model.weights.vision.embedding.position, expected, "float32")


# ------------------------------------------------------------------------------------------------------------- memory


def bytes_of(weights: object, seen: set[int]) -> int:
    """All arrays of a tree of dataclasses, each piece of memory once."""
    if isinstance(weights, np.ndarray):
        new = weights.ctypes.data not in seen
        seen.add(weights.ctypes.data)
        return weights.nbytes * new
    if isinstance(weights, tuple):
        return sum(bytes_of(each, seen) for each in weights)
    if dataclasses.is_dataclass(weights):
        return sum(bytes_of(getattr(weights, field.name), seen) for field in dataclasses.fields(weights))
    return 0


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("change", ["a matrix", "a vector", "the table", "the head"])
def test_the_plan_counts_what_an_adapter_puts_into_memory(change, dtype, resident, tmp_path):
    """All weights of the model that comes out of it: a head that is no longer the table is a matrix more.

    Where they stay mapped the vectors are float32 copies beside what is counted, 2 % of this model.
    """
    config = dataclasses.replace(tiny.CONFIG, text=dataclasses.replace(tiny.CONFIG.text, vocab_size=6100))
    model = tiny.write_folder(tmp_path / "model", config, dtype="bfloat16")
    a, b = np.ones((2, 11), np.float32), np.ones((6100, 2), np.float32)
    tensors = {
        "a matrix": stored_tensors({QUERY: halves(QUERY, 2)}),
        "a vector": stored_tensors({}, {NORM: np.ones(11, np.float32)}),
        "the table": stored_tensors({TABLE.removesuffix(".weight"): (a, b)}),
        "the head": {"base_model.model.lm_head.lora_A.weight": a, "base_model.model.lm_head.lora_B.weight": b},
    }[change]
    found = npgemma.load(model, dtype, resident, write_adapter(tmp_path / "adapter", tensors))
    actual = bytes_of(found.weights, set())
    assert actual * 0.95 <= found.guard.budget.weights <= actual * 1.05


# ----------------------------------------------------------------------------------------------------------- refusals

OTHER_FORMULAS = {
    "DoRA": dict(use_dora=True),
    "transposed": dict(fan_in_fan_out=True),
    "LoHa": dict(peft_type="LOHA"),
    "AdaLoRA": dict(peft_type="ADALORA"),
    "prompt tuning": dict(peft_type="PROMPT_TUNING"),
    "lower case": dict(peft_type="lora"),
    "no text": dict(peft_type=3),
    "biases of B": dict(lora_bias=True),
    "layers repeated": dict(layer_replication=[[0, 2], [1, 3]]),
    "tied on purpose": dict(ensure_weight_tying=True),
    "after certain tokens alone": dict(alora_invocation_tokens=[108]),
    "PiSSA": dict(init_lora_weights="pissa"),
    "PiSSA, iterated": dict(init_lora_weights="pissa_niter_16"),
    "OLoRA": dict(init_lora_weights="olora"),
    "CorDA": dict(init_lora_weights="corda"),
    "LoftQ": dict(init_lora_weights="loftq"),
    "a router": dict(arrow_config={"top_k": 2}),
}


@pytest.mark.parametrize("config", OTHER_FORMULAS.values(), ids=OTHER_FORMULAS)
def test_another_formula_is_refused(config, tmp_path):
    """Merged as if it were plain LoRA, it would answer something; nobody would know that it is wrong.

    PiSSA and its kin subtract what they begin with from the base, which the adapter's file does not say.
    """
    folder = write_adapter(tmp_path, stored_tensors({QUERY: halves(QUERY, 2)}), **config)
    (key,) = config
    with pytest.raises(BadModel, match=rf"adapter_config\.json: {key} is .*, which npgemma does not compute"):
        read_adapter(folder)


PLAIN = {
    "what PEFT writes": dict(
        use_dora=False, fan_in_fan_out=False, lora_bias=False, layer_replication=None, ensure_weight_tying=False
    ),
    "as it begins": dict(init_lora_weights=True),
    "gaussian": dict(init_lora_weights="gaussian"),
    "no beginning": dict(init_lora_weights=False),
    "EVA": dict(init_lora_weights="eva"),
    "an old file": dict(r=None, lora_alpha=None),
    "nothing": dict(alpha_pattern=None, rank_pattern={}, alora_invocation_tokens=None, arrow_config=None),
    "what only training asks": dict(
        lora_dropout=0.1, inference_mode=True, target_modules=["q_proj"], task_type="CAUSAL_LM"
    ),
}


@pytest.mark.parametrize("config", PLAIN.values(), ids=PLAIN)
def test_what_leaves_the_formula_alone_is_read(config, tmp_path):
    folder = write_adapter(tmp_path, stored_tensors({QUERY: halves(QUERY, 2)}), **config)
    assert read_adapter(folder).added[f"{QUERY}.weight"].scale == 4


CONFIGS = {
    "empty": b"",
    "no JSON": b"lora_alpha: 8",
    "cut off": b'{"peft_type": "LORA", "lora_al',
    "a list": b"[]",
    "null": b"null",
    "NaN": b'{"lora_alpha": NaN}',
    "infinite": b'{"lora_alpha": 1e999}',
    "one key twice": b'{"lora_alpha": 1, "lora_alpha": 2}',
    "nested": b'{"a":' * 100_000,
    "alpha a string": b'{"lora_alpha": "8"}',
    "alpha a list": b'{"lora_alpha": [8]}',
    "alpha true": b'{"lora_alpha": true}',
    "alpha nothing": b'{"lora_alpha": 0}',
    "alpha negative": b'{"lora_alpha": -1}',
    "root a string": b'{"use_rslora": "yes"}',
    "root a number": b'{"use_rslora": 1}',
    "patterns a list": b'{"alpha_pattern": ["q_proj"]}',
    "a pattern's alpha a string": b'{"alpha_pattern": {"q_proj": "8"}}',
    "a pattern's alpha nothing": b'{"alpha_pattern": {"q_proj": 0}}',
    "too large": b'{"a": "' + b"a" * 10_000_001 + b'"}',
}


@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS)
def test_a_damaged_config_is_refused_and_named(content, tmp_path):
    folder = write_adapter(tmp_path, stored_tensors({QUERY: halves(QUERY, 2)}))
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(BadModel, match=r"adapter_config\.json"):
        read_adapter(folder)


def names(**tensors: np.ndarray) -> dict[str, np.ndarray]:
    """Tensors of one module by the ends of their names, A for lora_A.weight."""
    module = f"base_model.model.{tiny.spell(QUERY, 'saved 5.x')}"
    return {f"{module}.lora_{end}{'' if 'embedding' in end else '.weight'}": x for end, x in tensors.items()}


A, B = halves(QUERY, 3)
DAMAGED = {
    "no A": names(B=B),
    "no B": names(A=A),
    "half of a table's": names(embedding_A=B.T),
    "other ranks": names(A=A[:2], B=B),
    "A transposed": names(A=A.T, B=B),
    "B transposed": names(A=A, B=B.T),
    "no rank at all": names(A=A[:0], B=B[:, :0]),
    "A a vector": names(A=A[0], B=B),
    "a convolution": names(A=A.reshape(3, 11, 1, 1), B=B.reshape(60, 3, 1, 1)),
}


@pytest.mark.parametrize("tensors", DAMAGED.values(), ids=DAMAGED)
def test_halves_that_do_not_fit_each_other_are_refused(tensors, tmp_path):
    folder = write_adapter(tmp_path, tensors)
    with pytest.raises(BadModel, match=r"adapter_model\.safetensors: .*q_proj is not changed by a matrix lora_A"):
        read_adapter(folder)


def test_an_update_of_the_patch_convolution_is_refused(tmp_path):
    """Its halves are convolutions: A [r, 3, y, x], B [out, r, 1, 1]."""
    name = f"base_model.model.{tiny.spell('vision_tower.embeddings.patch_embedding', 'saved 5.x')}"
    a, b = np.ones((2, 3, 7, 7), np.float32), np.ones((12, 2, 1, 1), np.float32)
    folder = write_adapter(tmp_path, {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b})
    with pytest.raises(BadModel, match="patch_embedding is not changed by a matrix"):
        read_adapter(folder)


UNFIT = {
    "a wider input": stored_tensors({QUERY: (np.ones((2, 12), np.float32), np.ones((60, 2), np.float32))}),
    "fewer outputs": stored_tensors({QUERY: (np.ones((2, 11), np.float32), np.ones((59, 2), np.float32))}),
    "one output, which would broadcast": stored_tensors({QUERY: (A, B[:1])}),
    "a layer too many": stored_tensors({"language_model.model.layers.3.self_attn.q_proj": (A, B)}),
    "an unknown module": stored_tensors({"language_model.model.layers.1.self_attn.qkv_proj": (A, B)}),
    "a norm, which is no matrix": stored_tensors({"language_model.model.layers.1.input_layernorm": (A, B)}),
    "the convolution as a matrix": stored_tensors(
        {"vision_tower.embeddings.patch_embedding": (np.ones((2, 147), np.float32), np.ones((12, 2), np.float32))}
    ),
    "another bias": stored_tensors({}, {BIAS: np.ones(13, np.float32)}),
    "a bias of one number": stored_tensors({}, {BIAS: np.ones(1, np.float32)}),
    "a norm as a row": stored_tensors({}, {NORM: np.ones((1, 11), np.float32)}),
    "an unknown tensor": stored_tensors(
        {}, {"language_model.model.layers.1.mlp.gate_proj.bias": np.ones(23, np.float32)}
    ),
    "a magnitude of DoRA": names(A=A, B=B)
    | {f"base_model.model.{tiny.spell(QUERY, 'saved 5.x')}.lora_magnitude_vector": np.ones(60, np.float32)},
    "rows of certain tokens": stored_tensors(
        {}, {"language_model.model.embed_tokens.token_adapter.trainable_tokens_delta": np.ones((2, 11), np.float32)}
    ),
    "a larger table": stored_tensors({}, {TABLE: np.ones((62, 11), np.float32)}),
}


@pytest.mark.parametrize("tensors", UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_the_model_is_refused(tensors, tmp_path):
    """With both shapes, or the name that the model has not."""
    folder = write_adapter(tmp_path / "adapter", tensors)
    with pytest.raises(BadModel, match=r"adapter_model\.safetensors was made for another model: \S+ is .*, it changes"):
        npgemma.load(tiny.write_folder(tmp_path / "model"), adapter=folder)


def test_pickled_weights_are_refused_by_name(tmp_path):
    folder = write_adapter(tmp_path, {})
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(BadModel, match=r"adapter_model\.bin is pickled, which npgemma does not open; save it as"):
        read_adapter(folder)


def test_pickled_weights_beside_others_are_passed_over(tmp_path):
    folder = write_adapter(tmp_path, stored_tensors({QUERY: (A, B)}))
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04")
    assert read_adapter(folder).changed == {f"{QUERY}.weight"}


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_file_that_is_not_there_is_named(name, tmp_path):
    folder = write_adapter(tmp_path, stored_tensors({QUERY: (A, B)}))
    (folder / name).unlink()
    with pytest.raises(BadModel, match=f"{folder / name} is missing"):
        read_adapter(folder)


@pytest.mark.parametrize("content", [b"", b"damaged", None], ids=["empty", "damaged", "cut off"])
def test_damaged_weights_are_refused_and_named(content, tmp_path):
    path = write_adapter(tmp_path, stored_tensors({QUERY: (A, B)})) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    with pytest.raises(BadModel, match=f"{path} is not a usable safetensors file"):
        read_adapter(tmp_path)


def test_a_tensor_name_cannot_steer_a_terminal(tmp_path, capsys):
    folder = write_adapter(tmp_path, {"\x1b[2J.lora_A.weight": A, "\x1b]0;x\x07": A[0]})
    assert main(["ocr", str(PICTURE), "--adapter", str(folder)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("npgemma: ")
    assert err.rstrip("\n").isprintable()


# ---------------------------------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def loud(tmp_path_factory) -> Path:
    """An adapter to the embedded model that gives it something else to say."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 128), (512, 4)))
    tensors = stored_tensors({f"language_model.model.layers.{i}.mlp.up_proj": (a, b) for i in range(4)})
    return write_adapter(tmp_path_factory.mktemp("loud"), tensors, lora_alpha=2)


def test_the_command_line_answers_what_the_library_does(loud, capsys):
    plain = npgemma.load().generate(PICTURE, "caption en", max_new_tokens=6)
    expected = npgemma.load(adapter=loud).generate(PICTURE, "caption en", max_new_tokens=6)
    assert expected.token_ids != plain.token_ids
    flags = ["--max-new-tokens", "6", "--format", "json"]
    for command in (["generate", str(PICTURE), "caption en"], ["caption", str(PICTURE)]):
        assert main([*command, "--adapter", str(loud), *flags]) == 0
        assert json.loads(capsys.readouterr().out) == {"prompt": "caption en"} | dataclasses.asdict(expected)
        assert main([*command, *flags]) == 0
        assert json.loads(capsys.readouterr().out)["token_ids"] == plain.token_ids


def test_other_commands_take_an_adapter_too(loud, capsys):
    assert main(["score", str(PICTURE), "ocr", "a", "--adapter", str(loud), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)["logprobs"]
    assert found == npgemma.load(adapter=loud).score(PICTURE, "ocr", "a").logprobs
    assert found != npgemma.load().score(PICTURE, "ocr", "a").logprobs


def refused(capsys, *arguments: object) -> str:
    assert main(["ocr", str(PICTURE), *map(str, arguments)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("npgemma: ")
    assert err.count("\n") == 1
    return err


def test_refusals_are_one_sentence(loud, tmp_path, capsys):
    assert "is a LoRA adapter; give the model it was trained on" in refused(capsys, "-m", loud)
    assert "is no adapter here" in refused(capsys, "--adapter", tmp_path / "gone")
    assert "adapter_config.json is missing" in refused(capsys, "--adapter", EMBEDDED)
    model = hub.write_model(tmp_path / "model")
    said = refused(capsys, "--adapter", loud, "-m", model)
    assert (
        "was made for another model: language_model.model.layers.0.mlp.up_proj.weight is (23, 11), it changes one of (512, 128)"
        in said
    )
    damaged = Path(shutil.copytree(loud, tmp_path / "damaged"))
    (damaged / "adapter_config.json").write_text("{")
    assert "adapter_config.json cannot be read as JSON" in refused(capsys, "--adapter", damaged)


def test_an_adapter_that_is_not_finite_is_one_sentence(loud, tmp_path, capsys):
    """NaN in the update is NaN in the answer; it must not be an empty answer or a warning."""
    damaged = Path(shutil.copytree(loud, tmp_path / "damaged"))
    a, b = np.full((4, 128), np.nan, np.float32), np.ones((512, 4), np.float32)
    tiny.save(
        stored_tensors({"language_model.model.layers.0.mlp.up_proj": (a, b)}), damaged / "adapter_model.safetensors"
    )
    assert "not finite" in refused(capsys, "--adapter", damaged)


def test_pack_is_what_bfloat16_adapters_are_stored_by():
    """`tiny.save` packs; a value off the grid would make the tests above compare roundings."""
    x = np.array([0.0625, -3.0, 2.9375], np.float32)
    assert pack(x).tolist() == [0x3D80, 0xC040, 0x403C]
