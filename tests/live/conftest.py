"""What the live tests share: the folders they read, and how near to the truth the float32 runs came, told at last."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"  # pictures and PaliGemma's own tokenizer, too large for the repository
EMBEDDED = ROOT / "npgemma" / "assets" / "tiny"

RATIOS = pytest.StashKey[dict[str, float]]()


@pytest.fixture(scope="session")
def ratios(pytestconfig: pytest.Config) -> dict[str, float]:
    """By name of a model: npgemma's float32 error divided by transformers'. What is put in is printed at the end."""
    return pytestconfig.stash.setdefault(RATIOS, {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    ratios = config.stash.get(RATIOS, {})
    if ratios:
        terminalreporter.section("float32 error of the logits, npgemma's divided by transformers'")
        for name in sorted(ratios, key=ratios.__getitem__, reverse=True)[:3]:
            terminalreporter.line(f"{ratios[name]:6.3f}  {name}")
        terminalreporter.line(f"the largest 3 of {len(ratios)}")


@pytest.fixture(scope="session", params=["embedded", "paligemma"])
def tokenizer_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but a tokenizer.model: the embedded model's, and PaliGemma's own where it is at hand."""
    path = {"embedded": EMBEDDED / "tokenizer.model", "paligemma": SHARED / "tokenizer" / "paligemma.model"}
    source = path[request.param]
    if not source.exists():
        pytest.skip(f"{source} is not at hand")
    folder = tmp_path_factory.mktemp("tokenizer")
    shutil.copy(source, folder / "tokenizer.model")
    return folder


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """On a busy machine, torch's threads wait for each other a hundred times longer than such small models take."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
