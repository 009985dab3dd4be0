"""Every callback of the package, found rather than listed."""

import importlib
import pkgutil

import lightning.pytorch as pl
import pytest

import lightning_weightwatch.callbacks as folder


def classes() -> list[type[pl.Callback]]:
    """Return the callback classes that the package's own modules define."""
    modules = [
        importlib.import_module(f"{folder.__name__}.{info.name}") for info in pkgutil.iter_modules(folder.__path__)
    ]
    found = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, pl.Callback) and value.__module__ == module.__name__
    }
    return sorted(found, key=lambda cls: cls.__name__)


CLASSES = classes()
every_callback = pytest.mark.parametrize("callback_class", CLASSES, ids=lambda cls: cls.__name__)
# SeedEverything may touch random streams and flags; that is its job.
every_watcher = pytest.mark.parametrize(
    "callback_class", [cls for cls in CLASSES if cls.__name__ != "SeedEverything"], ids=lambda cls: cls.__name__
)
