"""Train the embedded language model: transformers' own Gemma 3 on the capitals of the world.

    python tools/train_tokenizer.py npgemma/assets/tiny-gemma/tokenizer.model
    python tools/train_language.py RUN      # writes RUN/checkpoint.pt and RUN/log.jsonl; resumes where it stopped
    python tools/train_language.py RUN --export npgemma/assets/tiny-gemma

It stops as soon as all answers are right that the model is to know. A step has statements, of which
every token counts, and conversations, of which the answers count. The log says how many answers are right.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from capital_world import Conversation, converse, exam, statements, unseen_questions
from torch import Tensor
from training import Run, write_json
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from npgemma.io.added_tokens import GEMMAS
from npgemma.io.tokenizers import Tokenizer
from npgemma.tasks.chat import BOS, END, START, chat_prompt

ASSETS = Path(__file__).resolve().parent.parent / "npgemma" / "assets" / "tiny-gemma"
MODEL_TYPE = "gemma3_text"
EXAM_EVERY = 200
TURNS = (1, 2, 3, 4, 6, 8)  # of the conversations of a step, which have all the same number
IGNORED = -100

# As short as the configs on the hub: keys that have Gemma 3's usual values are left out. The window is shorter than a
# conversation of two turns; a system message at the beginning is seen through the one layer without a window.
CONFIG = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": MODEL_TYPE,
    "hidden_size": 96,
    "intermediate_size": 208,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "query_pre_attn_scalar": 24,
    "sliding_window": 24,
    "sliding_window_pattern": 6,
    "rope_theta": 1000000,
    "rope_local_base_freq": 10000,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "max_position_embeddings": 2048,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "torch_dtype": "bfloat16",
}

# The format of google/gemma-3-1b-it, for text alone.
TEMPLATE = """\
{{ bos_token }}{% set before = messages[0]['content'] + '\\n\\n' if messages[0]['role'] == 'system' else '' %}\
{% for message in messages if message['role'] != 'system' %}\
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}\
{% if (role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif %}\
{{ '<start_of_turn>' + role + '\\n' }}{{ before if loop.first else '' }}{{ message['content'] | trim }}\
{{ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

UNSEEN = "unseen questions"
Row = list[tuple[int, bool]]  # token ids, and whether the model is to say them


def spans(tokenizer: Tokenizer, parts: Iterable[tuple[str, bool]]) -> Row:
    """The tokens of consecutive texts, which are said or only read."""
    return [(token, said) for text, said in parts for token in tokenizer.encode(text)]


def statement_row(tokenizer: Tokenizer, prompt: str, rest: str) -> Row:
    return [*spans(tokenizer, [(BOS, False), (prompt + rest, True)]), (tokenizer.ids["<eos>"], True)]


def conversation_row(tokenizer: Tokenizer, conversation: Conversation, said: Iterable[int]) -> Row:
    """The answers of the turns `said` are to be said."""
    parts, done = [], ""
    for turn, exchange in enumerate(conversation.exchanges):
        prompt = chat_prompt(conversation.messages(turn), MODEL_TYPE)
        answer = exchange.answer(conversation.system) + END
        parts += [(prompt.removeprefix(done), False), (answer, turn in said)]
        done = prompt + answer
    return spans(tokenizer, parts)


def stacked(rows: list[Row]) -> tuple[Tensor, Tensor]:
    """Ids, with padding at the end, and labels: the token that a position is to say next."""
    length = max(map(len, rows))
    ids, labels = torch.zeros(len(rows), length, dtype=torch.long), torch.full((len(rows), length), IGNORED)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor([token for token, _ in row])
        labels[i, : len(row) - 1] = torch.tensor([token if said else IGNORED for token, said in row[1:]])
    return ids, labels


def said_logits(model: Gemma3ForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """The logits where labels are. Padding is at the end, where the causal mask hides it."""
    return model.lm_head(model.model(input_ids=ids, use_cache=False).last_hidden_state[labels != IGNORED])


def loss_of(model: Gemma3ForCausalLM, rows: list[Row]) -> Tensor:
    ids, labels = stacked(rows)
    return F.cross_entropy(said_logits(model, ids, labels), labels[labels != IGNORED])


@torch.no_grad()
def right(model: Gemma3ForCausalLM, rows: list[Row]) -> int:
    """How many rows a greedy run says: those where the best token is the right one at every position."""
    ids, labels = stacked(rows)
    said = labels != IGNORED
    hit = torch.ones_like(labels, dtype=torch.bool)
    hit[said] = said_logits(model, ids, labels).argmax(-1) == labels[said]
    return int(hit.all(1).sum())


def exam_rows(tokenizer: Tokenizer) -> dict[str, list[Row]]:
    """All questions that the model is to answer, and some that it was not trained on."""
    halves = {
        "statements": [
            [*spans(tokenizer, [(BOS + prompt, False), (rest, True)]), (tokenizer.ids["<eos>"], True)]
            for prompt, rest in statements()
        ]
    }
    asked = exam() | {UNSEEN: [(each, 0) for each in unseen_questions()]}
    return halves | {
        kind: [conversation_row(tokenizer, each, {turn}) for each, turn in cases] for kind, cases in asked.items()
    }


def scores(model: Gemma3ForCausalLM, rows: dict[str, list[Row]]) -> dict[str, float]:
    """The share of right answers by kind, with the weights in bfloat16, as they are saved."""
    rounded = Gemma3ForCausalLM(model.config).eval()
    rounded.load_state_dict({name: x.bfloat16().float() for name, x in model.state_dict().items()})
    return {kind: round(right(rounded, each) / len(each), 4) for kind, each in rows.items()}


def read_pieces() -> Tokenizer:
    return Tokenizer((ASSETS / "tokenizer.model").read_bytes(), family=GEMMAS[MODEL_TYPE])


def config_json(tokenizer: Tokenizer) -> dict:
    """The content of config.json; the embedding has rows up to a multiple of 64, as on the hub."""
    return CONFIG | {"vocab_size": -(-len(tokenizer) // 64) * 64}


def make_model(tokenizer: Tokenizer) -> Gemma3ForCausalLM:
    return Gemma3ForCausalLM(Gemma3TextConfig(**config_json(tokenizer)))


def train(folder: Path, steps: int, count: int, rate: float, seed: int, minutes: float) -> None:
    """Train to `steps`, or for `minutes`, or until all answers are right."""
    tokenizer = read_pieces()
    torch.manual_seed(seed)
    model = make_model(tokenizer)
    run = Run(folder, {"model": model}, steps, rate, minutes)
    told = [statement_row(tokenizer, *each) for each in statements()]
    questions = exam_rows(tokenizer)
    while not run.is_over:
        rng = Random(seed * 1_000_003 + run.step)
        turns = rng.choice(TURNS)
        talks = [converse(rng, turns) for _ in range(count // turns)]
        rows = [conversation_row(tokenizer, each, range(turns)) for each in talks]
        stated, answered = loss_of(model, rng.sample(told, count)), loss_of(model, rows)
        run.update(stated + answered, stated=stated, answered=answered)
        if run.step % EXAM_EVERY == 0 or run.step == steps:
            found = scores(model, questions)
            run.log(**found)
            if min(found[kind] for kind in found if kind != UNSEEN) == 1:
                run.save()
                break


def export(folder: Path, out: Path) -> None:
    """The checkpoint as a Hugging Face folder, weights in bfloat16; transformers' Auto classes read it too."""
    tokenizer = read_pieces()
    model = make_model(tokenizer)
    model.load_state_dict(torch.load(folder / "checkpoint.pt")["model"])
    model.to(torch.bfloat16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    ends = {"bos_token_id": 2, "eos_token_id": [1, tokenizer.ids[END]], "pad_token_id": 0}
    write_json(out / "config.json", config_json(tokenizer))
    write_json(out / "generation_config.json", ends)
    named = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    special = {
        str(tokenizer.ids[text]): {"content": text, "lstrip": False, "normalized": False, "rstrip": False}
        | {"single_word": False, "special": True}
        for text in (*named.values(), START, END)
    }
    write_json(
        out / "tokenizer_config.json",
        {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "added_tokens_decoder": special}
        | named
        | {"chat_template": TEMPLATE},
    )
    (out / "training_log.jsonl").write_bytes((folder / "log.jsonl").read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the checkpoint and the log")
    parser.add_argument(
        "--export", type=Path, metavar="FOLDER", help="write the checkpoint as a model folder, and stop"
    )
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long; start again to go on")
    parser.add_argument("--count", type=int, default=32, help="questions a step, and as many statements")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    if a.export:
        export(a.run, a.export)
    else:
        train(a.run, a.steps, a.count, a.rate, a.seed, a.minutes)


if __name__ == "__main__":
    main()
