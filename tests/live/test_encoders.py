"""SigLIP, CLIP and ViT against transformers' classes: random configs, every parameter overwritten with noise."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
from agreement import assert_agrees

from npgemma.checkpoints import clip as clip_checkpoint
from npgemma.checkpoints import siglip as siglip_checkpoint
from npgemma.checkpoints import vit as vit_checkpoint
from npgemma.models import clip, siglip, vit

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")
from make_fixtures import truth  # noqa: E402
from torch_logits import FLOAT32_RATIO, FLOAT64_SHARE  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

VISION = dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, num_hidden_layers=3, image_size=14)
VISION |= dict(patch_size=4)
TEXT = dict(hidden_size=20, intermediate_size=28, num_attention_heads=4, num_hidden_layers=2, vocab_size=50)
TEXT |= dict(max_position_embeddings=6)
PAIRS = 12
NOISE = 0.5
F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
OUTPUTS = ("image_embeds", "text_embeds", "logits_per_image")

SIGLIP = SimpleNamespace(
    config=transformers.SiglipConfig(vision_config=VISION, text_config=TEXT | dict(projection_size=16)),
    model=transformers.SiglipModel,
    checkpoint=siglip_checkpoint,
    functions=siglip,
)


def clip_case(act, end):
    """A CLIP with an activation, and what its config says the end token is."""
    return SimpleNamespace(
        config=transformers.CLIPConfig(
            vision_config=VISION | dict(hidden_act=act),
            text_config=TEXT | dict(hidden_act=act, eos_token_id=end),
            projection_dim=10,
        ),
        model=transformers.CLIPModel,
        checkpoint=clip_checkpoint,
        functions=clip,
    )


PAIRS_OF_TOWERS = {
    "SigLIP": SIGLIP,
    "CLIP, quick_gelu, eos 2": clip_case("quick_gelu", 2),
    "CLIP, gelu, eos 49": clip_case("gelu", 49),
}


def random_model(make, config, folder):
    """transformers' model in float32 and in float64, of which every parameter is noise, saved as a folder."""
    torch.manual_seed(3)
    config._attn_implementation = "eager"
    single = make(config).eval()
    with torch.no_grad():
        for x in single.parameters():
            x.copy_(torch.randn_like(x) * NOISE)
    single.save_pretrained(folder)
    return single, copy.deepcopy(single).double()


def read(checkpoint, folder):
    """npgemma's weights of a folder, in float32 and in float64."""
    config = checkpoint.read_config(folder)
    tensors = checkpoint.read_tensors(folder, config)
    return {dtype: checkpoint.weights(tensors, config, dtype) for dtype in (F32, F64)}


def agree(ours, theirs, exact, name, ratios):
    """Each is float32 and float64 outputs by name: ours equals the float64 truth, and is as near to it in float32."""
    for output, truth_of_it in exact.items():
        error = np.abs(theirs[output] - truth_of_it)
        np.testing.assert_allclose(
            ours[F64][output], truth_of_it, rtol=0, atol=FLOAT64_SHARE * float(error.max()), err_msg=output, strict=True
        )
        assert ours[F32][output].dtype == np.float32
        rows = [np.sqrt(np.square(x - truth_of_it).mean(-1)) for x in (ours[F32][output], theirs[output])]
        ratio = ratios[f"{name}, {output}"] = float(np.median(rows[0]) / np.median(rows[1]))
        assert ratio <= FLOAT32_RATIO, output


@pytest.mark.parametrize("name", PAIRS_OF_TOWERS)
def test_embeddings_logits_and_loss_equal_those_of_transformers(name, ratios, tmp_path):
    case = PAIRS_OF_TOWERS[name]
    single, double = random_model(case.model, case.config, tmp_path)
    rng = np.random.default_rng(1)
    pixels = rng.uniform(-1, 1, (PAIRS, 3, 14, 14)).astype(np.float32)
    ids = rng.integers(0, 49, (PAIRS, 6))
    ids[:, 4:] = 49
    with torch.no_grad():
        inputs = dict(input_ids=torch.from_numpy(ids), return_loss=True)
        theirs = single(pixel_values=torch.from_numpy(pixels), **inputs)
        with truth():
            exact = double(pixel_values=torch.from_numpy(pixels).double(), **inputs)
    ours = {}
    for dtype, p in read(case.checkpoint, tmp_path).items():
        images = case.functions.encode_images(p, pixels.astype(dtype))
        texts = case.functions.encode_texts(p, ids, dtype)
        ours[dtype] = dict(zip(OUTPUTS, (images, texts, case.functions.logits(p, images, texts)), strict=True))
    agree(ours, *({key: out[key].numpy() for key in OUTPUTS} for out in (theirs, exact)), name, ratios)
    loss = case.functions.loss(p, images, texts)
    assert loss == pytest.approx(float(exact.loss), rel=1e-12)


@pytest.mark.parametrize(("act", "eps"), [("gelu", 1e-12), ("gelu_pytorch_tanh", 1e-6)])
def test_the_logits_of_a_vit_equal_those_of_transformers(act, eps, ratios, tmp_path):
    """With the arithmetic of Hugging Face's weights, and with that of the .npz files."""
    config = transformers.ViTConfig(**VISION, hidden_act=act, layer_norm_eps=eps, num_labels=5)
    single, double = random_model(transformers.ViTForImageClassification, config, tmp_path)
    pixels = np.random.default_rng(1).uniform(-1, 1, (PAIRS, 3, 14, 14)).astype(np.float32)
    with torch.no_grad():
        theirs = single(torch.from_numpy(pixels)).logits.numpy()
        with truth():
            exact = double(torch.from_numpy(pixels).double()).logits.numpy()
    weights = read(vit_checkpoint, tmp_path)
    ours = {dtype: {"logits": vit.forward(p, pixels.astype(dtype))} for dtype, p in weights.items()}
    agree(ours, {"logits": theirs}, {"logits": exact}, f"ViT, {act}", ratios)


ENCODERS = {
    "SigLIP": (SIGLIP.config, SIGLIP.model, siglip_checkpoint, siglip, siglip.encode_images),
    "CLIP": (clip_case("gelu", 49).config, transformers.CLIPModel, clip_checkpoint, clip, clip.encode_images),
    "ViT": (
        transformers.ViTConfig(**VISION, num_labels=5),
        transformers.ViTForImageClassification,
        vit_checkpoint,
        vit,
        vit.forward,
    ),
}


@pytest.mark.parametrize(("height", "width"), [(22, 9), (12, 16)])
@pytest.mark.parametrize("name", ENCODERS)
def test_resized_positions_are_those_of_transformers(name, height, width, tmp_path):
    """For pictures that are larger, smaller or not square."""
    config, model, checkpoint, functions, run = ENCODERS[name]
    _, double = random_model(model, config, tmp_path)
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, 3, height, width))
    inputs = dict(pixel_values=torch.from_numpy(pixels), interpolate_pos_encoding=True)
    with torch.no_grad(), truth():
        if name == "ViT":
            exact = double(**inputs).logits
        else:
            exact = double.get_image_features(**inputs).pooler_output
            exact = exact / exact.norm(dim=-1, keepdim=True)
    p = functions.resized(read(checkpoint, tmp_path)[F64], height // 4, width // 4)
    assert_agrees(run(p, pixels), exact.numpy())
