"""README's code runs as it stands, and its commands are what the gate runs."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from npgemma.commands.cli import main
from npgemma.commands.demo import SAMPLE_LABELS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_first_python_block_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line]) <= 8
    scope: dict = {}
    exec(code, scope)
    caption, shape = capsys.readouterr().out.splitlines()
    assert caption == "a blue star, an orange ring and a green circle"
    assert shape == "(40, 4, 32) T N H"


def test_the_file_to_start_with_describes_the_sample_picture() -> None:
    done = subprocess.run([sys.executable, ROOT / "tests" / "one_page.py"], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("a blue star, an orange ring and a green circle\n", "")


ROWS = re.findall(r"^\| `npgemma (.*?)` \| (`.*`) \|$", README, re.MULTILINE)


@pytest.mark.parametrize(("command", "shown"), ROWS)
def test_a_command_prints_what_the_table_says(command, shown, monkeypatch, tmp_path, capsys):
    """Where a line is too long for the table, '...' stands for the rest."""
    shutil.copy(ROOT / "npgemma" / "assets" / "sample.png", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)) == 0
    printed = capsys.readouterr().out.replace("\t", " ")
    for line in re.findall(r"`(.*?)`", shown):
        assert line == "..." or f"{line}\n" in printed


def test_the_table_has_every_kind_of_command():
    named = {command.split()[0] for command, _ in ROWS}
    assert named >= {"caption", "answer", "ocr", "detect", "segment", "generate", "score", "inspect"}


def test_the_gate_runs_the_commands_of_the_readme():
    gate = ROOT / ".ci" / "run"
    if not gate.exists():
        pytest.skip("the gate is not part of a source distribution")
    first, second = re.findall(r"```bash\n(.*?)\n```", README, re.DOTALL)[:2]
    assert f'demo="{first}"' in gate.read_text()
    assert f'tests="{second}"' in gate.read_text()


@pytest.mark.parametrize(("command", "name"), [("detect", "sample-boxes.png"), ("segment", "sample-masks.png")])
def test_its_pictures_are_what_the_commands_draw(command, name, tmp_path, capsys):
    """But for a pixel at the edge of a mask, where another BLAS rounds otherwise."""
    assets, out = ROOT / "npgemma" / "assets", tmp_path / name
    assert main([command, str(assets / "sample.png"), *SAMPLE_LABELS, "--draw", str(out)]) == 0
    with Image.open(assets / name) as shown, Image.open(out) as drawn:
        assert (np.asarray(shown) != np.asarray(drawn)).any(-1).mean() < 1e-3


def test_its_contact_sheet_is_what_the_commands_draw(monkeypatch, tmp_path, capsys):
    """But for the digits of a cosine, where another BLAS rounds otherwise."""
    monkeypatch.chdir(tmp_path)
    block = next(b for b in re.findall(r"```bash\n(.*?)\n```", README, re.DOTALL) if "contact-sheet" in b)
    draw, *commands = map(shlex.split, block.splitlines())
    assert subprocess.run([sys.executable, str(ROOT / draw[1]), *draw[2:]], timeout=60).returncode == 0
    for command in commands:
        assert main(command[1:]) == 0
    with Image.open(ROOT / "npgemma" / "assets" / "contact-sheet.png") as shown, Image.open("sheet.png") as drawn:
        assert (np.asarray(shown) != np.asarray(drawn)).any(-1).mean() < 1e-3


PAPERS = re.findall(r"^\| \[\w+\]\(https://arxiv.org/abs/[\d.]+\), .*\| (.*) \| (.*) \|$", README, re.MULTILINE)


@pytest.mark.parametrize(("functions", "tests"), PAPERS)
def test_the_functions_and_tests_of_a_paper_exist(functions, tests):
    for module, function in re.findall(r"`(\w+)\.(\w+)`", functions):
        (path,) = (path for part in ("layers", "models") for path in (ROOT / "npgemma" / part).glob(f"{module}.py"))
        assert f"\ndef {function}(" in path.read_text("utf-8")
    names = re.findall(r"`([\w/.]+)`", tests)
    assert names
    assert all((ROOT / "tests" / name).is_file() for name in names)


def test_every_seed_paper_is_in_the_table():
    assert len(PAPERS) == 7


def test_the_lines_it_counts_are_there():
    """To a twentieth."""
    said = re.search(r"mathematics is ([\d,]+) lines, all of it ([\d,]+)\.", README)
    mathematics, whole = (int(number.replace(",", "")) for number in said.groups())
    lines = {path: len(path.read_text("utf-8").splitlines()) for path in (ROOT / "npgemma").rglob("*.py")}
    assert sum(lines.values()) == pytest.approx(whole, rel=0.05)
    parts = [count for path, count in lines.items() if path.parent.name in ("layers", "models")]
    assert sum(parts) == pytest.approx(mathematics, rel=0.05)


DOCUMENTS = ["README.md", *(str(path.relative_to(ROOT)) for path in ROOT.glob("[nt]*/**/README.md"))]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_it_names_exists(document):
    """Linked from the document's folder, or named in full. `x.py` and `x_grad.py` stand for a model to be added."""
    text = (ROOT / document).read_text("utf-8")
    linked = [(ROOT / document).parent / path for path in re.findall(r"\]\(([\w./-]+)\)", text)]
    named = [ROOT / path for path in re.findall(r"[`\"]((?:npgemma|tests|tools)/[\w./-]*)", text)]
    for path in [*linked, *named]:
        assert path.exists() or path.name in ("x.py", "x_grad.py"), path


def test_the_readme_has_at_most_200_lines():
    assert len(README.splitlines()) <= 200
