"""Where randomness starts: seeds, determinism flags, and a report of what was set.

Pure functions over the process: they touch the global random number generators, the environment and torch's flags,
and know neither a Trainer nor a rank. When they are called during a run is decided in ``callbacks/seed_everything.py``.

What no seed reaches: ``numpy.random.Generator`` and ``torch.Generator`` objects, which carry their own state, and the
order of a ``set`` of strings, which ``PYTHONHASHSEED`` fixes only if it is set before Python starts.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import logging
import os
import platform
import random
import secrets
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.utils.deterministic
from torch import nn

from lightning_weightwatch import _arguments

Level = bool | Literal["warn"]
Source = Literal["argument", "PL_GLOBAL_SEED", "picked"]
Changed = dict[str, tuple[Any, Any]]  # name of a flag or environment variable -> (before, after)

_LARGEST = 2**32 - 1  # numpy takes no more
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_PACKAGES = ("torch", "numpy", "lightning", "pytorch-lightning")
_deterministic: Any = torch.utils.deterministic  # its one attribute is a property of the module, which mypy cannot see
_log = logging.getLogger("lightning_weightwatch")


@dataclass(frozen=True, kw_only=True)
class SeedReport:
    """What was seeded, with what, and what else was changed for it.

    Attributes:
        seed: The seed in effect.
        source: Who chose it: the ``"argument"``, the environment variable ``"PL_GLOBAL_SEED"``, or nobody, so that it
            was ``"picked"`` from the operating system's entropy.
        workers: Whether Lightning seeds DataLoader workers, each with its own stream.
        deterministic: What torch really did when the report was made: ``True`` (an operation without a deterministic
            implementation raises), ``"warn"`` or ``False``.
        changed: Every flag and environment variable that was changed: name to (before, after), ``None`` for not set.
        versions: Of Python and the packages that numbers depend on.
        devices: What there is to compute on.
        python_hash_seed: ``PYTHONHASHSEED``, which is never set here: that would come too late.
        model_built_before: Whether the model had trainable weights before it was seeded, so that the seed does not
            account for them; ``None`` where that is not known.

    Example:
        >>> report = SeedReport(seed=42, source="argument", workers=True, deterministic=False)
        >>> print(report)
        Seed 42 (as asked) for random, NumPy, torch and DataLoader workers; deterministic algorithms: off.
    """

    seed: int
    source: Source
    workers: bool
    deterministic: Level
    changed: Changed = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    python_hash_seed: str | None = None
    model_built_before: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values that ``json`` takes."""
        changed = {name: list(ends) for name, ends in self.changed.items()}
        return asdict(self) | {"changed": changed, "devices": list(self.devices)}

    def to_markdown(self) -> str:
        """Return a page for the Text tab."""
        built_before = {None: "not known", True: "yes: the seed does not account for them", False: "no"}
        rows = {
            "changed": ", ".join(f"{name} ({_word(a)} to {_word(b)})" for name, (a, b) in self.changed.items()),
            "trainable weights older than the seed": built_before[self.model_built_before],
            "versions": ", ".join(f"{name} {version}" for name, version in self.versions.items()),
            "devices": ", ".join(self.devices),
            "PYTHONHASHSEED": _word(self.python_hash_seed),
        }
        return "\n".join([f"**{self}**", "", *(f"- {name}: `{text or 'nothing'}`" for name, text in rows.items())])

    def __str__(self) -> str:
        """One line for the console."""
        words = {
            "argument": "as asked",
            "PL_GLOBAL_SEED": "from PL_GLOBAL_SEED",
            "picked": f"picked; seed={self.seed} repeats it",
        }
        reach = "random, NumPy, torch and DataLoader workers" if self.workers else "random, NumPy and torch"
        level = {False: "off", True: "on", "warn": "on, with warnings only"}[self.deterministic]
        return f"Seed {self.seed} ({words[self.source]}) for {reach}; deterministic algorithms: {level}."


def seed(seed: int | None = None, *, workers: bool = True, deterministic: Level = False) -> SeedReport:
    """Seed ``random``, NumPy and torch on all devices; for the top of a script, a notebook, Fabric or plain torch.

    Sets ``PL_GLOBAL_SEED`` and ``PL_SEED_WORKERS`` as Lightning's ``seed_everything`` does, so Lightning's strategies
    and DataLoaders go on from the same seed. Call it before the model is built: weights are random numbers too.

    Args:
        seed: A whole number from 0 to 4294967295. ``None`` takes ``PL_GLOBAL_SEED``, and picks one if there is none.
            The one that was picked is in the report, and holds for later calls in this process too.
        workers: Let Lightning seed DataLoader workers, each with its own stream. Without it all ranks of a
            distributed run draw the same augmentations.
        deterministic: ``True`` makes torch refuse operations that give other numbers from run to run, ``"warn"`` only
            warns of them. ``False`` leaves all flags as they are. To switch back, call ``restore(report.changed)``.

    Returns:
        What was set, and what was there before.

    Raises:
        TypeError: If the seed is no whole number, or ``workers`` no bool.
        ValueError: If the seed is out of range, or ``deterministic`` is none of the three.

    Example:
        >>> seed(42).seed
        42
        >>> seed(-1)
        Traceback (most recent call last):
        ValueError: seed(seed=-1): expected a whole number from 0 to 4294967295 or None. Use 42, or None to pick one.
    """
    value, source = choose(check("seed", seed, workers, deterministic))
    changed = sow(value, workers=workers) | make_deterministic(deterministic)
    return describe(value, source, workers=workers, changed=changed)


def check(who: str, seed: Any, workers: Any, deterministic: Any) -> int | None:
    """Refuse arguments that cannot be used; return the seed as a plain ``int``.

    Args:
        who: The class or function the user called.
        seed: A whole number in range, or ``None``.
        workers: ``True`` or ``False``.
        deterministic: ``True``, ``False`` or ``"warn"``.

    Returns:
        The seed, or ``None``.

    Raises:
        TypeError: If one is of the wrong type.
        ValueError: If one is out of range.
    """
    remedy = 'Use "warn" to be warned of operations that are not deterministic.'
    _arguments.choice(who, "deterministic", deterministic, (False, True, "warn"), remedy)
    _arguments.flag(who, "workers", workers, "Use True to seed DataLoader workers too.")
    remedy = "Use 42, or None to pick one."
    plain: int | None = _arguments.whole_number(who, "seed", seed, least=0, most=_LARGEST, nothing=True, remedy=remedy)
    return plain


def choose(seed: int | None) -> tuple[int, Source]:
    """Return the seed to use and who chose it; draws from no random number generator of the process."""
    if seed is not None:
        return seed, "argument"
    found = seed_in_environment()
    if found is not None:
        return found, "PL_GLOBAL_SEED"
    return secrets.randbelow(_LARGEST + 1), "picked"


def seed_in_environment() -> int | None:
    """Return ``PL_GLOBAL_SEED``, or ``None`` if it is not set or no seed, which is said."""
    text = os.environ.get("PL_GLOBAL_SEED")
    if text is None:
        return None
    if text.strip().isdecimal() and int(text) <= _LARGEST:
        return int(text)
    _log.warning("PL_GLOBAL_SEED=%r is passed over: it is no whole number from 0 to %d.", text, _LARGEST)
    return None


def sow(seed: int, *, workers: bool, stream: str = "") -> Changed:
    """Seed every global random number generator and leave word of it for Lightning; return what changed of the latter.

    ``torch.manual_seed`` reaches all accelerators, also those that are not initialised yet.

    Args:
        seed: The seed.
        workers: Whether Lightning shall seed DataLoader workers.
        stream: A name for a stream of its own. What is drawn from it follows from the seed as well, and differs from
            what the seed itself gives: a layer made after a second seeding must not be the twin of one made before.
    """
    value = (
        seed
        if not stream
        else int.from_bytes(hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=4).digest(), "big")
    )
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)
    return _change({"PL_GLOBAL_SEED": str(seed), "PL_SEED_WORKERS": str(int(workers))})


def make_deterministic(level: Level) -> Changed:
    """Make torch choose deterministic algorithms; return what was changed, for ``restore``.

    Args:
        level: ``True`` refuses operations that have none, ``"warn"`` warns of them, ``False`` changes nothing.

    Returns:
        Name to (before, after).

    Example:
        >>> changed = make_deterministic("warn")
        >>> restore(changed)
    """
    if not level:
        return {}
    wanted: dict[str, Any] = {
        # The only one that can be refused (by torch.backends.disable_global_flags) comes first, so nothing is left half
        # done. cudnn.deterministic is not here: use_deterministic_algorithms implies it.
        "torch.backends.cudnn.benchmark": False,
        # Filling memory that a right program never reads makes no result more reproducible, and costs up to 15 %.
        "torch.utils.deterministic.fill_uninitialized_memory": False,
        "torch.is_deterministic_algorithms_warn_only_enabled": level == "warn",
        "torch.are_deterministic_algorithms_enabled": True,
    }
    if _CUBLAS not in os.environ:
        wanted[_CUBLAS] = ":4096:8"
        if _cuda_was_used():
            _log.warning(
                "%s is set only now, and CUDA has been used already. If torch then refuses matrix products, "
                "set it before Python starts: %s=:4096:8.",
                *(_CUBLAS, _CUBLAS),
            )
    return _change(wanted)


def restore(changed: Changed) -> None:
    """Put back what was changed; what somebody else has changed since is theirs, and stays."""
    for name, (before, after) in reversed(changed.items()):
        if _get(name) == after:
            _set(name, before)


def describe(
    seed: int, source: Source, *, workers: bool, changed: Changed, model_built_before: bool | None = None
) -> SeedReport:
    """Return the report of a seeding that has just been done."""
    return SeedReport(
        seed=seed,
        source=source,
        workers=workers,
        deterministic=_level(),
        changed=changed,
        versions=_versions(),
        devices=_devices(),
        python_hash_seed=os.environ.get("PYTHONHASHSEED"),
        model_built_before=model_built_before,
    )


def modules_alive() -> list[weakref.ref[nn.Module]]:
    """Return weak references to all modules there are, to tell later which of them is older than now.

    Takes about 0.2 s with 700,000 objects. ``type`` is asked rather than ``isinstance``, which would run code of lazy
    stand-ins.
    """
    objects = gc.get_objects()
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, nn.Module)}
    return [weakref.ref(o) for o in objects if type(o) in kinds]


def has_older_weights(model: nn.Module, older: list[weakref.ref[nn.Module]]) -> bool:
    """Whether a part of ``model`` with trainable parameters of its own is among the older modules."""
    ids = {id(module) for reference in older if (module := reference()) is not None}
    return any(id(m) in ids and any(p.requires_grad for p in m.parameters(recurse=False)) for m in model.modules())


def _set_warn_only(value: bool) -> None:
    torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled(), warn_only=value)


def _set_enabled(value: bool) -> None:
    torch.use_deterministic_algorithms(value, warn_only=torch.is_deterministic_algorithms_warn_only_enabled())


def _set_benchmark(value: bool) -> None:
    torch.backends.cudnn.benchmark = value


def _set_fill(value: bool) -> None:
    _deterministic.fill_uninitialized_memory = value


# How each flag is read and set. A name that is not here is an environment variable.
_FLAGS: dict[str, tuple[Callable[[], bool], Callable[[bool], None]]] = {
    "torch.backends.cudnn.benchmark": (lambda: bool(torch.backends.cudnn.benchmark), _set_benchmark),
    "torch.utils.deterministic.fill_uninitialized_memory": (
        lambda: bool(_deterministic.fill_uninitialized_memory),
        _set_fill,
    ),
    "torch.is_deterministic_algorithms_warn_only_enabled": (
        torch.is_deterministic_algorithms_warn_only_enabled,
        _set_warn_only,
    ),
    "torch.are_deterministic_algorithms_enabled": (torch.are_deterministic_algorithms_enabled, _set_enabled),
}


def _change(wanted: Mapping[str, Any]) -> Changed:
    changed: Changed = {}
    for name, after in wanted.items():
        before = _get(name)
        if before != after:
            _set(name, after)
            changed[name] = (before, after)
    return changed


def _get(name: str) -> Any:
    return _FLAGS[name][0]() if name in _FLAGS else os.environ.get(name)


def _set(name: str, value: Any) -> None:
    if name in _FLAGS:
        _FLAGS[name][1](value)
    elif value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _level() -> Level:
    if not torch.are_deterministic_algorithms_enabled():
        return False
    return "warn" if torch.is_deterministic_algorithms_warn_only_enabled() else True


def _cuda_was_used() -> bool:
    # Being initialised is not enough: Lightning does that before any hook. cuBLAS reads its setting when it first runs,
    # which cannot be before torch has put something on a device.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return any(torch.cuda.max_memory_allocated(i) > 0 for i in devices)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _devices() -> tuple[str, ...]:
    # A GPU's name is asked only where CUDA runs already: starting it here would forbid the process to fork later.
    count = torch.cuda.device_count()
    if torch.cuda.is_initialized():
        accelerators = [torch.cuda.get_device_name(i) for i in range(count)]
    else:
        accelerators = [f"{count} x CUDA"] if count else []
    return ("CPU", *accelerators, *(["MPS"] if torch.backends.mps.is_available() else []))


def _word(value: Any) -> str:
    return "not set" if value is None else str(value)
