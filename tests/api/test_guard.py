"""Budgets, and runs and files that need too much memory: refused before anything is allocated."""

import json
import re
import tracemalloc
from pathlib import Path

import encoder_configs
import numpy as np
import pytest
import tiny
from shapecheck import ShapeError
from small_model import PICTURES

import npgemma
from npgemma.api.guard import Budget, DualEncoderGuard, PictureGuard
from npgemma.checkpoints.footprint import BASE, Footprint, Run
from npgemma.checkpoints.gemma_config import GemmaConfig
from npgemma.checkpoints.paligemma import PaliGemmaConfig, footprint, hf_layout, read_tensors
from npgemma.checkpoints.towers import VisionConfig
from npgemma.commands.cli import main
from npgemma.errors import BadModel, TooLittleMemory
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.system_memory import available_memory, size

PICTURE = npgemma.sample_picture()
MB, GB = 10**6, 10**9
ENDLESS = 10**18  # more bytes than any machine has
KNOWN = pytest.mark.skipif(available_memory() is None, reason="the available memory is not known here")

# ------------------------------------------------------------------------------------------------------------- budgets


def test_a_run_may_take_what_is_allowed_to_the_byte():
    """Weights that are in memory already count, since the limit is on all of it."""
    needed = Footprint(GB, 2 * MB, 3 * MB)
    for held in (0, GB):
        Budget(GB, held, needed.total).require(needed)
        with pytest.raises(TooLittleMemory, match="allowed"):
            Budget(GB, held, needed.total - 1).require(needed)


@pytest.mark.parametrize("held", [0, GB])
def test_a_run_may_take_what_is_available_to_the_byte(held):
    """Weights in memory are not needed again; those that are mapped count as available."""
    needed, mapped = Footprint(GB, 2 * MB, 3 * MB), GB - held
    for missing in (0, 1):
        budget, available = Budget(GB, held, mapped=mapped), needed.total - held - mapped - missing
        if missing:
            with pytest.raises(TooLittleMemory, match="available"):
                budget.require(needed, lambda mapped, available=available: available + mapped)
        else:
            budget.require(needed, lambda mapped, available=available: available + mapped)


def test_a_limit_of_ones_own_replaces_what_is_available():
    """The kernel may have more than it says, such as swap."""
    Budget(0, 0, 2 * ENDLESS).require(Footprint(ENDLESS, 0, 0), lambda _: 0)
    with pytest.raises(TooLittleMemory, match="allowed"):
        Budget(0, 0, GB).require(Footprint(GB, 0, 0), lambda _: ENDLESS)


def test_nothing_is_refused_where_the_available_memory_is_not_known():
    Budget().require(Footprint(ENDLESS, 0, 0), lambda _: None)


@KNOWN
def test_the_available_memory_is_that_of_this_machine():
    Budget().require(Footprint(0, 0, 0))
    with pytest.raises(TooLittleMemory, match="available"):
        Budget().require(Footprint(0, ENDLESS, 0))


@pytest.mark.parametrize(
    ("parts", "remedy"),
    [
        ((6, 1, 2), "use a smaller model, or weights that stay mapped (not resident)"),
        ((1, 6, 2), "use a smaller max_new_tokens, or fewer beams, samples or prompts at a time"),
        (
            (1, 2, 6),
            "use fewer or shorter prompts at a time, fewer pictures, or a model that reads them at fewer pixels",
        ),
    ],
)
def test_the_message_has_the_numbers_and_what_makes_the_largest_of_them_smaller(parts, remedy):
    needed = Footprint(*(part * GB for part in parts))
    numbers = "{}.00 GB of weights, {}.00 GB of caches, {}.00 GB of activations".format(*parts)
    with pytest.raises(TooLittleMemory) as error:
        Budget(parts[0] * GB, 0, 3 * GB).require(needed)
    assert str(error.value) == (
        f"this needs {size(needed.total)} ({numbers}), more than the 3.00 GB allowed; {remedy}, or allow more "
        "(max_memory, --max-memory)"
    )


@KNOWN
def test_the_message_has_what_is_available():
    with pytest.raises(
        TooLittleMemory, match=r"GB are available; use a smaller model, .* set a limit of your own \(max_memory, --max-"
    ):
        Budget().require(Footprint(ENDLESS, 0, 0))


@pytest.mark.parametrize(
    ("pictures", "lengths", "remedy"),
    [
        (2, [], "use a smaller batch_size (embed --batch-size), or fewer pictures or texts at a time"),
        (0, [7, 7], "use a smaller batch_size (embed --batch-size), or fewer pictures or texts at a time"),
        (1, [7], "use a model that reads pictures at fewer pixels, or shorter texts"),
    ],
)
def test_an_encoder_says_how_fewer_run_at_a_time(pictures, lengths, remedy):
    guard = DualEncoderGuard(encoder_configs.SIGLIP, np.dtype("float32"), budget=Budget(allowed=1))
    with pytest.raises(TooLittleMemory) as error:
        guard.check_memory(lengths, pictures)
    assert f"more than the 0.00 GB allowed; {remedy}, or allow more (max_memory, --max-memory)" in str(error.value)


# ---------------------------------------------------------------------------------------- refused before anything runs


@pytest.fixture
def refused_memory(capsys):
    """refused_memory(*arguments): the sentence of a command that fails for want of memory, and allocates none."""

    def refused_memory(*arguments: object) -> str:
        tracemalloc.start()
        status = main([str(argument) for argument in arguments])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        out, err = capsys.readouterr()
        assert (status, out) == (1, "")
        assert err.startswith("npgemma: this needs ")
        assert err.count("\n") == 1
        assert peak < 3 * MB  # what Python needs to read a header
        return err

    return refused_memory


@pytest.mark.parametrize("flags", [[], ["--resident"], ["--dtype", "float64"]], ids=str)
def test_a_model_that_is_too_large_is_one_sentence_and_is_not_read(flags, refused_memory):
    for command in (["ocr", PICTURE], ["score", PICTURE, "ocr", "a"], ["detect", PICTURE, "cat"]):
        assert "more than the 0.00 GB allowed; " in refused_memory(*command, "--max-memory", "1MB", *flags)


def test_a_max_memory_that_is_enough_changes_nothing(capsys):
    answers = []
    for flags in ([], ["--max-memory", "1GB"]):
        assert main(["caption", str(PICTURE), *flags]) == 0
        answers.append(capsys.readouterr())
    assert answers[0] == answers[1]


@pytest.mark.parametrize("text", ["much", "0", "-1GB"])
def test_an_invalid_max_memory_is_wrong_usage(text, capsys):
    with pytest.raises(SystemExit) as end:
        main(["ocr", str(PICTURE), f"--max-memory={text}"])
    assert end.value.code == 2
    says = f"argument --max-memory: {text!r} is not an amount of memory; write for example 8GB or 512MB"
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_resident_weights_count_as_they_will_be_in_memory(dtype):
    config, itemsize = npgemma.load().config, np.dtype(dtype).itemsize
    weights = itemsize * sum(x.size for x in read_tensors(EMBEDDED, config).values())
    needed = footprint(config, Run(weights, itemsize, 1, [config.vision.num_patches])).total
    budget = npgemma.load(dtype=dtype, resident=True, max_memory=needed).guard.budget
    assert budget == Budget(weights, weights, needed)
    with pytest.raises(TooLittleMemory, match=f"{size(weights)} of weights"):
        npgemma.load(dtype=dtype, resident=True, max_memory=needed - 1)
    npgemma.load(dtype=dtype, max_memory=needed - 1)  # mapped weights are bfloat16


def test_files_that_the_model_does_not_use_do_not_count(tmp_path):
    """Repositories may hold the same weights under other names, or an adapter."""
    folder = tiny.write_folder(tmp_path, shards=2)
    with (folder / "consolidated.safetensors").open("wb") as file:
        file.truncate(10 * GB)  # sparse
    npgemma.load(folder, max_memory=BASE + 10 * MB)


CALLS = {
    "generate": lambda model, many: model.generate([PICTURE] * many, ["ocr"] * many, max_new_tokens=1),
    "a long answer": lambda model, many: model.generate(PICTURE, "ocr", max_new_tokens=45 * many),
    "many pictures": lambda model, many: model.generate([PICTURE] * many, "ocr", max_new_tokens=1),
    "stream": lambda model, many: list(model.stream(PICTURE, "ocr " * 9 * many, max_new_tokens=1)),
    "samples": lambda model, many: model.generate(
        PICTURE, "ocr", num_return_sequences=many, temperature=1.0, max_new_tokens=90
    ),
    "beams": lambda model, many: model.generate(PICTURE, "ocr", num_beams=many, max_new_tokens=90),
    "score": lambda model, many: model.score([PICTURE] * many, ["ocr"] * many, ["a"] * many),
    "forward": lambda model, many: model.forward(np.arange(3, 3 + 20 * many)),
    "image_features": lambda model, many: model.image_features([PICTURE] * 2 * many),
    "generate_ids": lambda model, many: model.generate_ids(np.arange(3, 3 + 40 * many), max_new_tokens=1),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_run_that_needs_too_much_is_refused_before_it_starts(call):
    """One is allowed and twenty are not. Without weights, a run that started would be a ShapeError."""
    model = npgemma.load()
    model.guard = PictureGuard(model.config, model.dtype, budget=Budget(allowed=BASE + 1_400_000))
    call(model, 1)
    empty = npgemma.VisionLanguageModel(model.folder, model.config, None, model.dtype, model.guard)
    with pytest.raises(ShapeError):
        call(empty, 1)
    with pytest.raises(TooLittleMemory, match=r"more than the 0\.15 GB allowed"):
        call(empty, 20)


def test_a_picture_of_a_prompt_counts_once_for_all_suffixes_and_beams(small):
    """The tower reads it once."""
    asked = []

    class Asking(PictureGuard):
        def check_memory(self, lengths, pictures, *rest, **options):
            asked.append(pictures)

    model = npgemma.VisionLanguageModel(
        small.folder, small.config, small.weights, small.dtype, Asking(small.config, small.dtype)
    )
    model.score(PICTURES[0], "ocr", ["a", "b", "c"])
    model.generate(PICTURES[0], "ocr", num_beams=3, max_new_tokens=2)
    model.generate(PICTURES[:2], "ocr", num_return_sequences=3, temperature=1.0, max_new_tokens=2)
    assert asked == [1, 1, 2]


# ---------------------------------------------------------------------------------------- a config that claims 10^12


CLAIM = PaliGemmaConfig(
    VisionConfig(hidden_size=12, intermediate_size=17, num_hidden_layers=1, num_attention_heads=3, image_size=14),
    GemmaConfig(hidden_size=65536, intermediate_size=1 << 20, num_hidden_layers=5, vocab_size=61),
    image_token_index=57,
)
SHAPES = hf_layout(CLAIM).shapes


def write_claim(folder: Path, sparse: bool) -> Path:
    """A config and a header of 10^12 parameters, and, if `sparse`, a sparse file for them."""
    entries, end = {}, 0
    for name, shape in SHAPES.items():
        start, end = end, end + 2 * int(np.prod(shape))
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        if sparse:
            file.truncate(8 + len(header) + end)
    (folder / "config.json").write_text(json.dumps(tiny.config_json(CLAIM)))
    return folder


def test_the_config_claims_more_than_10_to_the_12_parameters():
    assert sum(int(np.prod(shape)) for shape in SHAPES.values()) > 10**12


def test_a_config_that_claims_more_than_its_file_has_is_refused(tmp_path, capsys):
    """By the shapes of the tensors; nothing of those shapes is allocated."""
    folder = tiny.write_folder(tmp_path)
    (folder / "config.json").write_text(json.dumps(tiny.config_json(CLAIM)))
    tracemalloc.start()
    for command in (["ocr", str(PICTURE), "-m"], ["inspect"], ["verify"]):
        assert main([*command, str(folder)]) == 1
        err = capsys.readouterr().err
        assert "do not fit config.json" in err.splitlines()[0]
        assert "Traceback" not in err
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * MB


def test_a_header_that_claims_more_than_the_file_has_is_refused(tmp_path):
    with pytest.raises(BadModel, match="is not a valid safetensors file"):
        npgemma.load(write_claim(tmp_path, sparse=False))


@pytest.mark.parametrize("flags", [[], ["--resident"], ["--dtype", "float64"]], ids=str)
def test_a_sparse_file_of_10_to_the_12_parameters_is_refused_by_its_size(flags, tmp_path, refused_memory):
    """Everything fits but the memory."""
    try:
        folder = write_claim(tmp_path, sparse=True)
    except OSError:
        pytest.skip("this disk takes no sparse file of 2 TB")
    err = refused_memory("ocr", PICTURE, "-m", folder, "--max-memory", "64GB", *flags)
    (folder / "model.safetensors").unlink()
    assert re.match(r"npgemma: this needs [24]\d{3}\.\d\d GB ", err)
    assert ", more than the 64.00 GB allowed; " in err


def test_more_sequences_than_fit_into_any_memory_are_refused_at_once():
    """Before anything is prepared for each of them."""
    with pytest.raises(TooLittleMemory, match="fewer beams, samples or prompts"):
        npgemma.load().generate(PICTURE, "ocr", num_return_sequences=10**22, temperature=1.0)
