"""Write tests/data: results of transformers for small random PaliGemmas, so that tests need only NumPy.

    python tools/make_fixtures.py tests/data

Each case becomes one safetensors file: the weights as transformers saves them, the inputs, and the results in float64
and in float32. Running it again on the same machine, with the same versions of torch and transformers, writes the same
bytes.

transformers does not compute everything in float64, even with float64 weights: RMS norms, softmax, rotary angles and
the embedding scale are float32. `truth` makes all of them float64, so that the float64 results here are exact up to
rounding of about 1e-16.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import safetensors.torch
import torch
from torch import Tensor
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, PreTrainedModel

IMAGE = "image"


@dataclass(frozen=True)
class Case:
    """A small PaliGemma and a prompt: IMAGE means the tokens of a picture, a number that many text tokens.

    Sizes are pairwise distinct, so that a swapped axis cannot fit.
    """

    vision: dict
    text: dict
    prompt: tuple[str | int, ...]
    seed: int
    suffix: int = 0
    image_token: int = 57
    tied: bool = True
    stored: torch.dtype = torch.float32

    @property
    def config(self) -> PaliGemmaConfig:
        width = self.text["hidden_size"]
        return PaliGemmaConfig(
            vision_config=dict(model_type="siglip_vision_model", vision_use_head=False, **self.vision),
            text_config=dict(model_type="gemma", pad_token_id=0, eos_token_id=1, bos_token_id=2) | self.text,
            hidden_size=width,
            projection_dim=width,
            image_token_index=self.image_token,
            tie_word_embeddings=self.tied,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=2,
            attn_implementation="eager",
        )


def sizes(hidden: int, mlp: int, layers: int, heads: int, **rest: float | dict) -> dict:
    """The four sizes that both halves of a config have, by their names there."""
    return dict(hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads, **rest)


# the seeds are such that the greedy ids vary, and that those of "multihead" end with the end token
CASES = {
    # query heads in groups, odd patch grid, a suffix; the image token has a row of the embedding table
    "grouped": Case(
        sizes(12, 17, 2, 3, image_size=35, patch_size=7),
        sizes(11, 23, 3, 6, num_key_value_heads=2, head_dim=10, vocab_size=61),
        prompt=(IMAGE, 7),
        seed=33,
        suffix=5,
        stored=torch.bfloat16,
    ),
    # every query head with a key head of its own, pixels left over beside the last patch, two pictures, no suffix;
    # the image token is beyond the table
    "multihead": Case(
        sizes(15, 19, 1, 5, image_size=23, patch_size=7, layer_norm_eps=1e-3),
        sizes(9, 26, 2, 4, num_key_value_heads=4, head_dim=6, vocab_size=53, rms_norm_eps=1e-3),
        prompt=(IMAGE, IMAGE, 6),
        seed=7,
    ),
    # one key head for all, three pictures with text between, a head of its own, other rotary angles
    "multiquery": Case(
        sizes(8, 13, 2, 2, image_size=20, patch_size=10),
        sizes(14, 21, 2, 3, num_key_value_heads=1, head_dim=8, vocab_size=59)
        | dict(rope_parameters=dict(rope_type="default", rope_theta=50.0)),
        prompt=(3, IMAGE, 1, IMAGE, IMAGE, 4),
        seed=19,
        suffix=3,
        tied=False,
        stored=torch.float16,
    ),
    # text alone
    "text": Case(
        sizes(6, 7, 1, 1, image_size=9, patch_size=5),
        sizes(10, 15, 2, 4, num_key_value_heads=2, head_dim=12, vocab_size=67),
        prompt=(9,),
        seed=33,
        suffix=6,
        stored=torch.bfloat16,
    ),
}


def build(case: Case, generator: torch.Generator) -> PaliGemmaForConditionalGeneration:
    """A float32 model whose every parameter is random, and a number that the case's stored dtype has.

    Scaled so that activations stay near one: matrices by their fan-in, vectors near their neutral value. transformers
    initialises norms and biases with neutral values, and a test could not detect that one is not applied.
    """
    model = PaliGemmaForConditionalGeneration(case.config).eval()
    for name, parameter in model.named_parameters():
        x = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if x.ndim == 1:
            x = x * 0.2 + (1.0 if "layer_norm" in name or "post_layernorm" in name else 0.0)
        elif "position" not in name:
            x = x * (2.0 if "proj" in name else 1.0) / x[0].numel() ** 0.5
        parameter.data = x.to(case.stored).float()
    model.tie_weights()
    return model


@contextmanager
def truth() -> Iterator[None]:
    """In this context, code that asks torch for float32 gets float64."""
    default = torch.get_default_dtype()
    with (
        mock.patch.multiple(torch, float=torch.float64, float32=torch.float64),
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model whose rotary frequencies and embedding scale are float64, too. Run it in `truth`."""
    config = copy.deepcopy(model.config)
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        part.dtype = torch.float64
    with truth():
        wide = type(model)(config).eval()
        wide.load_state_dict(model.state_dict())
    return wide


@torch.no_grad()
def run(model: PaliGemmaForConditionalGeneration, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one forward pass by the names of npgemma's taps.

    Logits, hidden states, and the first layer's keys from the cache, the only tensor that shows that positions start
    at 1.
    """
    seen = model(
        **inputs, attention_mask=torch.ones_like(inputs["input_ids"]), output_hidden_states=True, use_cache=True
    )
    *blocks, last = seen.hidden_states
    found = {"logits": seen.logits[0], "text.embedding": blocks[0][0], "text.norm": last[0]}
    found["text.layers.0.attn.k_rope"] = seen.past_key_values.layers[0].keys[0].transpose(0, 1)
    found |= {f"text.layers.{i}.out": x[0] for i, x in enumerate(blocks[1:])}
    if "pixel_values" in inputs:
        vision = model.get_image_features(inputs["pixel_values"], output_hidden_states=True)
        found |= {"projector": vision.pooler_output, "vision.norm": vision.last_hidden_state}
        found |= {"vision.embedding": vision.hidden_states[0]}
        found |= {f"vision.layers.{i}.out": x for i, x in enumerate(vision.hidden_states[1:])}
    return found


@torch.no_grad()
def greedy(model: PreTrainedModel, inputs: dict[str, Tensor], max_new_tokens: int) -> Tensor:
    """The ids that greedy decoding generates after the prompt."""
    ones = torch.ones_like(inputs["input_ids"])
    ids = model.generate(**inputs, attention_mask=ones, max_new_tokens=max_new_tokens, do_sample=False)
    return ids[0, ones.shape[1] :]


def make_inputs(case: Case, generator: torch.Generator) -> dict[str, Tensor]:
    """input_ids, token_type_ids and, where there are pictures, pixel_values, each with a batch axis."""
    side, patch = case.vision["image_size"], case.vision["patch_size"]
    picture = torch.full(((side // patch) ** 2,), case.image_token)

    def text(length: int) -> Tensor:
        return torch.randint(3, min(case.text["vocab_size"], case.image_token), (length,), generator=generator)

    prefix = torch.cat([picture if part == IMAGE else text(part) for part in case.prompt])
    suffix = text(case.suffix)
    inputs = {
        "input_ids": torch.cat([prefix, suffix])[None],
        "token_type_ids": torch.cat([torch.zeros_like(prefix), torch.ones_like(suffix)])[None],
    }
    if images := case.prompt.count(IMAGE):
        # few bits each, so that float16 holds them exactly and the file stays small
        pixels = torch.randint(-128, 129, (images, 3, side, side), generator=generator) / 128
        inputs["pixel_values"] = pixels.float()
    return inputs


def make_case(name: str, out: Path) -> None:
    """Write one case to out/NAME.safetensors."""
    case = CASES[name]
    generator = torch.Generator().manual_seed(case.seed)
    model = build(case, generator)
    inputs = make_inputs(case, generator)
    with tempfile.TemporaryDirectory() as folder:
        # a copy: casting would also round the rotary frequencies
        copy.deepcopy(model).to(case.stored).save_pretrained(folder)
        tensors = {
            f"weights/{name}": x for name, x in safetensors.torch.load_file(f"{folder}/model.safetensors").items()
        }
        config = json.loads(Path(folder, "config.json").read_text())
    tensors |= {f"inputs/{key}": x.half() if key == "pixel_values" else x for key, x in inputs.items()}
    tensors |= {f"float32/{key}": x for key, x in run(model, inputs).items()}
    with truth():
        wide = {key: x.double() if key == "pixel_values" else x for key, x in inputs.items()}
        tensors |= {f"float64/{key}": x for key, x in run(in_float64(model), wide).items()}
    prefix = int((inputs["token_type_ids"] == 0).sum())
    prompt = inputs | {key: inputs[key][:, :prefix] for key in ("input_ids", "token_type_ids")}
    tensors["greedy"] = greedy(model, prompt, 12)
    tensors = {key: x.contiguous() for key, x in tensors.items()}
    # one entry of metadata: the order of several would differ from run to run
    written = safetensors.torch.save(tensors, {"config": json.dumps(config, sort_keys=True)})
    (out / f"{name}.safetensors").write_bytes(written)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    for name in CASES:
        make_case(name, out)


if __name__ == "__main__":
    main()
