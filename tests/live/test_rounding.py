"""The rounding schedules equal transformers in bfloat16, where each operation receives transformers' own tensors."""

from collections.abc import Mapping
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pytest
from random_models import GEMMAS, PALIGEMMA_2, PROMPT, STEPS, write_model

import npgemma
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.golden.compare import compare
from npgemma.golden.dump import read_dump
from npgemma.golden.file import read_golden
from npgemma.golden.layout import Fitted
from npgemma.golden.port import Port
from npgemma.golden.presets import preset
from npgemma.golden.record import computing, record
from npgemma.golden.replay import follow
from npgemma.io.model_folder import EMBEDDED
from npgemma.layers.bits import round_to_bfloat16

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("transformers", reason="the live tests compare with transformers")

from dump_transformers import dump, load_model, make_inputs  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

SAMPLE = npgemma.sample_picture()

# The share of elements that must be equal to the bit. Sums in another order sometimes round to the other neighbour.
SHARE = 0.999
# Smaller where torch's kernels approximate: 1 + tanh of float32 cancels in gelu below -2, and the exp of the sdpa
# kernel is off by 1e-5, so that one exponential in a hundred is rounded the other way.
GELU_SHARE, SDPA_SHARE = 0.98, 0.95
# The gates of the random PaliGemma 2 are wider, so that more of them lie below -2.
WIDE_GELU_SHARE = 0.9
WIDTHS = {2.0: GELU_SHARE, 3.7: WIDE_GELU_SHARE}
# So many values of a tap may be rounded the other way, whatever their share: small taps have few hundred values.
FLIPS = 8
# The error of that exp, nearly always: of 128,000 exponentials of the kernel (values = identity) 0.8% were rounded the
# other way, and nine in ten of them were within this of the middle between two bfloat16 numbers.
SDPA_EXP = 1e-4


def explained_by_exponentials(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, scale: float, theirs: np.ndarray
) -> bool:
    """Whether one row's heads equal theirs, except for one value, if two exponentials per head are rounded otherwise.

    Only exponentials near the middle are tried. One of them changes all outputs of its head, so that the share of equal
    values says little about a single row.
    """

    def mix(exps: np.ndarray, total: np.float32, head: int) -> np.ndarray:
        return round_to_bfloat16((exps @ values[:, head // (len(q) // values.shape[1])]) / total)

    for head in range(len(q)):
        scores = keys[:, head // (len(q) // keys.shape[1])] @ q[head] * np.float32(scale)
        exact = np.exp(scores - scores.max())
        rounded = round_to_bfloat16(exact)
        other = round_to_bfloat16(exact + 1.5 * (exact - rounded))
        near = np.flatnonzero(abs((rounded + other) / 2 - exact) < SDPA_EXP * exact)
        pairs = combinations_with_replacement(near, 2)
        tries = [rounded, *(np.where(np.isin(np.arange(len(exact)), pair), other, rounded) for pair in pairs)]
        if min((mix(each, exact.sum(), head) != theirs[head]).sum() for each in tries) > 1:
            return False
    return True


def shares(
    schedule: str, attention: str, folder: Path, source: Path = EMBEDDED, steps: int = 3
) -> Mapping[str, tuple[float, int]]:
    """By tap: the share of elements in which the emulation equals transformers on its inputs, and how many differ."""
    model = npgemma.load(source)
    case = ([SAMPLE], "caption en") if isinstance(model, VisionLanguageModel) else ([], PROMPT)
    record(model, *case, folder / "golden.safetensors", "ops", steps=steps, schedule=schedule)
    golden = read_golden(folder / "golden.safetensors")
    port = load_model(source, torch.bfloat16, attention)
    ids = golden.truth["generated_ids"].tolist()[:-1]
    save_file(dump(port, make_inputs(source, *case), ids), folder / "dump.safetensors")
    found = read_dump(folder / "dump.safetensors")
    pairing = compare(golden, found, preset("transformers", golden)).pairing
    made: dict[str, tuple[float, int]] = {}
    dumped: dict[str, np.ndarray] = {}

    port = Port(golden, found, pairing)

    def given(tap: str) -> Fitted | None:
        return port[tap] if tap in pairing.pairs else None

    def note(tap: str, axes: str, ours: np.ndarray, replaced: bool) -> None:
        if not replaced:
            return
        theirs = port[tap].over(ours)
        if tap == "pixel_values":  # dumped before it is cast
            theirs = round_to_bfloat16(theirs.astype(np.float32))
        made[tap] = float((ours == theirs).mean()), int((ours != theirs).sum())
        dumped[tap] = theirs
        if schedule == f"hf_{attention}" == "hf_sdpa" and tap.startswith("steps.") and tap.endswith(".heads"):
            parts = (
                f"{tap.removesuffix('heads')}{name}" for name in ("q_rope", "segments.0.keys", "segments.0.values")
            )
            q, keys, values = (dumped[part].astype(np.float32) for part in parts)
            scale = model.decoder.blocks[0].attn.scale or q.shape[2] ** -0.5
            if explained_by_exponentials(q[0], keys, values, scale, theirs[0]):
                made[tap] = 1.0, 0

    follow(computing(model, "bfloat16"), golden, given, "bfloat16", None, note)
    return made


def is_gelu(tap: str) -> bool:
    return tap.endswith("mlp.act") or (tap.startswith("vision") and tap.endswith("mlp.hidden"))


def assert_equal_to_the_bit(found: Mapping[str, tuple[float, int]], gelu_share: float, heads_share: float) -> None:
    """AssertionError, naming the tap, if one has fewer equal elements than torch's kernels explain."""
    worst = sorted((share, tap) for tap, (share, _) in found.items())[:5]
    for tap, (share, flips) in found.items():
        least = gelu_share if is_gelu(tap) else heads_share if tap.endswith("attn.heads") else SHARE
        assert share >= least or flips <= FLIPS, f"{tap}: {share:.4%} ({worst})"


@pytest.mark.parametrize(("attention", "heads_share"), [("eager", SHARE), ("sdpa", SDPA_SHARE)])
def test_emulation_equals_transformers_to_the_bit(attention: str, heads_share: float, tmp_path: Path) -> None:
    found = shares(f"hf_{attention}", attention, tmp_path)
    assert len(found) > 350
    assert_equal_to_the_bit(found, GELU_SHARE, heads_share)


def test_emulated_paligemma_2_equals_transformers_to_the_bit(tmp_path: Path) -> None:
    """It includes the logits before and after their cap, and what a cap of scores, a window and four norms lead to."""
    found = shares("hf_eager", "eager", tmp_path, write_model(tmp_path / "model", PALIGEMMA_2), STEPS)
    assert {"logits.uncapped", "logits", "prompts.0.near", "steps.6.text.layers.2.attn.segments.0.probs"} <= set(found)
    assert len(found) > 650
    assert_equal_to_the_bit(found, WIDE_GELU_SHARE, SHARE)


@pytest.mark.parametrize(("attention", "heads_share"), [("eager", SHARE), ("sdpa", SDPA_SHARE)])
def test_emulated_gemma_3_equals_transformers_to_the_bit(attention: str, heads_share: float, tmp_path: Path) -> None:
    """It includes the norms of queries and keys, and both kinds of rotary positions."""
    found = shares(f"hf_{attention}", attention, tmp_path, write_model(tmp_path / "model", GEMMAS[3]), STEPS)
    assert {"steps.6.text.layers.0.attn.q_norm", "text.layers.1.attn.k_norm", "prompts.0.near"} <= set(found)
    assert len(found) > 640
    assert_equal_to_the_bit(found, WIDE_GELU_SHARE, heads_share)


@pytest.mark.parametrize(
    ("schedule", "attention", "leaf"), [("hf_eager", "sdpa", "heads"), ("hf_sdpa", "eager", "probs")]
)
def test_other_schedule_does_not_equal_transformers(schedule: str, attention: str, leaf: str, tmp_path) -> None:
    """So the test above can fail."""
    found = [share for tap, (share, _) in shares(schedule, attention, tmp_path).items() if tap.endswith(f".{leaf}")]
    assert np.mean(found) < 0.9


@pytest.mark.parametrize("width", WIDTHS)
def test_gelu_of_torch_differs_from_float64_as_the_shares_say(width: float) -> None:
    """1 + tanh cancels below -2: torch's bfloat16 gelu is not always its float64 gelu, rounded to bfloat16."""
    x = round_to_bfloat16(np.random.default_rng(0).standard_normal(200_000).astype(np.float32) * width)
    tensor = torch.from_numpy(x).bfloat16()
    exact, theirs = (
        torch.nn.functional.gelu(each, approximate="tanh").bfloat16() for each in (tensor.double(), tensor)
    )
    share = (exact == theirs).float().mean().item()
    assert WIDTHS[width] < share < SHARE
