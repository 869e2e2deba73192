"""One base class is all a caller has to catch, and every child of it is public."""

import inspect

import pytest

import npgemma
from npgemma import errors

BAD = [errors.BadData, errors.BadEmbeddings, errors.BadGolden, errors.BadJobs]
BAD += [errors.BadModel, errors.BadPicture, errors.BadPrompt]
CHILDREN = [*BAD, errors.TooLittleMemory]


@pytest.mark.parametrize("child", CHILDREN)
def test_every_error_is_caught_as_npgemma_error_and_as_nothing_else_of_ours(child):
    """A child derives from the base directly: catching BadModel must not swallow a BadPicture."""
    assert child.__bases__ == (errors.NpgemmaError,)
    assert errors.NpgemmaError.__bases__ == (Exception,)


def test_the_module_holds_the_base_and_its_children_and_each_is_public():
    """A new kind of error that the package does not export could only be caught by its private path."""
    classes = {name: thing for name, thing in vars(errors).items() if inspect.isclass(thing)}
    assert set(classes.values()) == {errors.NpgemmaError, *CHILDREN}
    for name, thing in classes.items():
        assert getattr(npgemma, name) is thing
        assert name in npgemma.__all__


def test_every_public_name_exists_once():
    assert len(set(npgemma.__all__)) == len(npgemma.__all__)
    for name in npgemma.__all__:
        assert hasattr(npgemma, name)


@pytest.mark.parametrize("child", CHILDREN)
def test_an_error_says_its_message_and_nothing_more(child):
    """The command line prints str(error) as its one sentence."""
    assert str(child("folder: config.json is missing")) == "folder: config.json is missing"
