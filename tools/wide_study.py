"""Compare runs at the widths of the 3B model whose sums are plain loops: they are right, and have to be explained.

    python tools/wide_study.py            # minutes

The model is random, with two layers of 2048 and 16384 in the decoder, and one of 1152 and 4304 in the tower.
"""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from correct_variants import layer_norm_in_a_loop, layer_normed, multiplying, one_accumulator, rms_in_a_loop, rms_normed
from mutation_study import Study, recorded, worst
from mutations import Variant
from random_models import IMAGE_TOKEN, write_model

import npgemma
from npgemma.checkpoints.gemma_config import LANGUAGE_MODELS
from npgemma.checkpoints.paligemma import PaliGemmaConfig
from npgemma.checkpoints.towers import VisionConfig

VISION = VisionConfig(
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=1,
    num_attention_heads=16,
    image_size=56,
    patch_size=14,
)
TEXT = replace(
    LANGUAGE_MODELS["gemma"],
    hidden_size=2048,
    intermediate_size=16384,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=1,
    head_dim=256,
    vocab_size=IMAGE_TOKEN + 8,
)
NOISE = 0.05


def together(*variants: Variant) -> Variant:
    return Variant(replacements=tuple(each for variant in variants for each in variant.replacements))


NORMS = together(rms_normed(rms_in_a_loop), layer_normed(layer_norm_in_a_loop))
LOOPS = {
    "npgemma itself": Variant(),
    "norms in loops": NORMS,
    "norms and products in loops": together(NORMS, multiplying(one_accumulator)),
}


def print_row(study: Study, name: str) -> None:
    report = study.judge(LOOPS[name], replayed=True)
    again = max(verdict.excess for verdict in report.replayed)
    unexplained = sum(not verdict.explained for verdict in (*report.verdicts, *report.replayed))
    numbers = f"{worst(report):.2f} | {again:.2f} | {unexplained} of {2 * len(report.verdicts)}"
    print(f"| {name} | status {report.status} | {numbers} |", flush=True)


def main() -> None:
    with TemporaryDirectory() as folder:
        config = PaliGemmaConfig(VISION, TEXT, tied=True, image_token_index=IMAGE_TOKEN)
        model = npgemma.load(write_model(Path(folder) / "model", config, noise=NOISE))
        start = perf_counter()
        study = recorded(model, [npgemma.sample_picture()], "caption en", Path(folder))
        print(f"recorded {len(study.golden.taps)} taps in {perf_counter() - start:.0f} s", flush=True)
        for name in LOOPS:
            print_row(study, name)


if __name__ == "__main__":
    main()
