"""Measure the embedded language model: every country in every kind of question.

    python tools/evaluate_language.py [FOLDER] [--dtype float64] [--transformers]

With --transformers, the greedy answers of transformers' own classes are compared too, token by token; its chat template
makes their prompts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from capital_world import exam, statements, unseen_questions

import npgemma
from npgemma.io.model_folder import EMBEDDED_LANGUAGE
from npgemma.tasks.chat import BOS

MAX_NEW_TOKENS = 40


class Transformers:
    """What transformers' Gemma 3 continues prompts with, greedily."""

    def __init__(self, folder: Path):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def prompt(self, messages: list[dict[str, str]]) -> str:
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def generate(self, prompts: list[str]) -> list[list[int]]:
        """The token ids of each answer, its end included. The prompts have their <bos>."""
        inputs = self.tokenizer(
            prompts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
        )
        with self.torch.no_grad():
            rows = self.model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        answers = rows[:, inputs["input_ids"].shape[1] :].tolist()
        ends = self.model.generation_config.eos_token_id
        return [row[: next((i + 1 for i, token in enumerate(row) if token in ends), None)] for row in answers]


@dataclass(frozen=True)
class Case:
    """What a model is to continue, a text or a conversation, and how."""

    prompt: str | list[dict[str, str]]
    answer: str

    def text(self, write: Callable[[list[dict[str, str]]], str]) -> str:
        """The text of the prompt; `write` makes that of a conversation."""
        return BOS + self.prompt if isinstance(self.prompt, str) else write(self.prompt)


def cases() -> dict[str, list[Case]]:
    """All that the model is to know, and some questions that it does not know the answers to, by kind."""
    asked = exam() | {"unseen questions": [(talk, 0) for talk in unseen_questions()]}
    return {"statements": [Case(*each) for each in statements()]} | {
        kind: [Case(talk.messages(turn), talk.exchanges[turn].answer(talk.system)) for talk, turn in found]
        for kind, found in asked.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=EMBEDDED_LANGUAGE)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--transformers", action="store_true", help="compare every token with transformers' generate")
    a = parser.parse_args()
    model = npgemma.LanguageModel.load(a.folder, dtype=a.dtype)
    oracle = Transformers(a.folder) if a.transformers else None
    scores, same = {}, []
    for kind, asked in cases().items():
        prompts = [case.text(model.chat_prompt) for case in asked]
        found = model.generate(prompts, max_new_tokens=MAX_NEW_TOKENS)
        right = [
            each.text == case.answer and each.finish_reason == "stop" for each, case in zip(found, asked, strict=True)
        ]
        scores[kind] = f"{sum(right)} of {len(right)}"
        if oracle:
            theirs = oracle.generate([case.text(oracle.prompt) for case in asked])
            same += [ours.token_ids == ids for ours, ids in zip(found, theirs, strict=True)]
    if oracle:
        scores["same tokens as transformers"] = f"{sum(same)} of {len(same)} answers"
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
