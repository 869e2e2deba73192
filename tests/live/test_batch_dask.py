"""tools/batch_dask.py: jobs on several processes have the results of `npgemma batch`, and continue after a restart."""

import json
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
from answers import LOGPROBS
from job_files import by_id
from shape_world import draw_scene

from npgemma.commands.cli import main
from npgemma.errors import BadJobs

pytest.importorskip("distributed", reason="the jobs are distributed with Dask")

import batch_dask

pytestmark = [
    pytest.mark.live,
    pytest.mark.filterwarnings("ignore"),  # Dask's own, about ports and event loops
    pytest.mark.skipif(sys.platform == "win32", reason="a cluster of processes must be started from a file there"),
]

PROMPTS = ["caption en", "ocr", "answer en how many shapes are there?", "detect star ; circle"]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> Path:
    """A file of 24 jobs, two of them invalid."""
    folder = tmp_path_factory.mktemp("jobs")
    lines = []
    for i in range(24):
        draw_scene(Random(i), side=96).image.save(folder / f"{i}.png")
        lines.append(json.dumps({"id": f"p{i}", "image": f"{i}.png", "prompt": PROMPTS[i % 4]}))
    lines[5] = lines[5].replace("5.png", "gone.png")
    lines[9] = "broken"
    (folder / "jobs.jsonl").write_text("\n".join(lines))
    return folder / "jobs.jsonl"


@pytest.fixture(scope="module")
def expected(jobs) -> dict[str | int, dict]:
    """What `npgemma batch` writes."""
    out = jobs.with_name("expected.jsonl")
    assert main(["batch", str(jobs), "-o", str(out)]) == 1
    return by_id(out)


def assert_same(found: dict[str | int, dict], expected: dict[str | int, dict]) -> None:
    assert found.keys() == expected.keys()
    for name, result in found.items():
        logprobs = result.pop("logprobs", [])
        plain = {key: value for key, value in expected[name].items() if key != "logprobs"}
        assert result == plain
        np.testing.assert_allclose(logprobs, expected[name].get("logprobs", []), rtol=0, atol=LOGPROBS, strict=True)


def test_two_processes_write_what_npgemma_batch_writes_and_continue(jobs, expected, tmp_path, monkeypatch, capsys):
    """From some results and half a line, as a killed process leaves them; then with no jobs left."""
    assert len(expected) == 24
    assert sum("error" in result for result in expected.values()) == 2
    out = tmp_path / "out.jsonl"
    written = jobs.with_name("expected.jsonl").read_bytes().splitlines(keepends=True)
    first = [line for line in written if b'"error"' not in line][:7]
    out.write_bytes(b"".join(first) + b'{"id": "p2')
    monkeypatch.chdir(jobs.parent)
    batch_dask.main(["jobs.jsonl", "-o", str(out), "--chunk", "3", "--in-flight", "2"])
    assert out.read_bytes().startswith(b"".join(first))
    assert_same(by_id(out), expected)
    was = out.read_bytes().splitlines()
    batch_dask.main(["jobs.jsonl", "-o", str(out), "--workers", "1"])
    assert sorted(out.read_bytes().splitlines()) == sorted(was)  # errors were retried


def test_a_running_cluster_is_used_and_flags_reach_the_workers(jobs, tmp_path):
    from dask.distributed import LocalCluster

    flags = ["--max-new-tokens", "2"]
    assert main(["batch", str(jobs), "-o", str(tmp_path / "expected.jsonl"), *flags]) == 1
    out = tmp_path / "out.jsonl"
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        batch_dask.main([str(jobs), "-o", str(out), "--scheduler", cluster.scheduler_address, "--chunk", "2", *flags])
    assert_same(by_id(out), by_id(tmp_path / "expected.jsonl"))
    assert all(len(result.get("token_ids", [])) <= 2 for result in by_id(out).values())


def test_a_file_that_does_not_hold_results_is_left_unchanged(jobs, tmp_path):
    (tmp_path / "notes.txt").write_text("my notes\n")
    with pytest.raises(BadJobs, match="is not the result of a job"):
        batch_dask.main([str(jobs), "-o", str(tmp_path / "notes.txt"), "--workers", "1"])
    assert (tmp_path / "notes.txt").read_text() == "my notes\n"
