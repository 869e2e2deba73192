"""Gemma 1, 2 and 3 against transformers' classes: random configs, every parameter overwritten with noise."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from npgemma.checkpoints import gemma as checkpoint
from npgemma.checkpoints.gemma_config import LANGUAGE_MODELS
from npgemma.checkpoints.layout import Part, make_layout
from npgemma.models.gemma import logits, new_caches
from npgemma.models.prefix_lm import causal_prompt, prefill, step

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")
from make_fixtures import truth  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 40,
    "vocab_size": 61,
}
BITE = {"query_pre_attn_scalar": 6, "sliding_window": 5}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
ROPE3 = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
FAMILIES = {
    "gemma": (transformers.GemmaConfig, transformers.GemmaForCausalLM, {}),
    "gemma2": (transformers.Gemma2Config, transformers.Gemma2ForCausalLM, BITE | CAPS),
    "gemma3_text": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM, BITE | {"rope_parameters": ROPE3}),
}
TOKENS, STEPS = 9, 40
NOISE = 0.5


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """The config, npgemma's weights and transformers' model of one family, in float64."""
    make_config, make_model, more = FAMILIES[request.param]
    torch.manual_seed(3)
    with truth(), torch.no_grad():
        theirs = make_model(make_config(**SIZES, **more, attn_implementation="eager", dtype=torch.float64)).eval()
        for x in theirs.parameters():
            x.copy_(torch.randn_like(x) * NOISE)
    fields = {name: value for name, value in (SIZES | more).items() if name != "rope_parameters"}
    factor = 8.0 if request.param == "gemma3_text" else 1.0
    config = replace(LANGUAGE_MODELS[request.param], **fields, rope_factor=factor)
    table = checkpoint.HF if request.param == "gemma" else checkpoint.HF_POST_NORMS
    layout = make_layout(checkpoint.blank(config, tied=True), Part(table, checkpoint.sizes(config)))
    tensors = {name: x.detach().numpy() for name, x in theirs.state_dict().items() if name != "lm_head.weight"}
    layout.check(tensors, "the model")
    return SimpleNamespace(config=config, weights=exact(layout, tensors), theirs=theirs)


def exact(layout, tensors):
    """The weights, with norms in float64 too."""
    from npgemma.layers.tree import map_tree

    homes = {each.leaf.path: each for each in layout.stored}
    return map_tree(
        lambda leaf: homes[leaf.path].to_field(homes[leaf.path].part(tensors[homes[leaf.path].name])), layout.skeleton
    )


def test_logits_equal_those_of_transformers_past_the_window(family):
    ids = np.random.default_rng(1).integers(0, SIZES["vocab_size"], TOKENS + STEPS)
    with truth(), torch.no_grad():
        expected = family.theirs(torch.from_numpy(ids)[None]).logits[0].numpy()
    p = family.weights
    prompt = causal_prompt(p, ids[:TOKENS], np.dtype(np.float64))
    caches = [new_caches(p, len(ids), prompt.dtype)]
    found = [logits(p, prefill(p, [prompt], caches))]
    found += [step(p, ids[t : t + 1], caches) for t in range(TOKENS, len(ids))]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=0, atol=1e-12 * scale, strict=True)
