"""Properties that every PaliGemma has, for the one you are writing, whatever it is written in.

A model is any callable from NumPy arrays to NumPy arrays. hypothesis draws small models and prompts, a folder in
Hugging Face layout is what your port loads, and each `check_` holds one property or says which row breaks it:

    from hypothesis import given, strategies as st
    from npgemma import testing

    @given(st.data(), testing.models())
    def test_cache(data, model):
        port = my_port.load(model.write(some_folder))      # config.json and model.safetensors
        row = data.draw(testing.token_rows(model.config))
        testing.check_cached_decoding(port.logits, port.decode, row)

What your callables take and return:

    full(row) -> logits [T V]              every row of one sequence
    decode(row, following) -> logits [n + 1 V]   prefill of the row, then a cached step for each of n following ids
    batch(rows) -> list of logits          several sequences at once
    full_at(row, first_position) -> logits [T V]

hypothesis comes with `pip install 'npgemma[test]'`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import safetensors

from npgemma.checkpoints.gemma_config import IN_PALIGEMMA, GemmaConfig
from npgemma.checkpoints.layout import Layout
from npgemma.checkpoints.paligemma import PaliGemmaConfig, config_json, hf_layout
from npgemma.checkpoints.towers import VisionConfig
from npgemma.io.atomic_write import replace_file
from npgemma.layers.bits import pack
from npgemma.layers.norms import LayerNorm
from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.tree import Leaf

try:
    from hypothesis import strategies as st
except ImportError:
    raise ImportError("npgemma.testing needs hypothesis: pip install 'npgemma[test]'") from None


class Row(NamedTuple):
    """One sequence: ids, the type of each (0 prefix, 1 suffix), and its pictures."""

    input_ids: Int[Array, "T"]
    token_type_ids: Int[Array, "T"]
    pixel_values: Float[Array, "B C Y X"]


Full: TypeAlias = Callable[[Row], Array]
Decode: TypeAlias = Callable[[Row, Sequence[int]], Array]
Batch: TypeAlias = Callable[[Sequence[Row]], Sequence[Array]]
FullAt: TypeAlias = Callable[[Row, int], Array]

# ---------------------------------------------------------------------------------------------------------- strategies


@st.composite
def configs(draw: st.DrawFn) -> PaliGemmaConfig:
    """Small PaliGemmas 1 and 2: multi-head, grouped and multi-query, odd grids, pixels left over, tied or not.

    Widths of the two halves, of heads and of the MLPs are mostly distinct, so that a swapped axis cannot fit. PaliGemma
    2 has windows shorter than most prompts, caps near the scores and logits, and another scale than its heads' width.
    """
    heads, patch = draw(st.integers(1, 3)), draw(st.integers(2, 5))
    vision = VisionConfig(
        hidden_size=heads * draw(st.integers(2, 5)),
        intermediate_size=draw(st.integers(5, 19)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        image_size=patch * draw(st.integers(1, 4)) + draw(st.integers(0, patch - 1)),
        patch_size=patch,
    )
    text = draw(st.sampled_from(sorted(IN_PALIGEMMA)).flatmap(decoder_configs))
    return PaliGemmaConfig(
        vision, text, tied=draw(st.booleans()), image_token_index=text.vocab_size - draw(st.integers(1, 3))
    )


@st.composite
def decoder_configs(draw: st.DrawFn, family: str) -> GemmaConfig:
    """Small decoders of a PaliGemma whose text_config has this model_type."""
    key_heads = draw(st.integers(1, 3))
    text = replace(
        IN_PALIGEMMA[family],
        hidden_size=draw(st.integers(7, 17)),
        intermediate_size=draw(st.integers(6, 29)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=key_heads * draw(st.integers(1, 3)),
        num_key_value_heads=key_heads,
        head_dim=2 * draw(st.integers(2, 6)),
        vocab_size=draw(st.integers(30, 70)),
        max_position_embeddings=512,
    )
    if family == "gemma":
        return text
    return replace(
        text,
        hidden_size=text.num_attention_heads * draw(st.integers(2, 5)),  # transformers wants a multiple
        query_pre_attn_scalar=2 * draw(st.integers(0, 4)) + 1,
        attn_logit_softcapping=draw(st.sampled_from([0.5, 1.0, 2.0])),
        final_logit_softcapping=draw(st.sampled_from([1.0, 2.0, 5.0])),
        sliding_window=draw(st.integers(3, 9)),
    )


@dataclass(frozen=True)
class DrawnModel:
    """A config and a seed, which make its weights: what hypothesis prints is enough to have it again."""

    config: PaliGemmaConfig
    seed: int

    @property
    def tensors(self) -> dict[str, Array]:
        return random_tensors(self.config, self.seed)

    def write(self, folder: Path, dtype: str = "float32") -> Path:
        """Its folder in Hugging Face layout; see `write_folder`."""
        return write_folder(folder, self.config, self.tensors, dtype)


def models() -> st.SearchStrategy[DrawnModel]:
    """Models with random weights."""
    return st.builds(DrawnModel, configs(), st.integers(0, 1 << 16))


def weights(config: PaliGemmaConfig) -> st.SearchStrategy[dict[str, Array]]:
    """Weights of one config, by name."""
    return st.integers(0, 1 << 16).map(lambda seed: random_tensors(config, seed))


def pictures(side: int = 40) -> st.SearchStrategy[Array]:
    """RGB pictures as uint8 [Y X 3] of any proportions: noise, which no two resizers forgive, and single colours."""
    sizes = st.tuples(st.integers(1, side), st.integers(1, side), st.booleans(), st.integers(0, 1 << 16))

    def picture(drawn: tuple[int, int, bool, int]) -> Array:
        height, width, noise, seed = drawn
        shape = (height, width, 3) if noise else (1, 1, 3)
        pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
        return np.broadcast_to(pixels, (height, width, 3)).copy()

    return sizes.map(picture)


def prompts() -> st.SearchStrategy[str]:
    """Prompts as people write them and as they should not: tasks, Unicode, nothing at all, location and mask words."""
    tasks = st.sampled_from(["caption en", "answer en what is this?", "detect cat ; dog", "segment cat", "ocr", ""])
    words = st.sampled_from(["<loc0000>", "<loc1023>", "<seg127>", "<bos>", "<eos>", "\n", "  "])
    return st.one_of(tasks, st.text(max_size=40), st.tuples(st.text(max_size=9), words).map("".join))


@st.composite
def token_rows(draw: st.DrawFn, config: PaliGemmaConfig) -> Row:
    """A sequence for a config: one or two pictures' tokens, begin-of-sequence, a prefix, and a suffix."""
    images, prefix, suffix = draw(st.integers(1, 2)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    return draw_row(config, images, prefix, suffix, draw(st.integers(0, 1 << 16)))


def draw_row(config: PaliGemmaConfig, images: int = 1, prefix: int = 4, suffix: int = 3, seed: int = 0) -> Row:
    """The sequence [image tokens, bos, prefix | suffix] with random ids and pixels in -1 .. 1."""
    rng = np.random.default_rng(seed)
    usable = [i for i in range(3, config.text.vocab_size) if i != config.image_token_index]
    image_ids = [config.image_token_index] * (images * config.vision.num_patches)
    ids = np.array([*image_ids, config.bos_token_id, *rng.choice(usable, prefix + suffix)])
    types = np.array([0] * (len(ids) - suffix) + [1] * suffix)
    side = config.vision.image_size
    return Row(ids, types, rng.uniform(-1, 1, (images, 3, side, side)).astype(np.float32))


# --------------------------------------------------------------------------------------------------- models as folders


def random_tensors(config: PaliGemmaConfig, seed: int = 0) -> dict[str, Array]:
    """Random tensors of a PaliGemma, by the names that transformers 5 saves; see `layout_tensors`."""
    return layout_tensors(hf_layout(config), seed)


def layout_tensors(layout: Layout[Any], seed: int = 0) -> dict[str, Array]:
    """Random tensors by the names of a layout.

    They are float32 numbers on the bfloat16 grid, so that every stored dtype holds them exactly, and of a size that
    keeps activations near one: matrices are scaled by their fan-in, norms are near their neutral value.
    """
    rng = np.random.default_rng(seed)
    tensors = {name: np.empty(shape, np.float32) for name, shape in layout.shapes.items()}
    for stored in layout.stored:
        stored.part(tensors[stored.name])[...] = stored.from_field(random_array(rng, stored.leaf))
    return tensors


def random_array(rng: np.random.Generator, leaf: Leaf) -> Array:
    x = np.asarray(rng.standard_normal(leaf.value.shape))
    if leaf.kind == "weight" and not leaf.axes.startswith("V"):
        heads_out = leaf.axes.startswith(("N H", "K H"))
        x /= np.sqrt(np.prod(leaf.value.shape[2 if heads_out else 1 :]))
    elif x.ndim < 3 and not leaf.path.endswith("position"):
        x *= 0.2
        x += 1.0 if leaf.owner is LayerNorm and leaf.path.endswith("weight") else 0.0
    return (np.round(x * 128) / 128).clip(-1.875, 1.875).astype(np.float32)


def save_tensors(tensors: Mapping[str, Array], path: Path, dtype: str = "float32") -> None:
    """Write a safetensors file; dtype is 'float32', 'float16' or 'bfloat16'."""
    stored = {
        name: np.array(pack(x) if dtype == "bfloat16" else x.astype(dtype), order="C") for name, x in tensors.items()
    }
    specs = {
        name: safetensors.TensorSpec(dtype=dtype, shape=list(x.shape), data_ptr=x.ctypes.data, data_len=x.nbytes)
        for name, x in stored.items()
    }
    with replace_file(path) as temporary:
        temporary.write_bytes(safetensors.serialize(specs))


def write_folder(folder: Path, config: PaliGemmaConfig, tensors: Mapping[str, Array], dtype: str = "float32") -> Path:
    """config.json and model.safetensors, with the names that transformers 5 saves; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(config)))
    save_tensors(tensors, folder / "model.safetensors", dtype)
    return folder


# ---------------------------------------------------------------------------------------------------------- properties

# Two runs of one model differ by the roundings of the same sums in another order: about ten a layer, each of one unit
# in the last place of the residual stream, for up to ten layers.
ROUNDINGS = 100


def tolerance(logits: Array, eps: float | None = None) -> float:
    """What two runs of one model may differ by: ROUNDINGS units in the last place of the largest logit.

    `eps` is that unit near 1, by default of the dtype of the logits; give 2**-8 for a port that computes in bfloat16.
    """
    unit = float(np.finfo(logits.dtype).eps) if eps is None else eps
    return ROUNDINGS * unit * max(1.0, float(np.abs(logits).max()))


def assert_rows_equal(what: str, found: Array, expected: Array, eps: float | None = None) -> None:
    """AssertionError, naming the first row that is off, its largest difference and what was allowed."""
    if found.shape != expected.shape:
        raise AssertionError(f"{what}: shape {list(found.shape)}, expected {list(expected.shape)}")
    allowed = tolerance(expected, eps)
    off = np.abs(found - expected).max(-1)
    rows = np.flatnonzero(~(off <= allowed))
    if rows.size:
        row = int(rows[0])
        raise AssertionError(f"{what}: row {row} is off by {off[row]:.3g}, rounding allows {allowed:.3g}")


def check_cached_decoding(full: Full, decode: Decode, row: Row, eps: float | None = None) -> None:
    """A prefill and one cached step a token give what one pass over everything gives, the tokens as causal suffix."""
    prefix = int((row.token_type_ids == 0).sum())
    start = Row(row.input_ids[:prefix], row.token_type_ids[:prefix], row.pixel_values)
    found = np.asarray(decode(start, row.input_ids[prefix:].tolist()))
    assert_rows_equal("a cached step is not the full pass", found, np.asarray(full(row))[prefix - 1 :], eps)


def check_suffix_causality(full: Full, row: Row, eps: float | None = None) -> None:
    """No suffix token moves the logits of a row before it (PaliGemma, section 3.2.2, figure 2)."""
    expected = np.asarray(full(row))
    for t in np.flatnonzero(row.token_type_ids == 1).tolist():
        found = np.asarray(full(other_token(row, t)))
        assert_rows_equal(f"suffix token {t} is seen before its place", found[:t], expected[:t], eps)


def check_prefix_bidirectionality(full: Full, row: Row, eps: float | None = None) -> None:
    """The last prefix token moves the logits of every prefix row: they all see it (same source)."""
    last = int((row.token_type_ids == 0).sum()) - 1
    before, after = (np.asarray(full(each)) for each in (row, other_token(row, last)))
    moved = np.abs(after - before).max(-1)[:last]
    still = np.flatnonzero(moved <= tolerance(before, eps) / ROUNDINGS)
    if still.size:
        raise AssertionError(
            f"prefix row {still[0]} does not see the last prefix token: it moved by {moved[still[0]]:.3g}"
        )


def check_rows_independent(batch: Batch, rows: Sequence[Row], eps: float | None = None) -> None:
    """Sequences that run together, of any lengths, give what each gives alone."""
    for i, (together, row) in enumerate(zip(batch(rows), rows, strict=True)):
        assert_rows_equal(
            f"sequence {i} depends on its neighbours", np.asarray(together), np.asarray(batch([row])[0]), eps
        )


def check_position_shift(full_at: FullAt, row: Row, shift: int, eps: float | None = None) -> None:
    """All positions moved alike move no logit: rotary attention sees differences (RoFormer, section 3.2.2)."""
    found, expected = (np.asarray(full_at(row, first)) for first in (1 + shift, 1))
    assert_rows_equal(f"positions from {1 + shift} are not those from 1", found, expected, eps)


def check_grouped_heads(
    build: Callable[[PaliGemmaConfig, Mapping[str, Array]], Full], model: DrawnModel, row: Row, eps: float | None = None
) -> None:
    """K key heads give what N give that repeat each of them N/K times: query head n reads n // (N/K).

    `build` makes a callable of a config and tensors, which have the names that transformers 5 saves. Source: Ainslie et
    al. 2023, section 2.2.
    """
    text = model.config.text
    times = text.num_attention_heads // text.num_key_value_heads
    many = replace(model.config, text=replace(text, num_key_value_heads=text.num_attention_heads))
    repeated = {
        stored.name: np.repeat(stored.to_field(model.tensors[stored.name]), times, 0).reshape(-1, text.hidden_size)
        for stored in hf_layout(model.config).stored
        if stored.leaf.axes == "K H D"
    }
    found, expected = build(model.config, model.tensors)(row), build(many, {**model.tensors, **repeated})(row)
    assert_rows_equal("grouped key heads are not repeated ones", np.asarray(found), np.asarray(expected), eps)


def other_token(row: Row, t: int) -> Row:
    """The same row with the token at t replaced by another that is in the row or one above it."""
    ids = row.input_ids.copy()
    ids[t] = 3 if ids[t] != 3 else 4
    return row._replace(input_ids=ids)
