"""The plan of a run: what it counts exactly, how its memory grows, and that some layers stand for all of them."""

import tracemalloc

import pytest
from training_data import write_data

import npgemma
from npgemma.api.training_footprint import PROCESS
from npgemma.api.training_plan import Plan, planned, timed
from npgemma.api.transfer import Lines, Transfer, encoder_of
from npgemma.errors import TooLittleMemory
from npgemma.layers.taps import silent
from npgemma.training.batches import batch_of
from npgemma.training.examples import Example, read_examples
from npgemma.training.options import TrainingOptions

ITEM = 4  # bytes of a float32 number


@pytest.fixture(scope="module")
def model() -> npgemma.VisionLanguageModel:
    return npgemma.load()


@pytest.fixture(scope="module")
def examples(model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Example, ...]:
    return read_examples(write_data(tmp_path_factory.mktemp("data")), encoder_of(model)).examples


def plan_of(model, examples, checkpointing: str = "off", **options: object) -> Plan:
    return planned(Transfer(model, Lines(examples, {}), TrainingOptions(**options)), checkpointing)


@pytest.mark.parametrize(
    ("options", "numbers", "copies"),
    [
        # rank 8 of the seven matrices of four layers: 128 and 512 wide, 4 heads and 1 of 32
        ({"lora": 8}, 4 * 8 * (4 * 128 + 2 * (128 + 32) + 3 * (128 + 512)), 4),
        ({"train": ("projector",)}, 128 * 128 + 128, 4),
        ({"train": ("projector",), "optimizer": "sgd"}, 128 * 128 + 128, 3),
        ({"train": ("projector",), "accumulate": 2}, 128 * 128 + 128, 5),
    ],
)
def test_trained_numbers_are_counted_with_gradients_and_moments(model, examples, options, numbers, copies) -> None:
    plan = plan_of(model, examples, **options)
    assert plan.numbers == numbers
    assert plan.needed.trained == copies * numbers * ITEM


def test_activations_grow_with_the_batch_and_shrink_when_computed_twice(model, examples) -> None:
    one, four = (plan_of(model, examples, lora=8, batch=batch).needed.activations for batch in (1, 4))
    assert 3 < four / one < 4.5
    assert plan_of(model, examples, "on", lora=8, batch=4).needed.activations < 0.75 * four


@pytest.mark.parametrize(
    ("checkpointing", "options"), [("off", {"lora": 8}), ("on", {"lora": 8}), ("off", {"train": ("all",)})]
)
def test_activations_need_no_more_than_planned(model, examples, checkpointing: str, options: dict) -> None:
    """With the gradients, which take the place of activations on the way back."""
    plan = plan_of(model, examples, checkpointing, batch=4, **options)
    transfer = plan.transfer
    batch = batch_of(examples, transfer.plain_encoder())
    how, tree = transfer.how._replace(recompute=plan.recompute), transfer.tree
    transfer.batch_gradient(tree, batch, how, silent)
    tracemalloc.start()
    transfer.batch_gradient(tree, batch, how, silent)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < plan.needed.activations + ITEM * plan.numbers < 2 * peak


@pytest.mark.parametrize("options", [{"lora": 4}, {"train": ("vision", "attention")}])
def test_some_layers_stand_for_all(model, examples: tuple[Example, ...], options: dict) -> None:
    """Time is not compared with anything: this machine may be busy."""
    plan = plan_of(model, examples, batch=2, **options)
    for found in (timed(plan), timed(plan, whole=0)):
        assert found.seconds > 0
        assert found.total > found.seconds


def test_activations_are_computed_twice_where_memory_is_short(examples: tuple[Example, ...]) -> None:
    short, long = (npgemma.load(max_memory=limit) for limit in (195_000_000, 400_000_000))
    assert [plan_of(each, examples, "auto", lora=8).recompute for each in (short, long)] == [True, False]


def test_what_does_not_fit_is_refused_with_what_needs_most(examples: tuple[Example, ...]) -> None:
    model = npgemma.load(max_memory=170_000_000)
    with pytest.raises(TooLittleMemory, match=r"0\.03 GB of trained arrays.*train fewer arrays \(--lora 8"):
        plan_of(model, examples[:1], "auto", batch=1).require()


def test_a_plan_has_more_processes_only_where_there_is_memory_for_them(examples, use_threads) -> None:
    """All numbers are trained: others share a copy of them, and each has the gradients twice. A short run has none."""
    use_threads(3)
    options = {"train": ("all",), "batch": 4, "accumulate": 2, "epochs": 40.0}
    plans = [
        plan_of(npgemma.load(max_memory=limit), examples, **options)
        for limit in (1_000_000_000, 380_000_000, 200_000_000)
    ]
    assert [plan.processes for plan in plans] == [3, 2, 1]
    more, fewer, none = (plan.needed.processes for plan in plans)
    assert none == 0
    assert plan_of(npgemma.load(), examples, **options | {"epochs": 1.0}).processes == 1
    assert more - fewer == PROCESS + 2 * ITEM * plans[0].numbers
    assert fewer > PROCESS + 3 * ITEM * plans[0].numbers
