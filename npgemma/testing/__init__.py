"""Properties that every model of a kind has, for the one you are writing, whatever it is written in.

A model is any callable from NumPy arrays to NumPy arrays. hypothesis draws small models and their inputs, a folder in
Hugging Face layout is what your port loads, and each `check_` holds one property or says which row breaks it. Of a
PaliGemma:

    from hypothesis import given, strategies as st
    from npgemma import testing

    @given(st.data(), testing.models())
    def test_cache(data, model):
        port = my_port.load(model.write(some_folder))      # config.json and model.safetensors
        row = data.draw(testing.token_rows(model.config))
        testing.check_cached_decoding(port.logits, port.decode, row)

Of a SigLIP, a CLIP or a ViT:

    @given(st.data(), testing.encoders("clip"))
    def test_texts(data, model):
        port = my_port.load(model.write(some_folder))
        ids = data.draw(testing.text_ids(model.config))
        testing.check_behind_the_end(port.encode_texts, ids, model.config.eos_token_id)

What the callables of a PaliGemma take and return stands in `paligemma_properties`, those of encoders in
`encoder_properties`. hypothesis comes with `pip install 'npgemma[test]'`.
"""

from npgemma.checkpoints.paligemma import config_json, hf_layout
from npgemma.testing.draws import pictures, prompts
from npgemma.testing.encoder_properties import (
    check_batch,
    check_behind_the_end,
    check_length,
    check_padding_seen,
    check_patches_permuted,
    check_scores_of_cosines,
    check_tokens_seen,
)
from npgemma.testing.encoders import DrawnEncoder, encoder_configs, encoders, pixel_rows, text_ids
from npgemma.testing.folders import layout_tensors, save_tensors
from npgemma.testing.paligemma import (
    DrawnModel,
    Row,
    configs,
    decoder_configs,
    draw_row,
    models,
    random_tensors,
    token_rows,
    weights,
    write_folder,
)
from npgemma.testing.paligemma_properties import (
    check_cached_decoding,
    check_grouped_heads,
    check_position_shift,
    check_prefix_bidirectionality,
    check_rows_independent,
    check_suffix_causality,
)
from npgemma.testing.tolerances import ROUNDINGS, assert_rows_equal, tolerance

__all__ = [
    "ROUNDINGS",
    "DrawnEncoder",
    "DrawnModel",
    "Row",
    "assert_rows_equal",
    "check_batch",
    "check_behind_the_end",
    "check_cached_decoding",
    "check_grouped_heads",
    "check_length",
    "check_padding_seen",
    "check_patches_permuted",
    "check_position_shift",
    "check_prefix_bidirectionality",
    "check_rows_independent",
    "check_scores_of_cosines",
    "check_suffix_causality",
    "check_tokens_seen",
    "config_json",
    "configs",
    "decoder_configs",
    "draw_row",
    "encoder_configs",
    "encoders",
    "hf_layout",
    "layout_tensors",
    "models",
    "pictures",
    "pixel_rows",
    "prompts",
    "random_tensors",
    "save_tensors",
    "text_ids",
    "token_rows",
    "tolerance",
    "weights",
    "write_folder",
]
