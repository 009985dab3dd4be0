"""Architectures of the library transformers that one of its classes builds, and the numbers that they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.architectures.trials import WORDS
from tests.architectures.zoo import Trial

Numbers = Mapping[str, Any]

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BODY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {"vocab_size": WORDS, "max_position_embeddings": 64, **BODY, **SPECIAL}
CODER = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
TRANSLATOR = {"vocab_size": WORDS, "max_position_embeddings": 64, "decoder_start_token_id": 1, **CODER, **SPECIAL}


@dataclass(frozen=True)
class Family:
    """Architectures that one class builds.

    Attributes:
        head: The class.
        common: Numbers that all of them take.
        members: The further numbers of each, by the name that transformers has for it.
        trial: What they are tried with.
    """

    head: str
    common: Numbers
    members: Mapping[str, Numbers]
    trial: Trial | None = None


def alike(names: str, numbers: Numbers | None = None) -> dict[str, Numbers]:
    """Return members, named in words with spaces between them, that take the same further numbers, or none."""
    return {name: numbers or {} for name in names.split()}
