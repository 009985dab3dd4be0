"""Architectures of the library transformers: tiny, randomly initialised by its own code, nothing is downloaded.

transformers is imported when the first of them is built.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from tests.architectures import language, senses
from tests.architectures.families import Family, Numbers, alike
from tests.architectures.zoo import Architecture

_EVERYDAY = alike(
    "gpt2 gpt_neo gpt_neox gptj llama mistral mixtral qwen2 gemma gemma2 phi falcon opt bloom mpt mamba rwkv "
    "qwen3_next deepseek_v3 bert roberta distilbert albert electra deberta deberta-v2 longformer big_bird reformer "
    "perceiver layoutlm xlnet t5 mt5 bart pegasus marian vit deit beit swin convnext resnet efficientnet segformer "
    "dinov2 clip siglip blip detr sam llava wav2vec2 hubert whisper patchtst"
)


def _built(head: str, name: str, numbers: Numbers) -> nn.Module:
    import transformers

    config = transformers.AutoConfig.for_model(name, **numbers)
    return getattr(transformers, head).from_config(config)


def _architecture(name: str, family: Family) -> Architecture:
    build = partial(_built, family.head, name, {**family.common, **family.members[name]})
    return Architecture(name, "transformers", build, family.trial, everyday=name in _EVERYDAY)


OF_TRANSFORMERS = [
    _architecture(name, family) for family in (*language.FAMILIES, *senses.FAMILIES) for name in family.members
]
