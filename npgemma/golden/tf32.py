"""Whether the errors of a float32 port look like those of products in TF32, which it may not know of.

A tap is sharp if honest runs have errors in TF32 that are many times those in float32: what products made, and what
was made of it. If a port multiplies in TF32, all sharp taps are wrong in float32 from the first product on; only that
of the patches may be exact, where a library has no convolution in TF32. A mistake of the same size in that place looks
alike, so this is a hint and no verdict.
"""

from collections.abc import Callable, Sequence

import numpy as np

from npgemma.golden.file import Golden
from npgemma.golden.judge import Verdict

SHARP = 10.0  # how many times larger errors are
FEWEST = 4  # fewer sharp taps do not tell
# The first wrong tap has at least this share of the errors in TF32: most mistakes make smaller or larger ones.
LEAST_RATIO = 0.1
MOST = 0.9  # the share of the wrong taps that TF32 explains, at least
PATCHES = ("vision.embedding", "embedding")
HINT = (
    "the errors are as large as those of products whose factors keep 10 bits of the mantissa, as in TF32 and float16: "
    "in TF32, rounding explains {explained} of {count} taps{rest}. On a GPU, switch TF32 off, where smaller "
    "mistakes show (torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False; "
    "jax_default_matmul_precision 'highest'; NVIDIA_TF32_OVERRIDE=0 for cuBLAS and cuDNN), or use --dtype tf32"
)


def tf32_hint(golden: Golden, verdicts: Sequence[Verdict], judge: Callable[[str], Verdict]) -> list[str]:
    """That rounding in TF32 explains most of what is wrong in float32, if it does; `judge` judges a tap in TF32."""
    if "tf32" not in golden.envelopes:
        return []
    sharp = [verdict for verdict in verdicts if is_sharp(golden, verdict.name)]
    wrong = [verdict for verdict in sharp if not verdict.explained]
    exact = {verdict.block for verdict in sharp if verdict.explained}
    if len(wrong) < FEWEST or exact - {*PATCHES}:
        return []
    found = {verdict.name: judge(verdict.name) for verdict in verdicts if verdict.name in golden.taps}
    first = found[wrong[0].name]
    left = [verdict for verdict in found.values() if not verdict.explained]
    if not first.explained or first.ratios["rms"] < LEAST_RATIO or len(left) > (1 - MOST) * len(wrong):
        return []
    rest = f", and {left[0].name} is the first that it does not explain" if left else ""
    return [HINT.format(explained=len(found) - len(left), count=len(found), rest=rest)]


def is_sharp(golden: Golden, tap: str) -> bool:
    """Whether honest errors of a tap are much larger in TF32 than in float32."""
    if tap not in golden.envelopes["float32"]:
        return False
    tf32, float32 = (np.square(golden.envelopes[dtype][tap][0]).mean() for dtype in ("tf32", "float32"))
    return bool(tf32 > SHARP**2 * float32)
