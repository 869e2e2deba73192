"""generation_config.json, where transformers looks for the tokens that end an answer before it looks in config.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from npgemma.errors import BadModel
from npgemma.io.model_folder import member
from npgemma.io.strict_json import Section, find_section, words

GENERATION_CONFIG = "generation_config.json"

# Keys by which transformers changes a greedy answer, and their values that change nothing. npgemma does none of them.
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "bad_words_ids": ([],),
    "sequence_bias": ([], {}),
    "forced_bos_token_id": (),
    "forced_eos_token_id": ([],),
    "force_words_ids": ([],),
    "constraints": ([],),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "stop_strings": ([], ""),
    "guidance_scale": (1,),
    "token_healing": (False,),
    "watermarking_config": (),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "custom_generate": (),
}

# Keys that do not matter: npgemma's own options decide the length of an answer, sampling and beams; the prompt's <bos>
# and padding come from elsewhere; the rest is about speed, or about what is returned besides the answer.
HARMLESS = words("""
    max_length max_new_tokens max_time do_sample temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff
    num_beams num_beam_groups diversity_penalty early_stopping length_penalty num_return_sequences use_mtp
    renormalize_logits remove_invalid_values low_memory
    bos_token_id pad_token_id decoder_start_token_id
    use_cache cache_implementation cache_config max_cache_len return_legacy_cache compile_config disable_compile
    continuous_batching_config prefill_chunk_size
    is_assistant num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold
    prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit assistant_lookbehind target_lookbehind
    assistant_ensemble_weight speculation_type
    output_attentions output_hidden_states output_scores output_logits return_dict_in_generate generation_kwargs
    transformers_version _from_model_config _commit_hash _original_object_hash
""")
KEYS = HARMLESS | WITHOUT_EFFECT.keys()


def read_end_tokens(
    folder: Path, config: Sequence[Section], default: tuple[int, ...], vocab_size: int
) -> tuple[tuple[int, ...], dict[str, Section]]:
    """The tokens that end an answer, and the file that they were read from, if the folder has it.

    Without it they are `default`, and the settings for generation in the sections of config.json are in force. BadModel
    as for `check`.
    """
    for each in config:
        each.ignore(KEYS)
    s = find_section(member(folder, GENERATION_CONFIG))
    for each in config if s is None else [s]:
        check(each)
    if s is None:
        return default, {}
    return s.tokens("eos_token_id", default, vocab_size - 1), {GENERATION_CONFIG: s}


def check(s: Section) -> None:
    """BadModel, with file and key, if a key changes the answers of transformers and npgemma does not do the same."""
    s.ignore(HARMLESS)
    for key, allowed in WITHOUT_EFFECT.items():
        value = s.get(key)
        if value is not None and value not in allowed:
            what = "which changes answers in transformers and which npgemma does not support"
            raise BadModel(f"{s.where}: {key} is {value!r}, {what}; remove the key to get the answers without it")
