"""Runs the command as ``python -m lightning_weightwatch.cli``."""

import sys

from lightning_weightwatch.cli import main

sys.exit(main())
