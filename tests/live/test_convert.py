"""A folder that `npgemma convert` wrote is one that transformers loads, with the same logits."""

import npz_checkpoints
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import npgemma  # noqa: E402
from npgemma import testing  # noqa: E402
from npgemma.checkpoints.convert import convert  # noqa: E402

pytestmark = pytest.mark.live

# Two float32 runs of a model of five layers: transformers rounds its angles, norms and softmax in float32, too.
FLOAT32 = dict(rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("one_torch_thread")
def test_transformers_computes_the_logits_of_a_converted_folder(tmp_path) -> None:
    convert(npz_checkpoints.write(tmp_path / "model.npz", npz_checkpoints.arrays()), tmp_path / "folder")
    row = testing.draw_row(npz_checkpoints.CONFIG)
    load = transformers.PaliGemmaForConditionalGeneration.from_pretrained
    theirs = load(tmp_path / "folder", dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.from_numpy(row.input_ids)[None],
            pixel_values=torch.from_numpy(row.pixel_values),
            token_type_ids=torch.from_numpy(row.token_type_ids)[None],
        ).logits[0]
    found = npgemma.load(tmp_path / "folder").forward(row.input_ids, row.pixel_values, row.token_type_ids)
    np.testing.assert_allclose(found, expected.numpy(), **FLOAT32)
    assert (found.argmax(-1) == expected.numpy().argmax(-1)).all()
