"""The exceptions this package raises on purpose.

``UnhealthyRunError`` (a ``RuntimeError``): a run was ended because the user asked for it with ``action="raise"``.

Refused arguments are plain ``TypeError`` and ``ValueError``.
"""


class UnhealthyRunError(RuntimeError):
    """A finding ended the run, because ``action="raise"`` or ``on_finding="raise"`` was asked for."""
