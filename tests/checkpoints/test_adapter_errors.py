"""LoRA adapters that are refused: other formulas, damaged files, tensors that do not fit."""

import language_folders as small
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
    "LoHa": dict(peft_type="LOHA"),
    "AdaLoRA": dict(peft_type="ADALORA"),
    "prompt tuning": dict(peft_type="PROMPT_TUNING"),
    "lower case": dict(peft_type="lora"),
    "a number": dict(peft_type=3),
    "layers repeated": dict(layer_replication=[[0, 2], [1, 3]]),
    "QALoRA": dict(use_qalora=True),
    "BD-LoRA": dict(use_bdlora={"nblocks": 2}),
    "KaSA": dict(kasa_config={}),
    "MonteCLoRA": dict(monteclora_config={"num_samples": 2}),
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
    "transposed, which PEFT ignores for linear layers": dict(fan_in_fan_out=True),
    "tied explicitly, which PEFT saves as two": dict(ensure_weight_tying=True),
    "biases of B where there are none": dict(lora_bias=True),
    "options that select modules": dict(exclude_modules=["lm_head"], layers_to_transform=[0], layers_pattern="layers"),
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
    plain = ("embedding_A", "embedding_B", "magnitude_vector", "B.bias")
    return {f"{module}.lora_{end}{'' if end in plain else '.weight'}": x for end, x in tensors.items()}


A, B = halves(QUERY, 3)
DAMAGED = {
    "no A": names(B=B),
    "no B": names(A=A),
    "B's end misspelled": {**names(A=A), f"base_model.model.{tiny.spell(QUERY, 'saved 5.x')}.lora_B.weigth": B},
    "half of a table's": names(embedding_A=B.T),
    "other ranks": names(A=A[:2], B=B),
    "A transposed": names(A=A.T, B=B),
    "B transposed": names(A=A, B=B.T),
    "no rank at all": names(A=A[:0], B=B[:, :0]),
    "A a vector": names(A=A[0], B=B),
    "a number": names(A=A[0, 0], B=B),
    "both numbers": names(A=A[0, 0], B=B[0, 0]),
    "a larger convolution than PEFT's": names(A=A.reshape(3, 11, 1, 1), B=np.ones((60, 3, 2, 1), np.float32)),
}


@pytest.mark.parametrize("tensors", DAMAGED.values(), ids=DAMAGED)
def test_halves_that_do_not_fit_each_other_are_refused(tensors, tmp_path):
    folder = write_adapter(tmp_path, tensors)
    with pytest.raises(BadModel, match=r"adapter_model\.safetensors: .*the update of .*q_proj is not a matrix lora_A"):
        read_adapter(folder)


UNFIT = {
    "a wider input": stored_tensors({QUERY: (np.ones((2, 12), np.float32), np.ones((60, 2), np.float32))}),
    "fewer outputs": stored_tensors({QUERY: (np.ones((2, 11), np.float32), np.ones((59, 2), np.float32))}),
    "one output, which would broadcast": stored_tensors({QUERY: (A, B[:1])}),
    "a norm, which is not a matrix": stored_tensors({"language_model.model.layers.1.input_layernorm": (A, B)}),
    "the convolution as a matrix": stored_tensors(
        {
            "vision_tower.vision_model.embeddings.patch_embedding": (
                np.ones((2, 147), np.float32),
                np.ones((12, 2), np.float32),
            )
        }
    ),
    "a matrix as a convolution": names(A=A.reshape(3, 11, 1, 1), B=B.reshape(60, 3, 1, 1)),
    "another bias": stored_tensors({}, {BIAS: np.ones(13, np.float32)}),
    "a bias of one number": stored_tensors({}, {BIAS: np.ones(1, np.float32)}),
    "a norm as a row": stored_tensors({}, {NORM: np.ones((1, 11), np.float32)}),
    "a wider table": stored_tensors({}, {TABLE: np.ones((61, 12), np.float32)}),
    "one that differs, and one that the model lacks": stored_tensors(
        {"language_model.model.layers.3.self_attn.q_proj": (A, B), QUERY: (A, B[:1])}
    ),
}


@pytest.mark.parametrize("tensors", UNFIT.values(), ids=UNFIT)
def test_tensors_of_another_shape_are_refused_with_both_shapes(tensors, tmp_path):
    folder = write_adapter(tmp_path / "adapter", tensors)
    with pytest.raises(BadModel, match=r"is for another model: \S+ has shape \(.*\), the adapter changes one of \("):
        npgemma.load(tiny.write_folder(tmp_path / "model"), adapter=folder)


LACKING = {
    "a layer too many": (
        stored_tensors({"language_model.model.layers.3.self_attn.q_proj": (A, B)}),
        "layers.3.self_attn.q_proj.weight; similar names in the model: language_model.model.layers.",
    ),
    "an unknown module": (
        stored_tensors({"language_model.model.layers.1.self_attn.qkv_proj": (A, B)}),
        "layers.1.self_attn.qkv_proj.weight; similar names in the model: language_model.model.layers.1.self_attn.",
    ),
    "an unknown tensor": (
        stored_tensors({}, {"language_model.model.layers.1.mlp.gate_proj.bias": np.ones(23, np.float32)}),
        "layers.1.mlp.gate_proj.bias; similar names in the model: language_model.model.layers.1.mlp.gate_proj.weight",
    ),
    "nothing alike": (stored_tensors({}, {"x": np.ones(2, np.float32)}), "does not have: x"),
    "many": (
        stored_tensors({f"transformer.h.{i}.attn.c_attn": (A, B) for i in range(12)}),
        "transformer.h.11.attn.c_attn.weight, transformer.h.2.attn.c_attn.weight and 7 more",
    ),
}


@pytest.mark.parametrize(("tensors", "message"), LACKING.values(), ids=LACKING)
def test_tensors_that_the_model_lacks_are_named_with_names_like_theirs(tensors, message, tmp_path):
    folder = write_adapter(tmp_path / "adapter", tensors)
    with pytest.raises(BadModel, match="changes tensors that the model does not have: ") as error:
        npgemma.load(tiny.write_folder(tmp_path / "model"), adapter=folder)
    assert message in str(error.value)


def test_an_adapter_that_changes_nothing_is_refused(tmp_path):
    """It is empty, or changes the vision tower alone, which a language model does not have."""
    tower = stored_tensors({"vision_tower.vision_model.encoder.layers.0.self_attn.q_proj": (A, B)})
    language = small.write_folder(tmp_path / "language", small.config_of("gemma3_text"))
    says = r"adapter_model\.safetensors contains no tensors that change this model: it was not saved completely, or is "
    for model, tensors in ((tiny.write_folder(tmp_path / "model"), {}), (language, tower)):
        with pytest.raises(BadModel, match=says):
            npgemma.load(model, adapter=write_adapter(tmp_path / "adapter", tensors))


TABLE_MODULE = "language_model.model.embed_tokens"
DELTA = stored_tensors({}, {f"{TABLE_MODULE}.token_adapter.trainable_tokens_delta": np.ones((2, 11), np.float32)})
MAGNITUDE = names(A=A, B=B, magnitude_vector=np.ones(60, np.float32))
UNCLEAR = {
    "a magnitude without DoRA": (MAGNITUDE, {}, "has the lora_magnitude_vector of .*use_dora is not true"),
    "DoRA without a magnitude": (names(A=A, B=B), {"use_dora": True}, "does not have the lora_magnitude_vector of"),
    "another magnitude": (
        names(A=A, B=B, magnitude_vector=np.ones(11, np.float32)),
        {"use_dora": True},
        r"lora_magnitude_vector of \S+ has shape \(11,\), not \(60,\)",
    ),
    "DoRA with biases of B": (
        MAGNITUDE | names(**{"B.bias": np.ones(60, np.float32)}),
        {"use_dora": True},
        "lora_bias",
    ),
    "rows without ids": (DELTA, {}, "trainable_token_indices is None"),
    "rows with other ids": (DELTA, {"trainable_token_indices": [1, 2, 3]}, r"trainable_token_indices is \[1, 2, 3\]"),
    "one id twice": (DELTA, {"trainable_token_indices": [3, 3]}, r"trainable_token_indices is \[3, 3\]"),
    "ids that are not": (DELTA, {"trainable_token_indices": [True, -1]}, r"trainable_token_indices is \[True, -1\]"),
    "ids for another": (DELTA, {"trainable_token_indices": {"wte": [1, 2]}}, "trainable_token_indices is None"),
    "ids without rows": (names(A=A, B=B), {"trainable_token_indices": [3]}, "has no trainable_tokens_delta"),
    "rows with an update of the table": (
        DELTA | stored_tensors({TABLE_MODULE: halves(TABLE_MODULE, 2)}),
        {"trainable_token_indices": [3, 5]},
        "trainable_token_indices together with another change of the same table",
    ),
    "rows with an update of the tied head": (
        DELTA | {"lm_head.lora_A.weight": np.ones((2, 11), "f4"), "lm_head.lora_B.weight": np.ones((61, 2), "f4")},
        {"trainable_token_indices": [3, 5]},
        "or of the head tied to it is not supported",
    ),
    "a gap in new tokens": (DELTA, {"trainable_token_indices": [3, 62]}, r"has the new tokens \[62\], but the table"),
    "a larger table alone": (
        stored_tensors({}, {TABLE: np.ones((62, 11), np.float32)}),
        {"modules_to_save": ["embed_tokens"]},
        r"embed_tokens\.weight has 62 rows, lm_head\.weight has 61 rows; save the adapter with save_embedding_layers",
    ),
    "parameters not a list": (names(A=A, B=B), {"target_parameters": 3}, "target_parameters is 3, not a list of names"),
    "parameters not names": (names(A=A, B=B), {"target_parameters": [3]}, r"target_parameters is \[3\], not a list"),
    "a bias of A": (names(A=A, B=B) | {"x.lora_A.bias": A[0], "x.lora_A.weight": A}, {}, "not know: lora_A.bias"),
    "halves of a matrix and of a table": (names(A=A, B=B, embedding_A=B.T), {}, "does not know: lora_A"),
    "one half twice": (
        names(A=A, B=B) | {f"base_model.model.{tiny.spell(QUERY, 'saved 5.x')}.lora_A.default.weight": A + 1},
        {},
        r"two spellings of the tensor \S+q_proj\.lora_A",
    ),
    "modules that are not names": (
        stored_tensors({}, {TABLE: A}),
        {"modules_to_save": "all"},
        "modules_to_save is 'all'",
    ),
    "two adapters": (
        {f"lm_head.lora_{half}.{name}.weight": x for half, x in (("A", A), ("B", B)) for name in "xy"},
        {},
        "contains 2 adapters: x, y; save only the one that you want",
    ),
}


@pytest.mark.parametrize(("tensors", "config", "message"), UNCLEAR.values(), ids=UNCLEAR)
def test_tensors_that_do_not_fit_the_adapters_config_are_refused(tensors, config, message, tmp_path):
    folder = write_adapter(tmp_path / "adapter", tensors, **config)
    with pytest.raises(BadModel, match=message):
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
