"""Docstrings: every public name is documented in numpydoc form, and every example in the package runs."""

import doctest
import importlib
import inspect
import pkgutil
import re

import numpy as np
import pytest

import npgemma

MODULES = [
    found.name
    for found in pkgutil.walk_packages(npgemma.__path__, "npgemma.")
    if not found.ispkg and found.name not in ("npgemma.__main__", "npgemma.testing")
]
PUBLIC = [(name, getattr(npgemma, name)) for name in npgemma.__all__]
METHODS = [
    (f"{name}.{method}", function)
    for name, value in PUBLIC
    if inspect.isclass(value)
    for method, function in vars(value).items()
    if inspect.isfunction(function) and not method.startswith("_")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, tmp_path, monkeypatch) -> None:
    """In an empty folder, with the embedded model alone."""
    monkeypatch.chdir(tmp_path)
    with np.errstate(all="warn"), np.printoptions(legacy="1.25"):
        results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


@pytest.mark.parametrize(("name", "value"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_every_public_name_has_a_summary_and_an_example(name: str, value: object) -> None:
    text = inspect.getdoc(value)
    assert text.partition("\n")[0].endswith(".")
    assert ">>> " in text, f"{name} has no example"


def parameters(function: object) -> list[str]:
    return [each for each in inspect.signature(function).parameters if each not in ("self", "cls")]


FUNCTIONS = [(name, value) for name, value in PUBLIC if inspect.isfunction(value)] + METHODS


@pytest.mark.parametrize(("name", "function"), FUNCTIONS, ids=[name for name, _ in FUNCTIONS])
def test_every_public_function_documents_its_parameters_and_result(name: str, function: object) -> None:
    text = inspect.getdoc(function)
    documented = re.findall(r"^\*{0,2}\w+(?:, \*{0,2}\w+)*(?= : |$)", text.partition("Parameters\n")[2], re.MULTILINE)
    names = {name.strip("*") for line in documented for name in line.split(", ")}
    assert names >= set(parameters(function))
    assert "Returns\n-------" in text or "Yields\n------" in text, f"{name} does not say what it returns"
