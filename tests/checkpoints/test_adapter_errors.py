"""LoRA adapters that are refused: other formulas, damaged files, tensors that do not fit."""

import numpy as np
import pytest
import tiny
from adapters import BIAS, NORM, PICTURE, QUERY, TABLE, halves, stored_tensors, write_adapter

import npgemma
from npgemma.checkpoints.adapter import read_adapter
from npgemma.commands.cli import main
from npgemma.errors import BadModel

# ----------------------------------------------------------------------------------------------------------- refusals

OTHER_FORMULAS = {
    "transposed": dict(fan_in_fan_out=True),
    "LoHa": dict(peft_type="LOHA"),
    "AdaLoRA": dict(peft_type="ADALORA"),
    "prompt tuning": dict(peft_type="PROMPT_TUNING"),
    "lower case": dict(peft_type="lora"),
    "a number": dict(peft_type=3),
    "biases of B": dict(lora_bias=True),
    "layers repeated": dict(layer_replication=[[0, 2], [1, 3]]),
    "tied explicitly": dict(ensure_weight_tying=True),
    "only after certain tokens": dict(alora_invocation_tokens=[108]),
    "PiSSA": dict(init_lora_weights="pissa"),
    "PiSSA, iterated": dict(init_lora_weights="pissa_niter_16"),
    "OLoRA": dict(init_lora_weights="olora"),
    "CorDA": dict(init_lora_weights="corda"),
    "LoftQ": dict(init_lora_weights="loftq"),
    "a router": dict(arrow_config={"top_k": 2}),
}


@pytest.mark.parametrize("config", OTHER_FORMULAS.values(), ids=OTHER_FORMULAS)
def test_options_that_change_the_formula_are_refused(config, tmp_path):
    """Merged as plain LoRA, such an adapter would give wrong answers without an error.

    PiSSA and similar initialisations change the base model, and the adapter's file does not say how.
    """
    folder = write_adapter(tmp_path, stored_tensors({QUERY: halves(QUERY, 2)}), **config)
    (key,) = config
    with pytest.raises(BadModel, match=rf"adapter_config\.json: {key} is .*, which npgemma does not support"):
        read_adapter(folder)


PLAIN = {
    "as PEFT writes them": dict(
        use_dora=False, fan_in_fan_out=False, lora_bias=False, layer_replication=None, ensure_weight_tying=False
    ),
    "default initialisation": dict(init_lora_weights=True),
    "gaussian": dict(init_lora_weights="gaussian"),
    "no initialisation": dict(init_lora_weights=False),
    "EVA": dict(init_lora_weights="eva"),
    "an old file": dict(r=None, lora_alpha=None),
    "null and empty": dict(alpha_pattern=None, rank_pattern={}, alora_invocation_tokens=None, arrow_config=None),
    "options of training": dict(
        lora_dropout=0.1, inference_mode=True, target_modules=["q_proj"], task_type="CAUSAL_LM"
    ),
}


@pytest.mark.parametrize("config", PLAIN.values(), ids=PLAIN)
def test_options_that_leave_the_formula_unchanged_are_accepted(config, tmp_path):
    folder = write_adapter(tmp_path, stored_tensors({QUERY: halves(QUERY, 2)}), **config)
    assert read_adapter(folder).added[f"{QUERY}.weight"].scale == 4


CONFIGS = {
    "empty": b"",
    "not JSON": b"lora_alpha: 8",
    "cut off": b'{"peft_type": "LORA", "lora_al',
    "a list": b"[]",
    "null": b"null",
    "NaN": b'{"lora_alpha": NaN}',
    "infinite": b'{"lora_alpha": 1e999}',
    "one key twice": b'{"lora_alpha": 1, "lora_alpha": 2}',
    "nested": b'{"a":' * 100_000,
    "alpha a string": b'{"lora_alpha": "8"}',
    "alpha a list": b'{"lora_alpha": [8]}',
    "alpha true": b'{"lora_alpha": true}',
    "alpha zero": b'{"lora_alpha": 0}',
    "alpha negative": b'{"lora_alpha": -1}',
    "rslora a string": b'{"use_rslora": "yes"}',
    "rslora a number": b'{"use_rslora": 1}',
    "patterns a list": b'{"alpha_pattern": ["q_proj"]}',
    "a pattern's alpha a string": b'{"alpha_pattern": {"q_proj": "8"}}',
    "a pattern's alpha zero": b'{"alpha_pattern": {"q_proj": 0}}',
    "too large": b'{"a": "' + b"a" * 10_000_001 + b'"}',
}


@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS)
def test_a_damaged_config_is_refused_and_named(content, tmp_path):
    folder = write_adapter(tmp_path, stored_tensors({QUERY: halves(QUERY, 2)}))
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(BadModel, match=r"adapter_config\.json"):
        read_adapter(folder)


def names(**tensors: np.ndarray) -> dict[str, np.ndarray]:
    """Tensors of one module by the ends of their names, A for lora_A.weight."""
    module = f"base_model.model.{tiny.spell(QUERY, 'saved 5.x')}"
    return {f"{module}.lora_{end}{'' if 'embedding' in end else '.weight'}": x for end, x in tensors.items()}


A, B = halves(QUERY, 3)
DAMAGED = {
    "no A": names(B=B),
    "no B": names(A=A),
    "half of a table's": names(embedding_A=B.T),
    "other ranks": names(A=A[:2], B=B),
    "A transposed": names(A=A.T, B=B),
    "B transposed": names(A=A, B=B.T),
    "no rank at all": names(A=A[:0], B=B[:, :0]),
    "A a vector": names(A=A[0], B=B),
    "a convolution": names(A=A.reshape(3, 11, 1, 1), B=B.reshape(60, 3, 1, 1)),
}


@pytest.mark.parametrize("tensors", DAMAGED.values(), ids=DAMAGED)
def test_halves_that_do_not_fit_each_other_are_refused(tensors, tmp_path):
    folder = write_adapter(tmp_path, tensors)
    with pytest.raises(BadModel, match=r"adapter_model\.safetensors: .*the update of .*q_proj is not a matrix lora_A"):
        read_adapter(folder)


def test_an_update_of_the_patch_convolution_is_refused(tmp_path):
    """Its halves are convolutions: A [r, 3, y, x], B [out, r, 1, 1]."""
    name = f"base_model.model.{tiny.spell('vision_tower.embeddings.patch_embedding', 'saved 5.x')}"
    a, b = np.ones((2, 3, 7, 7), np.float32), np.ones((12, 2, 1, 1), np.float32)
    folder = write_adapter(tmp_path, {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b})
    with pytest.raises(BadModel, match=r"the update of \S+patch_embedding is not a matrix"):
        read_adapter(folder)


UNFIT = {
    "a wider input": stored_tensors({QUERY: (np.ones((2, 12), np.float32), np.ones((60, 2), np.float32))}),
    "fewer outputs": stored_tensors({QUERY: (np.ones((2, 11), np.float32), np.ones((59, 2), np.float32))}),
    "one output, which would broadcast": stored_tensors({QUERY: (A, B[:1])}),
    "a layer too many": stored_tensors({"language_model.model.layers.3.self_attn.q_proj": (A, B)}),
    "an unknown module": stored_tensors({"language_model.model.layers.1.self_attn.qkv_proj": (A, B)}),
    "a norm, which is not a matrix": stored_tensors({"language_model.model.layers.1.input_layernorm": (A, B)}),
    "the convolution as a matrix": stored_tensors(
        {"vision_tower.embeddings.patch_embedding": (np.ones((2, 147), np.float32), np.ones((12, 2), np.float32))}
    ),
    "another bias": stored_tensors({}, {BIAS: np.ones(13, np.float32)}),
    "a bias of one number": stored_tensors({}, {BIAS: np.ones(1, np.float32)}),
    "a norm as a row": stored_tensors({}, {NORM: np.ones((1, 11), np.float32)}),
    "an unknown tensor": stored_tensors(
        {}, {"language_model.model.layers.1.mlp.gate_proj.bias": np.ones(23, np.float32)}
    ),
    "a magnitude of DoRA": names(A=A, B=B)
    | {f"base_model.model.{tiny.spell(QUERY, 'saved 5.x')}.lora_magnitude_vector": np.ones(60, np.float32)},
    "rows of certain tokens": stored_tensors(
        {}, {"language_model.model.embed_tokens.token_adapter.trainable_tokens_delta": np.ones((2, 11), np.float32)}
    ),
    "a smaller table": stored_tensors({}, {TABLE: np.ones((60, 11), np.float32)}),
    "a wider table": stored_tensors({}, {TABLE: np.ones((61, 12), np.float32)}),
}


@pytest.mark.parametrize("tensors", UNFIT.values(), ids=UNFIT)
def test_tensors_that_do_not_fit_the_model_are_refused(tensors, tmp_path):
    """The message has both shapes, the name that the model lacks, or the option that does not fit."""
    folder = write_adapter(tmp_path / "adapter", tensors)
    says = r"is for another model: \S+ has shape .*, the|changes \S+, which the model does not have|lora_mag|token_ind"
    with pytest.raises(BadModel, match=says):
        npgemma.load(tiny.write_folder(tmp_path / "model"), adapter=folder)


def test_pickled_weights_are_refused_by_name(tmp_path):
    folder = write_adapter(tmp_path, {})
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(
        BadModel, match=r"adapter_model\.bin is a pickle, which npgemma does not read; save the adapter as"
    ):
        read_adapter(folder)


def test_pickled_weights_beside_safetensors_are_ignored(tmp_path):
    folder = write_adapter(tmp_path, stored_tensors({QUERY: (A, B)}))
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04")
    assert read_adapter(folder).changed == {f"{QUERY}.weight"}


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(name, tmp_path):
    folder = write_adapter(tmp_path, stored_tensors({QUERY: (A, B)}))
    (folder / name).unlink()
    with pytest.raises(BadModel, match=f"{folder / name} is missing"):
        read_adapter(folder)


@pytest.mark.parametrize("content", [b"", b"damaged", None], ids=["empty", "damaged", "cut off"])
def test_damaged_weights_are_refused_and_named(content, tmp_path):
    path = write_adapter(tmp_path, stored_tensors({QUERY: (A, B)})) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    with pytest.raises(BadModel, match=f"{path} is (empty|not a valid safetensors file)"):
        read_adapter(tmp_path)


def test_a_tensor_name_cannot_control_a_terminal(tmp_path, capsys):
    folder = write_adapter(tmp_path, {"\x1b[2J.lora_A.weight": A, "\x1b]0;x\x07": A[0]})
    assert main(["ocr", str(PICTURE), "--adapter", str(folder)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("npgemma: ")
    assert err.rstrip("\n").isprintable()
