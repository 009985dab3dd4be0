"""The folder as registry."""

import importlib

import pytest

from lightning_weightwatch._folder import members


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a function that makes a package of the files it is given."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name, **files):
        place = tmp_path / name
        place.mkdir()
        for file, text in {"__init__": "", **files}.items():
            (place / f"{file}.py").write_text(text)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    return make


def test_a_new_file_is_found_without_being_listed(folder):
    assert members(folder("tools", saw="TOOL = 2", axe="TOOL = 1"), "TOOL") == {"axe": 1, "saw": 2}
    assert list(members(importlib.import_module("tools"), "TOOL")) == ["axe", "saw"]


def test_helpers_are_passed_over_and_not_even_run(folder):
    assert members(folder("tools2", _helper="raise SystemError", saw="TOOL = 1"), "TOOL") == {"saw": 1}


def test_a_file_without_the_constant_is_named(folder):
    with pytest.raises(ImportError, match=r"tools3\.axe must define TOOL\. A helper module's name begins with '_'\."):
        members(folder("tools3", axe="ToOl = 1"), "TOOL")
