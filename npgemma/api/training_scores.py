"""How good a model is on held-out examples: the loss, and the scores of its greedy answers by task."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from npgemma.api.batch import IN_FLIGHT, answer_jobs
from npgemma.errors import BadData
from npgemma.io.jobs import Job
from npgemma.training.encoding import Encoder
from npgemma.training.evaluate import evaluated
from npgemma.training.examples import Example

SPARE_TOKENS = 8  # an answer is cut off so many tokens after the longest suffix that is wanted


def scored(model: Any, encoder: Encoder, examples: Sequence[Example]) -> dict[str, Any]:
    """The mean loss by token, and the scores by task. NpgemmaError for an example that cannot be answered."""
    jobs = [Job(i, tuple(map(str, each.images)), each.prefix, Path(), each.suffix) for i, each in enumerate(examples)]
    longest = max(len(model.processor.suffix_ids(each.suffix)) for each in examples)
    room = model.config.text.max_position_embeddings
    room -= max(encoder.encode(each.prefix, each.suffix, len(each.images)).learned_from for each in examples)
    answers, total, tokens = [""] * len(jobs), [], 0
    for result in answer_jobs(model, jobs, IN_FLIGHT, True, max_new_tokens=min(longest + SPARE_TOKENS, room)):
        if result.generation is None or result.score is None:
            raise BadData(f"{examples[int(result.job.id)].where}: {result.error}")
        answers[int(result.job.id)] = result.generation.text
        total.append(result.score.total)
        tokens += len(result.score.token_ids)
    codec = model.mask_codec if any("<seg" in each.suffix for each in examples) else None
    tasks = {task: asdict(each) for task, each in evaluated(examples, answers, codec).items()}
    return {"loss": -math.fsum(total) / tokens, "tasks": tasks}
