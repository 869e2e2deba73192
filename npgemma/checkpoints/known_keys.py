"""Keys of a model folder's JSON files that npgemma does not know, so that what they ask for may be missing."""

from pathlib import Path

from npgemma.checkpoints.model_types import module_of
from npgemma.io.model_folder import member
from npgemma.io.strict_json import Section, find_section, words

SPECIAL_TOKENS = words("""
    bos_token eos_token unk_token sep_token pad_token cls_token mask_token image_token boi_token eoi_token
    additional_special_tokens extra_special_tokens
""")
# The keys of the files that describe a tokenizer. Those about <bos>, padding and truncation do not matter: the
# processor sets them itself. `chat` reads the chat template.
TOKENIZER_FILES = {
    "tokenizer_config.json": SPECIAL_TOKENS
    | words("""
        added_tokens_decoder model_specific_special_tokens
        tokenizer_class tokenizer_file processor_class auto_map backend vocab_file name_or_path special_tokens_map_file
        is_local local_files_only files_loaded _commit_hash transformers_version init_inputs use_fast verbose
        add_bos_token add_eos_token add_prefix_space legacy from_slow sp_model_kwargs spaces_between_special_tokens
        clean_up_tokenization_spaces split_special_tokens do_lower_case use_default_system_prompt
        model_max_length max_len max_length model_input_names padding_side truncation_side truncation_strategy
        pad_to_multiple_of pad_token_type_id stride
        chat_template response_template response_schema chat_control_tokens
        unsloth_fixed
    """),
    "special_tokens_map.json": SPECIAL_TOKENS,
    "chat_template.json": words("chat_template"),
}


def unknown_keys(folder: Path) -> list[str]:
    """Each unknown key with its file: "config.json: text_config.foo". BadModel for a file that cannot be read.

    The keys of added_tokens.json are tokens, and chat_template.jinja has none.
    """
    files: dict[str, Section]
    _, files = module_of(folder).read_sections(folder)
    for name, known in TOKENIZER_FILES.items():
        if s := find_section(member(folder, name)):
            s.ignore(known)
            files[name] = s
    return [f"{name}: {key}" for name, s in files.items() for key in s.unknown()]
