"""The embedded pair of towers embeds pictures and texts as transformers does, with the tokenizer of transformers."""

import numpy as np
import pytest
from evaluate_pair import EMBEDDED_PAIR, Npgemma, Transformers, captioned, encoded

pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("transformers", reason="the live tests compare with transformers")

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

# Both round every sum of a tower in their own order: 5 blocks of sums of up to 588 products, in rows of length 1.
ROUNDINGS = 100


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_embeddings_are_those_of_transformers(dtype):
    case = captioned(20, 0)
    pairs = zip(
        encoded(Npgemma(EMBEDDED_PAIR, dtype), case), encoded(Transformers(EMBEDDED_PAIR, dtype), case), strict=True
    )
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=ROUNDINGS * np.finfo(dtype).eps, strict=True)


def test_transformers_finds_the_classes_by_itself():
    from transformers import AutoConfig, AutoModel

    model = AutoModel.from_pretrained(EMBEDDED_PAIR)
    assert type(model).__name__ == "SiglipModel"
    assert AutoConfig.from_pretrained(EMBEDDED_PAIR).text_config.max_position_embeddings == 16
