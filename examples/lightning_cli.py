"""The callbacks from a YAML file, with LightningCLI.

Run it with ``python examples/lightning_cli.py fit --config examples/lightning_cli.yaml``. Any argument of a callback
can be set in the file or on the command line; wrong ones are refused before training begins.
"""

from lightning.pytorch.cli import LightningCLI
from quickstart import Digits, SimpleCNN


def main() -> None:
    """Parse the command line and run."""
    LightningCLI(SimpleCNN, Digits, save_config_kwargs={"overwrite": True})


if __name__ == "__main__":
    main()
