"""A port's tensor is laid out as its tap is, and what is left out of the comparison is noted."""

from dataclasses import replace

import numpy as np
import pytest

from npgemma.api.vision_language import VisionLanguageModel
from npgemma.golden import Dump, Golden, NameMap, Report, Rule, compare, replay
from npgemma.golden.layout import PADDED_AFTER, PADDED_BEFORE, Place, lay
from npgemma.golden.mapping import KEEP

PORT = dict[str, np.ndarray]
LAST_ROW = "of its rows that of the last token alone is compared; harmless"
KEPT = [
    *(
        "prompts.0.input_ids",
        "prompts.0.mask",
        "text.layers.1.out",
        "text.layers.1.attn.segments.0.values",
        "text.norm",
    ),
    *("text.layers.1.attn.segments.0.probs", "logits", "steps.1.logits", "steps.1.text.layers.1.out"),
    *("steps.1.text.layers.1.attn.segments.0.values", "steps.1.text.layers.1.attn.segments.0.probs"),
]


@pytest.fixture(scope="module")
def few(golden: Golden) -> Golden:
    return replace(golden, taps={tap: axes for tap, axes in golden.taps.items() if tap in KEPT})


@pytest.fixture
def dumped(float32_port: PORT) -> PORT:
    return {tap: float32_port[tap] for tap in KEPT}


def padded(x: np.ndarray, before: int = 0, after: int = 0, value: float = 0) -> np.ndarray:
    """A tensor with more rows: of its axes those of 40 or 41 tokens are longer."""
    width = [(before, after) if size in (40, 41) else (0, 0) for size in x.shape]
    return np.pad(x, width, constant_values=value)


def judged(golden: Golden, port: PORT, *rules: Rule) -> Report:
    return compare(golden, Dump(port), NameMap((*rules, KEEP)), allow_missing=["*"])


def wrong(report: Report) -> list[str]:
    return [verdict.name for verdict in report.verdicts if not verdict.explained]


def notes(report: Report) -> dict[str, str]:
    return {verdict.name: verdict.note for verdict in report.verdicts if verdict.note}


@pytest.mark.parametrize(("before", "after", "note"), [(0, 4, PADDED_AFTER), (4, 0, PADDED_BEFORE)])
def test_padded_buffers_are_harmless(before: int, after: int, note: str, few: Golden, dumped: PORT) -> None:
    one_row = ("logits", "steps.1.logits", "steps.1.text.layers.1.out")
    port = {name: x if name in one_row else padded(x, before, after, -7) for name, x in dumped.items()}
    report = judged(few, port)
    assert wrong(report) == []
    assert notes(report) == {name: note for name in few.taps if name not in one_row}


def test_row_that_is_not_padding_is_compared(few: Golden, dumped: PORT) -> None:
    port = {name: padded(x, 0, 3) for name, x in dumped.items()}
    port["text.layers.1.out"][39] *= 1.01
    port["text.norm"] = padded(dumped["text.norm"], 3)
    report = judged(few, port)
    assert wrong(report) == ["text.layers.1.out", "text.norm"]
    assert report.first_divergence.bad_rows == (39,)


def test_ids_that_are_not_padding_are_not_left_out(few: Golden, dumped: PORT) -> None:
    """A token in front that is another one's id, and two different ids."""
    for more in ([2], [7, 8]):
        ids = np.concatenate([more, dumped["prompts.0.input_ids"]])
        report = judged(few, dumped | {"prompts.0.input_ids": ids})
        assert wrong(report) == ["prompts.0.input_ids"]
        assert report.first_divergence.reason == f"shape [{40 + len(more)}], expected [40] (T)"


def test_of_the_logits_of_all_rows_those_of_the_last_token_count(few: Golden, dumped: PORT) -> None:
    rows = np.random.default_rng(0).normal(size=(1, 44, 1792)).astype(np.float32)
    rows[0, 39] = dumped["logits"][0]
    report = judged(few, dumped | {"logits": rows})
    assert (wrong(report), notes(report)) == ([], {"logits": LAST_ROW})
    rows[0, [38, 39]] = rows[0, [39, 38]]
    assert wrong(judged(few, dumped | {"logits": rows})) == ["logits"]


def test_run_without_a_cache_computes_all_rows_in_each_step(few: Golden, dumped: PORT) -> None:
    name = "steps.1.text.layers.1.out"
    rows = np.concatenate([dumped["text.layers.1.out"], dumped[name]])
    report = judged(few, dumped | {name: rows})
    assert (wrong(report), notes(report)) == ([], {name: LAST_ROW})


def test_several_heads_are_not_taken_for_rows(few: Golden, dumped: PORT) -> None:
    name = "text.layers.1.attn.segments.0.values"
    report = judged(few, dumped | {name: np.repeat(dumped[name], 4, 1)})
    assert wrong(report) == [name]


def test_vocabulary_without_padding_rows_is_harmless(few: Golden, dumped: PORT) -> None:
    short = {name: dumped[name][:, :1744] for name in ("logits", "steps.1.logits")}
    report = judged(few, dumped | short)
    assert wrong(report) == []
    note = "its vocabulary lacks the last 48 of 1792 tokens, which pad the table; harmless"
    assert notes(report) == dict.fromkeys(short, note)
    short["logits"] = short["logits"] + np.eye(1, 1744, 1743, dtype=np.float32) * 1e-3
    assert wrong(judged(few, dumped | short)) == ["logits"]


def test_vocabulary_with_more_padding_rows_is_harmless(few: Golden, dumped: PORT) -> None:
    report = judged(few, dumped | {"logits": np.pad(dumped["logits"], ((0, 0), (0, 20)))[None]})
    assert wrong(report) == []
    assert notes(report) == {"logits": "its vocabulary has 20 more tokens, which pad it; harmless"}


def test_vocabulary_that_lacks_tokens_is_wrong(few: Golden, dumped: PORT) -> None:
    report = judged(few, dumped | {"logits": dumped["logits"][:, :1700]})
    assert wrong(report) == ["logits"]
    assert "expected [1, 1792]" in report.first_divergence.reason


def test_ids_of_the_text_alone_are_harmless_and_a_wrong_one_is_found(few: Golden, dumped: PORT) -> None:
    ids = dumped["prompts.0.input_ids"][36:]
    report = judged(few, dumped | {"prompts.0.input_ids": ids[None]})
    note = "it holds the 4 ids of the text without those of the picture; harmless"
    assert (wrong(report), notes(report)) == ([], {"prompts.0.input_ids": note})
    report = judged(few, dumped | {"prompts.0.input_ids": ids[::-1]})
    assert report.first_divergence.bad_rows == (36, 37, 38, 39)
    report = judged(few, dumped | {"prompts.0.input_ids": ids[:3]})
    assert report.first_divergence.reason == "shape [3], expected [40] (T)"


@pytest.mark.parametrize(("rows", "kept"), [((36, None), slice(36, 40)), ((-1, None), slice(39, 40)), (5, slice(5, 6))])
def test_rule_says_which_rows_the_dump_has(rows: object, kept: slice, few: Golden, dumped: PORT) -> None:
    rule = Rule("some", "text.norm", rows=rows)
    port = {"some": dumped["text.norm"][kept].copy()}
    report = judged(few, port, rule)
    count = kept.stop - kept.start
    note = f"the dump holds {count} of its 40 rows, as a rule says; the others are not compared"
    assert (wrong(report), notes(report)) == ([], {"text.norm": note})
    port["some"][0] += 0.01
    assert judged(few, port, rule).first_divergence.bad_rows == (kept.start,)
    port["some"] = dumped["text.norm"][: count + 1]
    assert wrong(judged(few, port, rule)) == ["text.norm"]


def test_replay_continues_with_its_own_rows_where_the_dump_has_none(
    model: VisionLanguageModel, golden: Golden, float32_port: PORT
) -> None:
    rules = NameMap((Rule("text", "text.layers.2.out", rows=(36, None)), KEEP))
    port = {"text": float32_port["text.layers.2.out"][36:], "logits": float32_port["logits"][:, :1744]}
    port["text.layers.1.out"] = float32_port["text.layers.1.out"]
    dump = Dump(port)
    report = replay(model, golden, dump, compare(golden, dump, rules, allow_missing=["*"]))
    assert (report.culprits, len(report.replayed)) == ([], 3)
    wrong = Dump(port | {"text": port["text"] + np.float32(0.1)})
    report = replay(model, golden, wrong, compare(golden, wrong, rules, allow_missing=["*"]))
    assert (report.culprits[0].name, report.culprits[0].bad_rows) == ("text.layers.2.out", (36, 37, 38, 39))


def test_tensor_with_many_axes_is_not_tried_in_every_way() -> None:
    place = Place("text.norm", "T D", np.zeros((40, 128)), 40)
    assert lay(place, np.zeros((2,) * 16)) is None
    assert lay(place, np.zeros((1,) * 20 + (40, 128))).x.shape == (40, 128)
