"""Nothing in this folder reaches for the network: the library that could is told so, for as long as a test runs."""

import huggingface_hub.constants
import pytest


@pytest.fixture(autouse=True)
def offline(own_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what is read when the library is imported, and what was read, if it is already."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
