"""Batches of random numbers, and the losses that go with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.architectures.zoo import Trial

WORDS, LENGTH, CLASSES, SIDE = 96, 24, 10, 32
_FIRST_WORD = 3  # those before it pad, begin and end a sentence
_NOT_ASKED = -100  # what torch's cross entropy leaves out


def images(channels: int = 3, side: int = SIDE, many: int = 8) -> Tensor:
    """Return images of unit variance."""
    return torch.randn(many, channels, side, side)


def sentences(many: int = 8, length: int = LENGTH) -> Tensor:
    """Return words, none of them special."""
    return torch.randint(_FIRST_WORD, WORDS, (many, length))


def word_loss(logits: Tensor, words: Tensor) -> Tensor:
    """Return the cross entropy of words, one at each place."""
    return functional.cross_entropy(logits.flatten(0, 1), words.flatten())


def classified(shape: tuple[int, ...], classes: int = CLASSES) -> Trial:
    """Return normal numbers of some shape, to be told into classes."""
    return Trial(lambda: (torch.randn(shape), torch.randint(classes, shape[:1])), functional.cross_entropy)


def fitted(shape: tuple[int, ...], out: tuple[int, ...]) -> Trial:
    """Return normal numbers of some shape, from which normal numbers of another are to be told."""
    return Trial(lambda: (torch.randn(shape), torch.randn(out)), functional.mse_loss)


def _next_word() -> tuple[dict[str, Tensor], Tensor]:
    words = sentences()
    return {"input_ids": words}, words


def _gaps() -> tuple[dict[str, Tensor], Tensor]:
    words = sentences()
    asked = torch.rand(words.shape) < 0.3  # more than in practice, as the batch is small
    return {"input_ids": torch.where(asked, _FIRST_WORD, words)}, words.where(asked, _NOT_ASKED)


def _translation() -> tuple[dict[str, Tensor], Tensor]:
    return {"input_ids": sentences(), "decoder_input_ids": sentences()}, sentences()


def _captions() -> tuple[dict[str, Tensor], Tensor]:
    return {"input_ids": sentences(), "pixel_values": images()}, torch.arange(8)


def _transcript() -> tuple[dict[str, Tensor], Tensor]:
    return {"input_values": torch.randn(4, 400)}, torch.randint(1, 32, (4, 10))


def _ctc(output: Any, letters: Tensor) -> Tensor:
    told = output.logits.log_softmax(-1).transpose(0, 1)
    many, length = letters.shape
    return functional.ctc_loss(told, letters, torch.full((many,), len(told)), torch.full((many,), length))


NEXT_WORD = Trial(_next_word, lambda output, words: word_loss(output.logits[:, :-1], words[:, 1:]))
GAPS = Trial(_gaps, lambda output, words: word_loss(output.logits, words))
TRANSLATION = Trial(_translation, lambda output, words: word_loss(output.logits, words))
TRANSCRIPT = Trial(_transcript, _ctc)
PHOTOS = Trial(
    lambda: ({"pixel_values": images()}, torch.randint(CLASSES, (8,))),
    lambda output, labels: functional.cross_entropy(output.logits, labels),
)
CAPTIONS = Trial(_captions, lambda output, pairs: functional.cross_entropy(output.logits_per_image, pairs))
