"""The wording of refused arguments.

All read ``Who(argument=value): expected what. Remedy.``

Only construction-time arguments are checked here. What a Trainer or a network brings along is never refused: it is
reported and worked around.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


def refuse(who: str, argument: str, value: object, expected: str, remedy: str, *, wrong_type: bool = False) -> NoReturn:
    """Raise for an argument that cannot be used.

    Args:
        who: The class or function the user called.
        argument: The argument's name.
        value: What the user passed.
        expected: What would have been right, without a full stop.
        remedy: One sentence that says what to write instead.
        wrong_type: The value is of the wrong type rather than out of range.

    Raises:
        TypeError: If ``wrong_type``.
        ValueError: Otherwise.

    Example:
        >>> refuse("Saw", "teeth", 0, "a whole number of at least 1", "Use 24 for wood.")
        Traceback (most recent call last):
        ValueError: Saw(teeth=0): expected a whole number of at least 1. Use 24 for wood.
    """
    kind = TypeError if wrong_type else ValueError
    raise kind(f"{who}({argument}={value!r}): expected {expected}. {remedy}")


def whole_number(
    who: str, argument: str, value: Any, *, least: int, remedy: str, most: int | None = None, nothing: bool = False
) -> Any:
    """Return ``value`` if it is a whole number in range (or ``None`` where ``nothing`` is allowed); refuse otherwise.

    A bool is no number here: ``every_n_steps=True`` is a slip, not 1. NumPy integers are taken and made plain.
    """
    expected = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"
    if nothing:
        expected += " or None"
        if value is None:
            return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        refuse(who, argument, value, expected, remedy, wrong_type=True)
    number = int(value)
    if number < least or (most is not None and number > most):
        refuse(who, argument, value, expected, remedy)
    return number


def choice(who: str, argument: str, value: T, allowed: Sequence[T], remedy: str) -> T:
    """Return ``value`` if it is one of ``allowed``, and of the same type; refuse otherwise."""
    for option in allowed:
        if type(value) is type(option) and value == option:
            return value
    refuse(who, argument, value, "one of " + ", ".join(repr(option) for option in allowed), remedy)


def flag(who: str, argument: str, value: Any, remedy: str) -> bool:
    """Return ``value`` if it is ``True`` or ``False``; refuse otherwise."""
    if not isinstance(value, bool):
        refuse(who, argument, value, "True or False", remedy, wrong_type=True)
    return value


def patterns(who: str, argument: str, value: Any) -> tuple[str, ...]:
    """Return shell-style name patterns as a tuple; refuse a bare string, an empty pattern and anything but text."""
    remedy = 'Use a list of shell-style patterns such as ["encoder.*", "*.bias"].'
    expected = "a list of non-empty parameter name patterns"
    if isinstance(value, str) or not isinstance(value, Sequence):
        refuse(who, argument, value, expected, remedy, wrong_type=True)
    for pattern in value:
        if not isinstance(pattern, str):
            refuse(who, argument, value, expected, remedy, wrong_type=True)
        if not pattern.strip():
            refuse(who, argument, value, expected, remedy)
    return tuple(value)


def tag_prefix(who: str, argument: str, value: Any) -> str:
    """Return ``value`` if every logger accepts it as the first part of a tag; refuse otherwise.

    Letters, digits, ``_``, ``.``, ``-`` and spaces are what all of TensorBoard, MLflow, W&B and CSV files take.
    """
    remedy = 'Use a short word such as "health".'
    if not isinstance(value, str):
        refuse(who, argument, value, "text", remedy, wrong_type=True)
    if not value.strip() or not all(c.isascii() and (c.isalnum() or c in "_.- ") for c in value):
        refuse(who, argument, value, "letters, digits, '_', '.', '-' or spaces", remedy)
    return value


def share(who: str, argument: str, value: Any, remedy: str) -> float | None:
    """Return ``value`` if it is a number above 0 and at most 1, or ``None``; refuse otherwise."""
    if value is None:
        return None
    expected = "a share above 0 and at most 1, or None"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        refuse(who, argument, value, expected, remedy, wrong_type=True)
    number = float(value)
    if not 0 < number <= 1:
        refuse(who, argument, value, expected, remedy)
    return number


def function(who: str, argument: str, value: Any, remedy: str) -> Any:
    """Return ``value`` if it can be called or is ``None``; refuse otherwise."""
    if value is not None and not callable(value):
        refuse(who, argument, value, "a function of one finding, or None", remedy, wrong_type=True)
    return value
