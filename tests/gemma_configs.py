"""Configs of every family of Gemma, drawn."""

from dataclasses import replace

from hypothesis import strategies as st

from npgemma.checkpoints.gemma_config import FULL, LANGUAGE_MODELS, SLIDING, GemmaConfig, family_kinds

FACTORS = st.sampled_from([1.0, 2.5, 8.0])
CAPS = st.sampled_from([None, 1.5, 30.0])
THETAS = st.sampled_from([100.0, 1e4, 1e6])


@st.composite
def gemma_configs(draw: st.DrawFn, families: tuple[str, ...] = tuple(LANGUAGE_MODELS)) -> GemmaConfig:
    """A small config with every value of its family drawn; layer_types are stated unless they are the family's."""
    kind = draw(st.sampled_from(families))
    keys, layers = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    config = replace(
        LANGUAGE_MODELS[kind],
        num_attention_heads=(heads := keys * draw(st.integers(1, 3))),
        num_key_value_heads=keys,
        hidden_size=heads * draw(st.integers(2, 5)),  # transformers wants a multiple, though nothing depends on it
        intermediate_size=draw(st.integers(5, 40)),
        num_hidden_layers=layers,
        head_dim=2 * draw(st.integers(2, 6)),
        vocab_size=draw(st.integers(30, 70)),
        max_position_embeddings=draw(st.integers(50, 512)),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-5])),
        rope_theta=draw(THETAS),
        rope_factor=draw(FACTORS),
    )
    if config.rope_local_base_freq is not None:
        config = replace(config, rope_local_base_freq=draw(THETAS))
    if config.sliding_window is None:
        return config
    kinds = tuple(draw(st.lists(st.sampled_from([FULL, SLIDING]), min_size=layers, max_size=layers)))
    return replace(
        config,
        query_pre_attn_scalar=draw(st.integers(1, 300)),
        attn_logit_softcapping=draw(CAPS) if kind == "gemma2" else None,
        final_logit_softcapping=draw(CAPS),
        sliding_window=draw(st.integers(1, 50)),
        layer_types=() if kinds == family_kinds(kind, layers) else kinds,
    )
