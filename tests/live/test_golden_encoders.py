"""Runs of transformers' SigLIP, CLIP and ViT are explained and equal the emulation; planted bugs are found."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from random_encoders import CLIP, SIGLIP, VIT, Written, write_encoder

import npgemma
from npgemma.golden import Dump, Golden, Report, compare, preset, read_dump, read_golden, replay
from npgemma.golden.layout import Fitted
from npgemma.golden.mapping import pair
from npgemma.golden.port import Port
from npgemma.golden.record import computing
from npgemma.golden.replay import follow
from npgemma.layers.bits import round_to_bfloat16

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("transformers", reason="the live tests compare with transformers")

import dump_transformers  # noqa: E402
from dump_transformers import dump_encoder, load_model, make_encoder_inputs  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers_bugs import Bug  # noqa: E402
from transformers_encoder_bugs import CLIP_BUGS, SIGLIP_BUGS, VIT_BUGS  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

DTYPES = ("float32", "bfloat16")
PLANTED = {SIGLIP: SIGLIP_BUGS, CLIP: CLIP_BUGS, VIT: VIT_BUGS}
# The share of elements that must be equal to the bit, and where torch's kernels approximate (see test_rounding.py).
SHARE, GELU_SHARE, SDPA_SHARE = 0.998, 0.95, 0.95
# What transformers rounds in operations of another order: pooling scales q before its products, the norm of CLIP's rows
# is three operations, and the loss is computed of rounded scores.
OTHER_ORDER = {"vision.head.attn.out", "image_embeds", "text_embeds", "loss"}


@dataclass(frozen=True)
class Recorded:
    """A golden file with every tap of a random encoder."""

    written: Written
    golden: Golden

    def dump(self, folder: Path, dtype: str, attention: str = "eager", bug: Bug | None = None) -> Dump:
        """A dump of transformers that is written to a file and read back."""
        model = load_model(self.written.model.folder, getattr(torch, dtype), attention)
        with ExitStack() as stack:
            if bug:
                bug.plant(model, stack)
            found = dump_encoder(model, make_encoder_inputs(*self.written))
        save_file(found, folder / "dump.safetensors")
        return read_dump(folder / "dump.safetensors")

    def report(self, dump: Dump) -> Report:
        names = preset("transformers", self.golden)
        return replay(self.written.model, self.golden, dump, compare(self.golden, dump, names))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Recorded]:
    @cache
    def make(kind: str, schedule: str = "hf_eager") -> Recorded:
        folder = tmp_path_factory.mktemp("encoder")
        written = write_encoder(folder / "model", kind)
        return Recorded(written, written.record(folder / "g.safetensors", schedule))

    return make


@pytest.mark.parametrize(
    ("kind", "attention", "verdicts"),
    [
        *((SIGLIP, "eager", 79), (SIGLIP, "sdpa", 67), (CLIP, "eager", 76), (CLIP, "sdpa", 64)),
        *((VIT, "eager", 36), (VIT, "sdpa", 30)),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tap_of_transformers_is_explained(encoder, tmp_path, dtype, kind, attention, verdicts) -> None:
    case = encoder(kind, f"hf_{attention}")
    report = case.report(case.dump(tmp_path, dtype, attention))
    assert report.dtype == dtype
    assert [verdict.name for verdict in report.verdicts if not verdict.explained] == []
    assert [verdict.name for verdict in report.culprits] == []
    assert report.status == 0
    assert len(report.verdicts) == verdicts


@pytest.mark.parametrize("kind", [SIGLIP, CLIP, VIT])
def test_preset_maps_every_name_of_the_hooks_to_a_tap(encoder, tmp_path, kind) -> None:
    case = encoder(kind)
    pairing = pair(preset("transformers", case.golden), case.dump(tmp_path, "float32"), case.golden.taps)
    assert (pairing.unmapped, pairing.unrecorded, pairing.missing) == ([], [], [])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", [SIGLIP, CLIP, VIT])
def test_emulation_equals_transformers_to_the_bit(encoder, tmp_path, kind, attention) -> None:
    """Where each operation receives transformers' own tensors."""
    case = encoder(kind, f"hf_{attention}")
    dump = case.dump(tmp_path, "bfloat16", attention)
    pairing = compare(case.golden, dump, preset("transformers", case.golden)).pairing
    shares: dict[str, float] = {}

    port = Port(case.golden, dump, pairing)

    def given(tap: str) -> Fitted | None:
        return port[tap] if tap in pairing.pairs and tap != "input_ids" else None

    def note(tap: str, axes: str, ours: np.ndarray, replaced: bool) -> None:
        if not replaced:
            return
        theirs = port[tap].over(ours)
        if tap == "pixel_values":  # dumped before it is cast
            theirs = round_to_bfloat16(theirs.astype(np.float32))
        shares[tap] = float((ours == theirs).mean())

    follow(computing(case.written.model, "bfloat16"), case.golden, given, "bfloat16", None, note)
    assert len(shares) >= 30
    for tap, share in shares.items():
        least = GELU_SHARE if tap.endswith("hidden") else SDPA_SHARE if tap.endswith("heads") else SHARE
        assert share >= least or tap in OTHER_ORDER, f"{tap}: {share:.4%}"


@pytest.mark.parametrize(("kind", "bug"), [(kind, bug) for kind, bugs in PLANTED.items() for bug in bugs])
def test_bug_in_transformers_is_found_in_its_block(encoder, tmp_path, kind, bug) -> None:
    case, planted = encoder(kind), PLANTED[kind][bug]
    report = case.report(case.dump(tmp_path, "float32", bug=planted))
    assert (report.status, report.first_divergence.block) == (1, planted.block)
    assert report.culprits[0].block == planted.block


@pytest.mark.parametrize(
    ("kind", "bug", "found"),
    [
        *((SIGLIP, "padding_masked", True), (CLIP, "last_end_token", True), (VIT, "tanh_gelu", True)),
        (CLIP, "eps_of_siglip", False),  # smaller than the errors of rounding to bfloat16
    ],
)
def test_bug_in_transformers_in_bfloat16(encoder, tmp_path, kind, bug, found) -> None:
    case, planted = encoder(kind), PLANTED[kind][bug]
    report = case.report(case.dump(tmp_path, "bfloat16", bug=planted))
    assert {verdict.block for verdict in report.culprits[:1]} == ({planted.block} if found else set())


def test_tool_dumps_what_the_command_records(encoder, tmp_path, monkeypatch) -> None:
    folder, sample = encoder(CLIP).written.model.folder, str(npgemma.sample_picture())
    arguments = [str(folder), sample, "a cat", "-o", str(tmp_path / "dump.safetensors"), "--bug", "not_causal"]
    monkeypatch.setattr(sys, "argv", ["dump_transformers", *arguments])
    dump_transformers.main()
    npgemma.golden.record(npgemma.load(folder), [sample], ["a cat"], tmp_path / "g.safetensors")
    golden = read_golden(tmp_path / "g.safetensors")
    report = compare(golden, read_dump(tmp_path / "dump.safetensors"), preset("transformers", golden))
    assert report.first_divergence.block == "text.layers.0"
