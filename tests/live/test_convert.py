"""A folder that `npgemma convert` wrote is one that transformers loads, with the same logits and greedy tokens."""

import npz_checkpoints
import numpy as np
import pytest

import npgemma
from npgemma import testing
from npgemma.checkpoints.convert import convert

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

from make_fixtures import greedy  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

NEW_TOKENS = 8


@pytest.mark.parametrize(
    ("model", "dtype", "shard_bytes"),
    [
        ("PaliGemma 1", "float32", 10**9),
        ("PaliGemma 1", "float16", 10**9),
        ("PaliGemma 1", "bfloat16", 10**9),
        ("PaliGemma 1", "float32", 20_000),
        ("PaliGemma 2", "bfloat16", 10**9),
        ("PaliGemma 2", "float32", 10**6),
    ],
)
def test_transformers_computes_the_logits_and_tokens_of_a_converted_folder(model, dtype, shard_bytes, tmp_path) -> None:
    config = npz_checkpoints.CONFIGS[model]
    arrays = npz_checkpoints.arrays(dtype, config)
    convert(npz_checkpoints.write(tmp_path / "model.npz", arrays), tmp_path / "folder", shard_bytes=shard_bytes)
    theirs, report = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        tmp_path / "folder", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours, row = npgemma.load(tmp_path / "folder"), testing.draw_row(config)
    inputs = {
        "input_ids": torch.from_numpy(row.input_ids)[None],
        "token_type_ids": torch.from_numpy(row.token_type_ids)[None],
        "pixel_values": torch.from_numpy(row.pixel_values),
    }
    with torch.no_grad():
        expected = theirs.eval()(**inputs).logits[0].numpy()
    found = ours.forward(row.input_ids, row.pixel_values, row.token_type_ids)
    # both are float32 runs of the same weights: 100 roundings of the largest logit
    np.testing.assert_allclose(found, expected, rtol=0, atol=testing.tolerance(expected, 2.0**-24), strict=True)

    prefix = row.input_ids[row.token_type_ids == 0]
    prompt = inputs | {"input_ids": torch.from_numpy(prefix)[None]}
    prompt["token_type_ids"] = torch.zeros_like(prompt["input_ids"])
    assert ours.generate_ids(prefix, row.pixel_values, NEW_TOKENS) == greedy(theirs, prompt, NEW_TOKENS).tolist()
