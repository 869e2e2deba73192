"""The keys that every section of a config.json of transformers may have, whatever the model."""

from npgemma.errors import BadModel
from npgemma.io.strict_json import Section, words

# Keys that do not matter: who wrote the file, the dtype of the weights (which they state themselves), what transformers
# returns, and other tasks.
BOOKKEEPING = words("""
    architectures transformers_version _name_or_path name_or_path _commit_hash auto_map torch_dtype dtype
    attn_implementation _attn_implementation _attn_implementation_internal _attn_implementation_autoset
    _flash_attn_2_enabled
    _experts_implementation _experts_implementation_internal tie_last_hidden_states
    return_dict output_attentions output_hidden_states output_scores return_dict_in_generate
    torchscript use_bfloat16 tf_legacy_loss pruned_heads chunk_size_feed_forward
    is_decoder is_encoder_decoder add_cross_attention cross_attention_hidden_size tie_encoder_decoder
    decoder_start_token_id tokenizer_class prefix sep_token_id
    finetuning_task task_specific_params problem_type num_labels id2label label2id
    unsloth_fixed unsloth_version
""")
# Where bitsandbytes, GPTQ, AWQ and others, mlx, and compressed-tensors say that weights are quantised.
QUANTISED = ("quantization_config", "quantization", "compression_config")
# The names of one activation, gelu with a tanh.
TANH_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_python_tanh", "gelu_accurate")


def check_common(s: Section) -> None:
    """BadModel, with file and key, for quantised weights and for layers that differ."""
    s.ignore(BOOKKEEPING)
    for key in QUANTISED:
        if value := s.get(key):
            kind = f" ({value['quant_method']})" if isinstance(value, dict) and "quant_method" in value else ""
            what = f"{key}{kind} says that the weights are quantised, and npgemma does not read such weights"
            raise BadModel(f"{s.where}: {what}; use the unquantised checkpoint that they were made from")
    s.require("per_layer_config", {})
