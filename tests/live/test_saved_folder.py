"""A fine-tune as transformers 5 saves it: tokens added, configs of its own, a peft adapter beside it.

`save_pretrained` writes tokenizer.json alone, processor_config.json with the picture's settings nested in it, and
generation_config.json. transformers and peft, loaded from the same folder, give the right answers.
"""

import re
import shlex
import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
from shape_world import draw_scene

import npgemma
from npgemma.commands.cli import main

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("google.protobuf", reason="transformers reads a tokenizer.model with protobuf")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")
peft = pytest.importorskip("peft", reason="the live tests compare with peft")

from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

ADDED = ("<box-of>", "zorkmid")
STOP = " and"  # a second token that ends an answer
BILINEAR = 2
PROMPTS = ("caption en", "detect ring", "zorkmid", "ocr <box-of> zorkmids", "answer en what color is the star?<box-of>")
NEW = 24


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with two tokens more and other settings, saved by transformers, with an adapter in it."""
    torch.manual_seed(0)
    folder, embedded = tmp_path_factory.mktemp("saved") / "model", npgemma.load().folder
    model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(embedded, dtype=torch.bfloat16)
    tokenizer = transformers.GemmaTokenizer.from_pretrained(embedded)
    pictures = SiglipImageProcessorPil(size={"height": 84, "width": 84}, image_seq_length=36, resample=BILINEAR)
    processor = transformers.PaliGemmaProcessor(pictures, tokenizer)
    processor.tokenizer.add_tokens(list(ADDED))
    model.resize_token_embeddings(len(processor.tokenizer) + 51)
    table = model.get_input_embeddings().weight.data
    table[len(tokenizer) :] = 0  # rows without a token, which npgemma never chooses
    for token in processor.tokenizer.convert_tokens_to_ids(list(ADDED)):
        table[token] = torch.randn(table.shape[1]) * table.std()
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=[1, *tokenizer.encode(STOP, add_special_tokens=False)], bos_token_id=2, pad_token_id=0
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    adapted = peft.get_peft_model(model.float(), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    for name, x in adapted.named_parameters():
        if "lora_" in name:
            x.data = torch.randn_like(x) * 0.02
    adapted.save_pretrained(folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def processor(saved: Path) -> "transformers.PaliGemmaProcessor":
    return transformers.PaliGemmaProcessor.from_pretrained(saved, backend="pil")


@pytest.fixture(scope="module", params=[False, True], ids=["model", "adapter"])
def both(request, saved: Path):
    """npgemma's model and transformers', without and with the adapter."""
    theirs = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        saved, dtype=torch.float32, attn_implementation="eager"
    )
    if request.param:
        theirs = peft.PeftModel.from_pretrained(theirs, saved / "adapter")
    return npgemma.load(saved, adapter=saved / "adapter" if request.param else None), theirs.eval()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_pixels_and_answers_are_those_of_transformers(both, processor, prompt: str) -> None:
    ours, theirs = both
    image = draw_scene(Random(5)).image
    expected = processor(images=image, text=f"<image>{prompt}", return_tensors="pt")
    found = ours.processor(images=[image], text=[prompt])
    assert found.input_ids[0].tolist() == expected["input_ids"][0].tolist()
    np.testing.assert_array_equal(found.pixel_values, expected["pixel_values"].numpy(), strict=True)
    with torch.no_grad():
        ids = theirs.generate(**expected, max_new_tokens=NEW, do_sample=False)[0, expected["input_ids"].shape[1] :]
    answer = ours.generate(image, prompt, max_new_tokens=NEW)
    assert answer.token_ids == ids.tolist()
    assert answer.text == processor.decode(ids, skip_special_tokens=True)


def test_every_key_of_its_files_is_known(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(saved)]) == 0
    assert "unknown" not in capsys.readouterr().out


README = (Path(__file__).parents[2] / "README.md").read_text()
ROWS = re.findall(r"^\| `npgemma (.*?)` \| `.*` \|$", README, re.MULTILINE)
# These are for a language model and for a pair of towers.
OTHER_MODELS = ('generate "', "classify")
COMMANDS = [row for row in ROWS if not row.startswith(OTHER_MODELS)]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("adapter", [False, True], ids=["model", "adapter"])
def test_every_command_of_the_readme_runs(
    saved: Path, adapter: bool, command: str, tmp_path: Path, monkeypatch
) -> None:
    """A folder that transformers saves has no mask decoder; --codec names one."""
    shutil.copy(npgemma.sample_picture(), tmp_path)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    if words[0] == "inspect":
        words.append(str(saved))
    else:
        words += ["-m", str(saved)] + ["--adapter", str(saved / "adapter")] * adapter
    if words[0] == "segment":
        words += ["--codec", str(npgemma.load().folder / "vae-oid.npz")]
    assert main(words) == 0
