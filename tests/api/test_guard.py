"""Memory: the plan by hand, a run held to it by the kernel's own count, and refusals before anything is taken."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors
import tiny

import npgemma
from npgemma.api import load as loading
from npgemma.api.guard import Budget
from npgemma.checkpoints.footprint import BASE, MemoryPlan, plan_memory
from npgemma.checkpoints.gemma import GemmaConfig
from npgemma.checkpoints.paligemma import PaliGemmaConfig, expected_shapes, read_config, read_tensors
from npgemma.checkpoints.siglip import SiglipConfig
from npgemma.commands.cli import main
from npgemma.errors import BadModel, TooLittleMemory
from npgemma.io import system_memory as memory
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.system_memory import available_memory, field, parse_size, size
from npgemma.io.tokenizers import Tokenizer
from npgemma.layers import threads
from npgemma.layers.bits import pack
from npgemma.testing import write_folder

ROOT = Path(__file__).resolve().parents[1]
PICTURE = EMBEDDED.parent / "sample.png"
MB, GB = 10**6, 10**9
# What is worked on in blocks, whatever the sizes of a model: of weights and of scores, some for each of two threads.
BLOCKS = 16 * MB

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc, limits of the address space and their units")


def with_tokenizer(folder: Path) -> Path:
    shutil.copyfile(EMBEDDED / "tokenizer.model", folder / "tokenizer.model")
    return folder


def config_of(vision: dict[str, int], text: dict[str, int]) -> PaliGemmaConfig:
    """The small model with other sizes, to the embedded tokenizer."""
    image = Tokenizer((EMBEDDED / "tokenizer.model").read_bytes()).image_id
    return PaliGemmaConfig(
        dataclasses.replace(tiny.CONFIG.vision, **vision),
        dataclasses.replace(tiny.CONFIG.text, **({"vocab_size": image + 8} | text)),
        image_token_index=image,
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A checkpoint of 107 MB in bfloat16, two thirds of it the table: reading it costs memory, not much time.

    Its numbers repeat themselves, since 50 million random ones would take seconds.
    """
    text = dict(hidden_size=1024, intermediate_size=2500, num_hidden_layers=2, num_attention_heads=4, head_dim=128)
    vision = dict(hidden_size=192, intermediate_size=500)
    config = config_of(vision, text | dict(vocab_size=34_000))
    numbers = pack(np.random.default_rng(0).normal(0, 0.02, 1 << 16).astype(np.float32))
    tensors = {name: np.resize(numbers, shape) for name, shape in expected_shapes(config).items()}
    folder = with_tokenizer(write_folder(tmp_path_factory.mktemp("large"), config, {}))
    stored = {
        tiny.spell(name, "saved 5.x"): safetensors.TensorSpec(
            dtype="bfloat16", shape=list(x.shape), data_ptr=x.ctypes.data, data_len=x.nbytes
        )
        for name, x in tensors.items()
    }
    (folder / "model.safetensors").write_bytes(safetensors.serialize(stored))
    return folder


# -------------------------------------------------------------------------------------------------------------- amounts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8GB", 8 * GB),
        ("8gb", 8 * GB),
        (" 8 GB ", 8 * GB),
        ("512MB", 512 * MB),
        ("1.5 GB", 1500 * MB),
        ("2TB", 2000 * GB),
        ("3KB", 3000),
        ("7B", 7),
        ("8e9", 8 * GB),
        ("1234", 1234),
        ("0.5KB", 500),
    ],
)
def test_an_amount_of_memory(text, expected):
    assert parse_size(text) == expected


NO_AMOUNTS = [
    "",
    " ",
    "GB",
    "B",
    "much",
    "8GiB",
    "8 G B",
    "GB8",
    "0",
    "0GB",
    "-1",
    "-1GB",
    "nan",
    "nanGB",
    "inf",
    "infMB",
]
NO_AMOUNTS += ["1e999", "1e999GB", "8,5GB", "0x10", "٨x"]


@pytest.mark.parametrize("text", NO_AMOUNTS)
def test_what_is_no_amount_of_memory_says_how_one_looks(text):
    with pytest.raises(ValueError, match=r"is no amount of memory; say 8GB or 512MB$"):
        parse_size(text)


@pytest.mark.parametrize("text", ["much", "0", "-1GB"])
def test_what_is_no_amount_of_memory_is_wrong_usage(text, capsys):
    with pytest.raises(SystemExit) as end:
        main(["ocr", str(PICTURE), f"--max-memory={text}"])
    assert end.value.code == 2
    assert f"argument --max-memory: {text!r} is no amount of memory; say 8GB or 512MB" in capsys.readouterr().err


def test_size_is_in_gigabytes():
    assert [size(number) for number in (0, 5 * MB, 1234567890, 12 * GB)] == [
        "0.00 GB",
        "0.01 GB",
        "1.23 GB",
        "12.00 GB",
    ]


# ------------------------------------------------------------------------------------------------------------- the plan

# vision: D 5, F 7, a picture of 6 x 6 pixels in 9 patches; text: D 4, F 10, 3 layers, 2 key heads of width 6, V 50
SMALL = PaliGemmaConfig(
    SiglipConfig(hidden_size=5, intermediate_size=7, num_attention_heads=1, image_size=6, patch_size=2),
    GemmaConfig(
        hidden_size=4,
        intermediate_size=10,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=6,
        vocab_size=50,
    ),
)


def test_a_plan_by_hand():
    """Two prompts of 11 and 20 tokens with 3 pictures between them, in float32, 5 new tokens."""
    plan = plan_memory(SMALL, 1000, 4, 3, [11, 20], 5)
    pixels, patches = 3 * 3 * 6 * 6, 3 * 9
    vision = pixels + patches * (3 * 5 + 2 * 7 + 4)  # the stream, what is added to it, its norm; both sides of gelu
    text = 31 * (4 * 4 + 3 * 10)  # rows of the decoder
    assert (vision, text) == (1215, 1426)
    logits = 2 * 2 * 50 * 4 + 4 * 8 * 50  # of each prompt, now and a step before; of one row in float64, and its logs
    kept = 2 * 3 * 2 * 6  # keys and values of a token in every layer
    assert plan == MemoryPlan(weights=1000, caches=(31 + 2 * 5) * kept * 4, activations=1426 * 4 + logits)
    assert plan.total == BASE + 1000 + 11_808 + 8104


def test_a_plan_by_hand_where_pictures_take_most():
    """8 pictures, a prompt that is short without them, in float64; 3 samples share it, their caches do not."""
    plan = plan_memory(SMALL, 0, 8, 8, [5], 2, samples=3)
    logits = 8 * 2 * 3 * 50 + 4 * 8 * 50
    assert plan.activations == 8 * (8 * 3 * 36 + 8 * 9 * (3 * 5 + 2 * 7 + 4)) + logits
    assert plan.caches == 8 * 3 * (5 + 2) * 72
    assert plan_memory(SMALL, 0, 8, 0, [5], 2, 3).activations == 8 * 5 * 46 + logits
    assert plan_memory(SMALL, 0, 8, 0, [5], 2, logit_rows=3).activations == 8 * 5 * 46 + logits


def test_every_argument_makes_the_plan_larger():
    start = dict(weights=1000, itemsize=4, pictures=20, prompts=[11, 20], new_tokens=5, samples=2)
    more = dict(weights=1001, itemsize=8, pictures=21, new_tokens=6, samples=3)
    total = plan_memory(SMALL, **start).total
    for name, value in more.items():
        assert plan_memory(SMALL, **start | {name: value}).total > total, name
    for prompts in ([12, 20], [11, 20, 1], [11, 21]):
        assert plan_memory(SMALL, **start | {"prompts": prompts}).total > total, prompts
    assert plan_memory(SMALL, **start | {"prompts": [20, 11]}).total == total


def test_every_size_of_the_model_that_counts_makes_the_plan_larger():
    """Of the tower with many pictures, of the decoder with long prompts."""
    for part, pictures, names in (
        ("vision", 50, ("hidden_size", "intermediate_size", "image_size")),
        ("text", 0, ("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "num_key_value_heads")),
        ("text", 0, ("head_dim",)),
    ):
        for name in names:
            sizes = getattr(SMALL, part)
            larger = dataclasses.replace(
                SMALL, **{part: dataclasses.replace(sizes, **{name: 2 * getattr(sizes, name)})}
            )
            before, after = (plan_memory(c, 0, 4, pictures, [40]).total for c in (SMALL, larger))
            assert after > before, name


def test_a_plan_says_its_parts():
    plan = MemoryPlan(5 * GB, 250 * MB, 40 * MB)
    assert plan.total == BASE + 5290 * MB
    assert str(plan) == f"{size(plan.total)} (5.00 GB of weights, 0.25 GB of caches, 0.04 GB of activations)"


# -------------------------------------------------------------------------------------------- what the machine has left


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Makes the files of a kernel, by path, out of text; there are no others."""
    monkeypatch.setattr(memory, "Path", lambda path: tmp_path / path.lstrip("/"))

    def write(path: str, content: str) -> None:
        (tmp_path / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path.lstrip("/")).write_text(content)

    return write


MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    9000000 kB\nBuffers:   1 kB\n"
STAT = "anon 3000000000\nfile 4000000000\nkernel 5\nanon_thp 7\n"
STATUS = "Name:\tpython\nVmPeak:\t  900000 kB\nVmSize:\t  500000 kB\nVmRSS:\t  100000 kB\n"


def test_a_field_of_a_file_of_the_kernels(kernel):
    kernel("/proc/meminfo", MEMINFO)
    assert field("/proc/meminfo", "MemAvailable:", 1024) == 9_000_000 * 1024
    assert field("/proc/meminfo", "MemTotal:", 1) == 16_000_000
    assert field("/proc/meminfo", "Mem", 1) is None
    assert field("/proc/nothing", "MemTotal:", 1) is None


def test_what_the_machine_has_available_and_not_what_is_free(kernel):
    kernel("/proc/meminfo", MEMINFO)
    assert memory.of_machine() == 9_000_000 * 1024


def test_a_kernel_without_that_line_is_unknown(kernel):
    kernel("/proc/meminfo", MEMINFO.replace("MemAvailable", "MemOther"))
    assert memory.of_machine() is None


def test_a_container_has_its_limit_less_what_it_holds(kernel):
    """Pages of files are given back when they are needed; only anonymous memory is held."""
    kernel("/sys/fs/cgroup/memory.max", "8000000000\n")
    kernel("/sys/fs/cgroup/memory.stat", STAT)
    assert memory.of_container() == 5_000_000_000


def test_the_group_of_the_process_itself_counts_in_either_version(kernel):
    """As Slurm, systemd and older Docker make them; the tightest limit is the one."""
    kernel("/proc/self/cgroup", "4:memory:/jobs/7\n0::/user/app\n")
    kernel("/sys/fs/cgroup/user/app/memory.max", "6000000000\n")
    kernel("/sys/fs/cgroup/user/app/memory.stat", STAT)
    assert memory.of_container() == 3_000_000_000
    kernel("/sys/fs/cgroup/memory/jobs/7/memory.limit_in_bytes", "2500000000\n")
    kernel("/sys/fs/cgroup/memory/jobs/7/memory.stat", "rss 1\ntotal_rss 500000000\n")
    assert memory.of_container() == 2_000_000_000


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"memory.max": "max\n", "memory.stat": STAT},
        {"memory.max": "8000000000\n"},
        {"memory.max": "8000000000\n", "memory.stat": "file 5\n"},
        {"memory.stat": STAT},
        {"memory.max": "", "memory.stat": STAT},
    ],
    ids=["no control group", "no limit", "nothing held", "nothing anonymous", "no limit file", "an empty limit"],
)
def test_a_container_without_limit_is_unknown(files, kernel):
    for name, content in files.items():
        kernel(f"/sys/fs/cgroup/{name}", content)
    assert memory.of_container() is None


@linux
def test_a_process_has_its_limit_less_its_address_space(kernel, monkeypatch):
    import resource

    kernel("/proc/self/status", STATUS)
    for limit, expected in ((2_000_000_000, 2_000_000_000 - 500_000 * 1024), (resource.RLIM_INFINITY, None)):
        monkeypatch.setattr(resource, "getrlimit", {resource.RLIMIT_AS: (limit, limit)}.__getitem__)
        assert memory.of_process() == expected


def test_where_there_are_no_limits_it_is_unknown(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows: importing it fails
    assert memory.of_process() is None


@pytest.mark.parametrize(
    ("machine", "container", "process", "expected"),
    [
        (9, 8, 7, 7),
        (9, 7, 8, 7),
        (7, 8, 9, 7),
        (9, None, None, 9),
        (None, 8, None, 8),
        (None, None, 7, 7),
        (9, 0, None, 0),
        (9, -5, None, -5),
        (None, None, None, None),
    ],
)
def test_the_least_that_is_known_is_available(machine, container, process, expected, monkeypatch):
    for name, value in (("of_machine", machine), ("of_container", container), ("of_process", process)):
        monkeypatch.setattr(memory, name, lambda *_, value=value: value)
    assert available_memory() == expected


@linux
def test_this_machine_has_some():
    total = field("/proc/meminfo", "MemTotal:", 1024)
    assert 0 < available_memory() <= total


# ----------------------------------------------------------------------------------------------------------- the budget


@pytest.fixture
def available(monkeypatch):
    """Says how much memory there is."""
    return lambda number: monkeypatch.setattr(memory, "available_memory", lambda *_: number)


def test_a_budget_is_what_the_plan_says_to_the_byte(available):
    plan = plan_memory(SMALL, 1000, 4, 3, [11, 20], 5, 2)
    total = plan.total
    available(total)
    Budget(1000).require(plan)
    Budget(1000, 0, total).require(plan)
    with pytest.raises(TooLittleMemory, match="allowed"):
        Budget(1000, 0, total - 1).require(plan)
    available(total - 1)
    with pytest.raises(TooLittleMemory, match="available"):
        Budget(1000).require(plan)


def test_what_is_held_already_is_not_asked_for_again(available):
    """It still counts as allowed or not: that is about all of it."""
    total = plan_memory(SMALL, GB, 4, 1, [11]).total
    available(total - GB)
    Budget(GB, GB).require(plan_memory(SMALL, GB, 4, 1, [11]))
    with pytest.raises(TooLittleMemory, match="available"):
        Budget(GB, GB - 1).require(plan_memory(SMALL, GB, 4, 1, [11]))
    with pytest.raises(TooLittleMemory, match="allowed"):
        Budget(GB, GB, total - 1).require(plan_memory(SMALL, GB, 4, 1, [11]))


def test_what_one_allows_oneself_goes_before_what_is_known(available):
    """More than there seems to be: the kernel may give it, and whoever says so knows better. And less."""
    total = plan_memory(SMALL, GB, 4, 1, [11]).total
    for known in (0, 10 * GB, None):
        available(known)
        Budget(GB, 0, total).require(plan_memory(SMALL, GB, 4, 1, [11]))
        with pytest.raises(TooLittleMemory, match="allowed"):
            Budget(GB, 0, total - 1).require(plan_memory(SMALL, GB, 4, 1, [11]))


def test_where_nothing_is_known_nothing_is_refused(available):
    available(None)
    Budget(10**18).require(plan_memory(SMALL, 10**18, 4, 1, [11]))


def test_the_message_has_the_numbers(available):
    """What is needed and for what, what there is, and what to do."""
    plan = MemoryPlan(6 * GB, 0, 0)
    said = f"this needs {size(plan.total)} (6.00 GB of weights, 0.00 GB of caches, 0.00 GB of activations)"
    available(5 * GB)
    with pytest.raises(TooLittleMemory) as error:
        Budget(6 * GB).require(plan_memory(SMALL, 6 * GB, 4, 1, [11]))
    assert str(error.value).startswith(f"{said}, and 5.00 GB are available; smaller pictures, ")
    with pytest.raises(TooLittleMemory) as error:
        Budget(6 * GB, 0, 3 * GB).require(plan_memory(SMALL, 6 * GB, 4, 1, [11]))
    assert str(error.value).startswith(f"{said}, more than the 3.00 GB allowed; smaller pictures, ")


# ------------------------------------------------------------------------------------- refused before anything is taken


@pytest.fixture
def nothing_taken(monkeypatch):
    """Fails a test in which a weight is copied or a picture is looked at."""
    for name in ("in_memory", "merged", "paligemma"):
        monkeypatch.setattr(loading, name, lambda *_, name=name: pytest.fail(f"{name} was called"))


@pytest.mark.parametrize("resident", [[], ["--resident"]])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_max_memory_is_one_sentence_and_nothing_is_taken(dtype, resident, large, nothing_taken, capsys):
    flags = ["--dtype", dtype, "--max-memory", "1MB", *resident, "-m", str(large)]
    for command in (["ocr", str(PICTURE)], ["score", str(PICTURE), "ocr", "a"], ["detect", str(PICTURE), "cat"]):
        tracemalloc.start()
        assert main([*command, *flags]) == 1
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("npgemma: this needs 0.")
        assert "more than the 0.00 GB allowed; " in err
        assert err.count("\n") == 1
        assert peak < 3 * MB


def test_max_memory_that_is_enough_changes_nothing(capsys):
    answers = []
    for flags in ([], ["--max-memory", "1GB"]):
        assert main(["caption", str(PICTURE), *flags]) == 0
        answers.append(capsys.readouterr())
    assert answers[0] == answers[1]


def test_the_machine_is_asked_when_a_model_is_loaded(available, large, nothing_taken):
    file = (large / "model.safetensors").stat().st_size
    available(BASE + file // 2)
    with pytest.raises(TooLittleMemory, match=r"and 0\.20 GB are available"):
        npgemma.load(large)


def test_files_that_the_model_does_not_use_do_not_count(available, tmp_path):
    """Repositories hold the same weights once more under other names, or an adapter; only what is mapped counts."""
    folder = tiny.write_folder(tmp_path, shards=2)
    with (folder / "consolidated.safetensors").open("wb") as file:
        file.truncate(10 * GB)  # a hole
    available(BASE + 10 * MB)
    npgemma.load(folder)
    npgemma.load(folder, max_memory=BASE + 10 * MB)


def test_resident_weights_are_counted_as_they_will_be(available, large):
    count = sum(x.size for x in read_tensors(large, read_config(large)).values())
    available(BASE + 4 * count)
    npgemma.load(large)
    with pytest.raises(TooLittleMemory, match=f"{size(4 * count)} of weights"):
        npgemma.load(large, resident=True)
    available(BASE + 6 * count)
    assert npgemma.load(large, resident=True).budget == Budget(4 * count, 4 * count)
    with pytest.raises(TooLittleMemory, match=f"{size(8 * count)} of weights"):
        npgemma.load(large, "float64", resident=True)


ASKING = {
    "generate": lambda model, many: model.generate([PICTURE] * many, ["ocr"] * many, max_new_tokens=1),
    "a long answer": lambda model, many: model.generate(PICTURE, "ocr", max_new_tokens=45 * many),
    "many pictures": lambda model, many: model.generate([PICTURE] * many, "ocr", max_new_tokens=1),
    "stream": lambda model, many: list(model.stream(PICTURE, "ocr " * 9 * many, max_new_tokens=1)),
    "samples": lambda model, many: model.samples(PICTURE, "ocr", many, temperature=1.0, max_new_tokens=90),
    "beams": lambda model, many: model.beams(PICTURE, "ocr", many, max_new_tokens=90),
    "score": lambda model, many: model.score([PICTURE] * many, ["ocr"] * many, ["a"] * many),
    "generate_ids": lambda model, many: model.generate_ids(np.arange(3, 3 + 40 * many), max_new_tokens=1),
}


@pytest.mark.parametrize("asking", ASKING.values(), ids=ASKING)
def test_a_run_that_needs_too_much_is_refused_before_it_begins(asking, monkeypatch):
    """One of it is allowed, twenty are not; the model goes on to answer what is."""
    monkeypatch.setattr(memory, "BASE", 0)
    model = npgemma.load()
    model.budget = Budget(0, 0, MB)
    asking(model, 1)
    with monkeypatch.context() as patched:
        patched.setattr(npgemma.model, "image_features", lambda *_: pytest.fail("it began"))
        with pytest.raises(TooLittleMemory, match=r"more than the 0\.00 GB allowed"):
            asking(model, 20)
    asking(model, 1)


# ------------------------------------------------------------------------------------------- a config that claims 10^12


CLAIM = PaliGemmaConfig(
    SiglipConfig(hidden_size=12, intermediate_size=17, num_hidden_layers=1, num_attention_heads=3, image_size=14),
    GemmaConfig(hidden_size=65536, intermediate_size=1 << 20, num_hidden_layers=5, vocab_size=61),
    image_token_index=57,
)


def test_the_claim_is_one():
    assert sum(int(np.prod(shape)) for shape in expected_shapes(CLAIM).values()) > 10**12


def test_a_config_that_claims_more_than_its_file_is_refused(tmp_path, capsys):
    """By the tensors, which are not of its shapes; nothing is made in those."""
    folder = tiny.write_folder(tmp_path)
    (folder / "config.json").write_text(json.dumps(tiny.config_json(CLAIM)))
    tracemalloc.start()
    for command in (["ocr", str(PICTURE), "-m"], ["inspect"], ["verify"]):
        assert main([*command, str(folder)]) == 1
        err = capsys.readouterr().err
        assert "the tensors do not fit config.json" in err.splitlines()[0]
        assert "Traceback" not in err
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * MB


def test_a_config_and_a_header_that_claim_more_than_the_file_are_refused(tmp_path):
    with pytest.raises(BadModel, match="is not a usable safetensors file"):
        npgemma.load(write_claim(tmp_path, sparse=False))


def write_claim(folder: Path, sparse: bool) -> Path:
    """A model of 10^12 parameters: a header of all its tensors, and, if `sparse`, a file that has holes for them."""
    entries, end = {}, 0
    for name, shape in expected_shapes(CLAIM).items():
        start, end = end, end + 2 * int(np.prod(shape))
        entries[tiny.spell(name, "saved 5.x")] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        if sparse:
            file.truncate(8 + len(header) + end)
    (folder / "config.json").write_text(json.dumps(tiny.config_json(CLAIM)))
    return folder


@pytest.mark.parametrize("flags", [[], ["--resident"], ["--dtype", "float64"]], ids=str)
def test_a_file_of_ten_to_the_twelve_parameters_is_refused_by_its_size(flags, available, tmp_path, capsys):
    """A file with holes, which takes no room on the disk: all fits, but no memory is that large."""
    available(64 * GB)
    try:
        folder = write_claim(tmp_path, sparse=True)
    except OSError:
        pytest.skip("no file of 2 TB here, holes or not")
    tracemalloc.start()
    assert main(["ocr", str(PICTURE), "-m", str(folder), *flags]) == 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    (folder / "model.safetensors").unlink()
    out, err = capsys.readouterr()
    assert out == ""
    assert re.match(r"npgemma: this needs [24]\d{3}\.\d\d GB ", err)
    assert ", and 64.00 GB are available; " in err
    assert err.count("\n") == 1
    assert peak < 3 * MB


# ------------------------------------------------------------------------------------------------ what is really taken


def traced(work) -> int:
    """The largest number of bytes that Python and NumPy held at once, above what they held before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Planning(Budget):
    """Keeps the plan of what a model asks for, its weights left out: they are mapped, and the kernel's."""

    plans: list[MemoryPlan]

    def require(self, plan: MemoryPlan) -> None:
        self.plans.append(plan)


# What is asked of a small model with one size so large that it takes nearly all of the memory.
LONG = " ".join(["what color is the star"] * 40)
KEEPING = config_of({}, dict(num_hidden_layers=2, num_attention_heads=2, head_dim=1024))
MANY_WORDS = config_of({}, dict(vocab_size=200_000, num_hidden_layers=1))
RUNS = {
    "caches of samples": (KEEPING, lambda m: m.samples(PICTURE, LONG, 8, max_new_tokens=2, temperature=1.0)),
    "caches of beams": (KEEPING, lambda m: m.beams(PICTURE, LONG, 16, max_new_tokens=4)),
    # any token ends it, so that the room is made and not filled
    "room for a long answer": (KEEPING, lambda m: m.generate_ids([3, 4, 5], max_new_tokens=2000, eos_ids=range(9999))),
    "rows of a decoder": (
        config_of({}, dict(hidden_size=64, intermediate_size=4000, num_hidden_layers=2)),
        lambda m: m.generate([PICTURE] * 8, [LONG] * 8, max_new_tokens=1),
    ),
    "pictures": (
        config_of(dict(hidden_size=48, intermediate_size=600, image_size=140, num_hidden_layers=1), {}),
        lambda m: m.generate([PICTURE] * 24, ["ocr"] * 24, max_new_tokens=1),
    ),
    "logits of prompts": (MANY_WORDS, lambda m: m.generate([PICTURE] * 20, ["ocr"] * 20, max_new_tokens=2)),
    "logits of samples": (MANY_WORDS, lambda m: m.samples(PICTURE, "ocr", 20, max_new_tokens=3, temperature=1.0)),
    "logits of beams": (MANY_WORDS, lambda m: m.beams(PICTURE, "ocr", 20, max_new_tokens=3)),
    "logits of an answer that is scored": (MANY_WORDS, lambda m: m.score(PICTURE, "ocr", LONG[:100])),
}


@pytest.fixture
def two_threads(monkeypatch) -> None:
    """No more than that on any machine: each works on blocks of its own."""
    as_many_as_there_are = threads.BLAS.on_one_thread

    @contextlib.contextmanager
    def on_one_thread():
        with as_many_as_there_are() as count:
            yield min(count, 2)

    monkeypatch.setattr(threads.BLAS, "on_one_thread", on_one_thread)


@pytest.mark.parametrize("run", RUNS)
def test_no_run_takes_more_than_its_plan_nor_less_than_half(run, two_threads, tmp_path):
    """Of caches and activations, as the model itself asks for them, but for blocks."""
    config, work = RUNS[run]
    model = npgemma.load(with_tokenizer(tiny.write_folder(tmp_path, config, dtype="bfloat16")))
    model.budget = Planning()
    model.budget.plans = []
    peak = traced(lambda: work(model))
    (plan,) = model.budget.plans
    planned = plan.caches + plan.activations
    assert peak - BLOCKS <= planned <= 2 * peak


def test_resident_weights_with_an_adapter_are_there_once(large, two_threads, tmp_path):
    """Each matrix is merged and then kept, not merged and copied: in a 3B model that would be 12 GB more."""
    config = npgemma.load(large).config
    names = ("embed_tokens", "layers.0.mlp.up_proj", "layers.0.mlp.gate_proj", "layers.1.mlp.up_proj")
    tensors = {}
    for name in names:
        out, width = expected_shapes(config)[f"text.{name}.weight"]
        a, b = np.ones((1, width), np.float32), np.ones((out, 1), np.float32)
        lora = ("lora_embedding_A", b.T, "lora_embedding_B", a.T) if "embed" in name else ()
        first, x, second, y = lora or ("lora_A.weight", a, "lora_B.weight", b)
        module = f"base_model.model.language_model.model.{name}"
        tensors |= {f"{module}.{first}": x, f"{module}.{second}": y}
    tiny.save(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 1}')
    models = []
    peak = traced(lambda: models.append(npgemma.load(large, resident=True, adapter=tmp_path)))
    head = config.text.vocab_size * config.text.hidden_size * 4  # no longer the table
    assert peak <= 4 * sum(int(np.prod(shape)) for shape in expected_shapes(config).values()) + head + BLOCKS
    assert models[0].weights.text.head.dtype == np.float32


# Runs one call in a process of its own. The limit, if there is one, is that much above what the imports have taken.
SCRIPT = """
import json, sys
import numpy as np
import npgemma
from npgemma.cli import main
from npgemma.memory import field, plan_memory
room, folder, arguments = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
import resource
if room:
    limit = field("/proc/self/status", "VmSize:", 1024) + room
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
if isinstance(arguments, list):
    sys.exit(main(arguments))
model = npgemma.load(folder, **arguments)
pictures, prompts = [np.zeros((30, 30, 3), np.uint8)] * 2, ["star " * 60] * 2
model.generate(pictures, prompts, max_new_tokens=3)
lengths = [len(ids) for ids in model.processor(pictures, prompts).input_ids]
plan = plan_memory(model.config, model.budget.weights, model.dtype.itemsize, 2, lengths, 3)
peak = field("/proc/self/status", "VmHWM:", 1024)  # getrusage's would be that of the tests, if theirs was larger
print(json.dumps({"plan": plan.total, "peak": peak}))
"""


def process(folder: Path, arguments: list[str] | dict[str, object], room: int = 0) -> subprocess.CompletedProcess:
    """A process with two threads, wherever it runs: each takes memory of its own."""
    command = [sys.executable, "-c", SCRIPT, str(room), str(folder), json.dumps(arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "2"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


MEASURED = {
    "mapped": {},
    "mapped, in float64": {"dtype": "float64"},
    "resident": {"resident": True},
}


@linux
@pytest.mark.parametrize("arguments", MEASURED.values(), ids=MEASURED)
def test_the_kernel_counts_no_more_than_the_plan_and_no_less_than_half(arguments, large):
    """The largest resident set of a process that answers two prompts, against what it was told it would need.

    Where weights are resident the file is mapped, too, until they are read: pages that the kernel drops when it likes.
    """
    done = process(large, arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    file = (large / "model.safetensors").stat().st_size if "resident" in arguments else 0
    measured = found["peak"] - file
    assert measured <= found["plan"] <= 2 * measured


def asking_for(folder: Path, *flags: str) -> list[str]:
    return ["ocr", str(PICTURE), "-m", str(folder), "--max-new-tokens", "2", *flags]


@linux
@pytest.mark.parametrize("flags", [["--resident"], ["--resident", "--dtype", "float64"]], ids=" ".join)
def test_under_a_limit_of_the_process_it_says_so_and_does_not_fall_over(flags, large):
    """ulimit -v: 107 MB are mapped, and as many left; resident weights are twice or four times that."""
    done = process(large, asking_for(large, *flags), room=250 * MB)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("npgemma: this needs 0.")
    assert " are available; " in done.stderr
    assert done.stderr.count("\n") == 1


@linux
def test_under_a_limit_that_is_wide_enough_it_answers(large):
    done = process(large, asking_for(large, "--resident"), room=900 * MB)
    assert (done.returncode, done.stderr) == (0, "") or done.stderr == "npgemma: the model answered with nothing\n"


@linux
def test_weights_that_are_mapped_already_are_not_asked_for_twice(large):
    """Under ulimit -v a map counts as taken; with room for it once and for the run, the model answers."""
    done = process(large, asking_for(large), room=BASE + 170 * MB)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
