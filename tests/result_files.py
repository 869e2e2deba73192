"""Files of results, written and read with `open_results`, and results for them."""

import json
from pathlib import Path

from npgemma.io.results import open_results

ANSWERS = [
    {"id": "a", "image": "a.png", "prompt": "caption en", "text": "a \x1b[31mé猫😀\u2028\udcff", "logprobs": [-0.125]},
    {"id": 2, "image": "b.png", "prompt": "ocr", "text": "open", "token_ids": [5, 1], "finish_reason": "stop"},
    {"id": "c", "image": ["c.png", "d.png"], "prompt": "ocr", "text": "", "token_ids": [1], "logprobs": [-1e-17]},
]
JOB_ERROR = {"id": "g", "image": "g.png", "prompt": "ocr", "error": "g.png is missing \udcff"}
LINE_ERROR = {"id": "line 7", "error": "line 7: prompt is None, not text"}


def as_lines(*results: dict) -> bytes:
    """The content of a file with these results."""
    return b"".join(json.dumps(result).encode() + b"\n" for result in results)


def write_results(path: Path, *results: dict) -> bytes:
    """Append results to a file; returns its content."""
    with open_results(path) as file:
        for result in results:
            file.write(result)
    return path.read_bytes()


def read_results(path: Path) -> list[dict]:
    """The results in a file when it is opened, which removes errors and an incomplete last line."""
    with open_results(path) as results:
        found = [json.loads(line) for line in path.read_bytes().splitlines()]
        assert results.done.keys() == {result["id"] for result in found}
        return found
