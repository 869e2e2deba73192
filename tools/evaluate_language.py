"""Measure the embedded language model: every country in every kind of question.

    python tools/evaluate_language.py [FOLDER] [--dtype float64] [--transformers]

With --transformers, the greedy answers of transformers' own classes are compared too, token by token; its chat template
makes their prompts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from capital_world import Conversation, exam, statements, unseen_questions

import npgemma
from npgemma.io.model_folder import EMBEDDED_LANGUAGE

MAX_NEW_TOKENS = 40


class Transformers:
    """What transformers' Gemma 3 continues prompts with, greedily."""

    def __init__(self, folder: Path):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def statement(self, prompt: str) -> list[int]:
        return self.generate(self.tokenizer(prompt, return_tensors="pt").input_ids)

    def answer(self, messages: list[dict[str, str]]) -> list[int]:
        asked = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        return self.generate(asked["input_ids"])

    def generate(self, ids) -> list[int]:
        with self.torch.no_grad():
            (row,) = self.model.generate(ids, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        return row[ids.shape[1] :].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=EMBEDDED_LANGUAGE)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--transformers", action="store_true", help="compare every token with transformers' generate")
    a = parser.parse_args()
    model = npgemma.LanguageModel.load(a.folder, dtype=a.dtype)
    oracle = Transformers(a.folder) if a.transformers else None
    right: dict[str, list[bool]] = {"statements": []}
    same: list[bool] = []
    for prompt, rest in statements():
        found = model.generate(prompt, max_new_tokens=MAX_NEW_TOKENS)
        right["statements"].append(found.text == rest and found.finish_reason == "eos")
        same += [found.token_ids == oracle.statement(prompt)] if oracle else []
    cases: dict[str, list[tuple[Conversation, int]]] = exam()
    for kind, asked in (cases | {"unseen questions": [(each, 0) for each in unseen_questions()]}).items():
        right[kind] = []
        for talk, turn in asked:
            messages = talk.messages(turn)
            found = model.chat(messages, max_new_tokens=MAX_NEW_TOKENS)
            right[kind].append(found.text == talk.exchanges[turn].answer(talk.system))
            same += [found.token_ids == oracle.answer(messages)] if oracle else []
    scores = {kind: f"{sum(values)} of {len(values)}" for kind, values in right.items()}
    if oracle:
        scores["same tokens as transformers"] = f"{sum(same)} of {len(same)} answers"
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
