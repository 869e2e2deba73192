"""Scores against transformers' loss with labels, which is the mean of -log P over the answer and its end token."""

import numpy as np
import pytest

import npgemma
from npgemma.io.model_folder import EMBEDDED

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("transformers", reason="the live tests compare with transformers")

from dump_transformers import load_model, make_inputs  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

SAMPLE = npgemma.sample_picture()
CASES = [
    ("caption en", "a blue star"),
    ("answer en what color is the star?", "blue"),
    ("answer en what color is the star?", "two red squares and a shoe"),
    ("detect blue star", "<loc0100><loc0200><loc0300><loc0400> blue star"),
    ("ocr", ""),
]
# Both runs are in float32, and their logits are off by about 1e-5, as is a mean of log-probabilities.
LOSS = 2e-5


@pytest.mark.parametrize(("prompt", "suffix"), CASES)
def test_the_loss_is_that_of_transformers(prompt: str, suffix: str) -> None:
    score = npgemma.load().score(SAMPLE, prompt, suffix)
    inputs = make_inputs(EMBEDDED, [SAMPLE], prompt)
    answer = torch.tensor([score.token_ids])
    length = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], 1)
    inputs["token_type_ids"] = torch.cat([inputs["token_type_ids"], torch.ones_like(answer)], 1)
    labels = inputs["input_ids"].clone()
    labels[:, :length] = -100
    with torch.no_grad():
        loss = load_model(EMBEDDED, torch.float32, "eager")(**inputs, labels=labels).loss.item()
    np.testing.assert_allclose(score.loss, loss, rtol=0, atol=LOSS * max(1, loss))
