"""Which tensors there are: clean names, kind, order, ties, and what can be measured of each.

``describe`` tells facts about parameters and keeps no tensor; ``named_tensors`` hands out the tensors themselves;
``values`` makes any gradient or weight (sharded, sparse, complex, eight bit) a plain local tensor of real numbers.
What is measured of them lies in ``stats``.

Parameters are only ever taken from ``named_parameters``. Reading an attribute such as ``layer.weight`` can run code:
under ``spectral_norm`` it moves the power iteration one step and so changes the training.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_weightwatch.theory import PLAIN, Wiring

Kind = Literal["linear", "convolution", "recurrent", "attention", "embedding", "norm", "bias", "other"]

_SHARDED_EARLY = "cut into shards before its whole shape could be noted"
_FLATTENED = "flattened into one tensor with others by the strategy"
_REAL = {torch.float32, torch.float64, torch.float16, torch.bfloat16}
_WRAPPERS = ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module.")
_CONVOLUTIONS = (nn.modules.conv._ConvNd,)  # noqa: SLF001 - the only common ancestor of torch's convolutions
_NORMS = (
    nn.modules.batchnorm._NormBase,  # noqa: SLF001 - the only common ancestor of batch and instance norm
    nn.LayerNorm,
    nn.GroupNorm,
    *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []),
)


@dataclass(frozen=True)
class Parameter:
    """Facts about one parameter, gathered without reading a value.

    Attributes:
        name: Its dotted name in the module, without the prefixes that FSDP, ``torch.compile`` and checkpointing add.
        shape: Its whole shape, also where this process holds a shard; ``()`` while it is uninitialised.
        layer: The name of the module that owns it; ``""`` for the root.
        layer_type: That module's class name, such as ``"Conv2d"``.
        kind: What it is for.
        order: Its place in order of registration, counted from 0.
        trainable: Whether it asks for a gradient.
        tied: Further names of the same tensor.
        unmeasurable: Why its values cannot be read, or ``None``.
        wiring: How its layer uses it, as far as its shape does not tell.
        tied_as: The same facts under each of those names.
    """

    name: str
    shape: tuple[int, ...]
    layer: str
    layer_type: str
    kind: Kind
    order: int
    trainable: bool = True
    tied: tuple[str, ...] = ()
    unmeasurable: str | None = None
    wiring: Wiring = PLAIN
    tied_as: tuple[Parameter, ...] = ()

    @property
    def numel(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether it mixes several inputs into several outputs, which is what depth profiles are drawn over."""
        several_inputs = math.prod(self.shape[1:]) > 1  # the gain of weight_norm has shape (out, 1)
        return len(self.shape) >= 2 and several_inputs and self.kind not in ("embedding", "norm", "bias")


def clean(name: str) -> str:
    """Strip what wrappers add to a parameter's name.

    Example:
        >>> clean("_orig_mod.encoder._fsdp_wrapped_module.weight")
        'encoder.weight'
    """
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def named_tensors(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return every parameter once, under its clean first name, in order of registration."""
    return {clean(name): tensor for name, tensor in module.named_parameters()}


def declared_ties(module: nn.Module) -> list[tuple[str, str]]:
    """Return pairs of names that the module, or a part of it, declares to be one tensor and that are two.

    Libraries of language models write the pairs into ``_tied_weights_keys``, a mapping from the name of one to that of
    the other, and tie them when the model is made; moving to other memory or copying half of a model parts them again.

    Example:
        >>> net = nn.ModuleDict({"read": nn.Embedding(4, 2), "write": nn.Linear(2, 4, bias=False)})
        >>> net._tied_weights_keys = {"write.weight": "read.weight"}
        >>> declared_ties(net)
        [('read.weight', 'write.weight')]
    """
    held = {clean(name): tensor for name, tensor in module.named_parameters(remove_duplicate=False)}
    found = []
    for prefix, part in module.named_modules():
        declared = getattr(part, "_tied_weights_keys", None)
        is_meant = getattr(getattr(part, "config", None), "tie_word_embeddings", True)
        for one, other in declared.items() if isinstance(declared, Mapping) and is_meant else ():
            pair = tuple(clean(f"{prefix}.{name}" if prefix else str(name)) for name in (other, one))
            if all(name in held for name in pair) and held[pair[0]] is not held[pair[1]]:
                found.append((pair[0], pair[1]))
    return list(dict.fromkeys(found))


def describe(module: nn.Module) -> tuple[Parameter, ...]:
    """Tell the facts of every parameter of ``module``, tied ones once.

    Sharded parameters are described by their whole shape (a DTensor knows it; FSDP1's flat shards do not, so describe
    before wrapping). Lazy, meta and empty parameters are described too and say why they cannot be measured.

    Example:
        >>> for p in describe(nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16))):
        ...     print(p.name, p.shape, p.kind)
        0.weight (16, 1, 3, 3) convolution
        0.bias (16,) bias
        1.weight (16,) norm
        1.bias (16,) bias
    """
    names: dict[int, list[str]] = {}
    for name, tensor in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(clean(name))
    layers = {clean(name + ".")[:-1]: layer for name, layer in module.named_modules(remove_duplicate=False)}

    def told(name: str, tensor: Tensor, order: int) -> Parameter:
        owner = name.rpartition(".")[0]
        layer = layers.get(owner, module)
        true_layer = _behind_parametrization(owner, layers) or layer
        return Parameter(
            name=name,
            shape=() if _is_lazy(tensor) else tuple(tensor.shape),
            layer=owner,
            layer_type=type(layer).__name__,
            kind=_kind(name, true_layer),
            order=order,
            trainable=tensor.requires_grad,
            unmeasurable=unmeasurable(tensor),
            wiring=_wiring(name, true_layer),
        )

    described = []
    for order, (name, tensor) in enumerate(named_tensors(module).items()):
        tied = tuple(names[id(tensor)][1:])
        tied_as = tuple(told(other, tensor, order) for other in tied)
        described.append(replace(told(name, tensor, order), tied=tied, tied_as=tied_as))
    return tuple(described)


class ForwardOrder:
    """Finds the order in which the forward pass uses parameters, from a backward pass, which goes the other way.

    Modules may be registered in any order. A hook on each parameter notes when its gradient is complete; no module is
    hooked, so ``torch.compile`` keeps its graph, and ``stop`` takes the hooks away again.

    Args:
        tensors: The parameters by name.

    Example:
        >>> last, first = nn.Linear(2, 1, bias=False), nn.Linear(2, 2, bias=False)
        >>> order = ForwardOrder({"last": last.weight, "first": first.weight})
        >>> last(first(torch.ones(1, 2))).sum().backward()
        >>> order.stop()
        >>> order.places(["last", "first", "unused"])
        {'first': 0, 'unused': 1, 'last': 2}
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._reached: dict[str, None] = {}  # in order; an accumulation window reaches each many times
        self._hooks = [
            tensor.register_post_accumulate_grad_hook(partial(self._note, name))
            for name, tensor in tensors.items()
            if tensor.requires_grad and tensor.is_leaf and not _is_lazy(tensor)
        ]

    def stop(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def places(self, names: Sequence[str]) -> dict[str, int]:
        """Return each name's place in the forward pass; one that was not reached follows the name before it."""
        wanted = set(names)
        forward = [name for name in reversed(self._reached) if name in wanted]
        behind: dict[str | None, list[str]] = {name: [] for name in (None, *forward)}
        before: str | None = None
        for name in names:
            if name in behind:
                before = name
            else:
                behind[before].append(name)
        ordered = [*behind[None], *(other for name in forward for other in (name, *behind[name]))]
        return {name: place for place, name in enumerate(ordered)}

    def _note(self, name: str, _: Tensor) -> None:
        self._reached.setdefault(name)


def as_wholes(
    now: Iterable[Parameter], before: Iterable[Parameter], tensors: Mapping[str, Tensor], *, flat: bool
) -> tuple[Parameter, ...]:
    """Tell the facts of whole parameters where a strategy holds them in parts.

    A DTensor knows its whole shape. A flat shard does not: what was noted before wrapping counts, and where nothing was
    noted, the parameter is not measured rather than judged by a shard's shape. The answer does not depend on what this
    process holds, so that all processes agree on it.

    Args:
        now: The parameters as they are described now.
        before: As they were described before wrapping.
        tensors: The tensors by name.
        flat: The strategy turns parameters into slices of flat tensors (FSDP of the first generation).
    """
    known = {p.name: p for p in before if p.unmeasurable is None}
    found = []
    for p in now:
        earlier = known.pop(p.name, None)
        if hasattr(tensors[p.name], "placements"):
            found.append(p)
        elif earlier is not None:
            found.append(replace(earlier, order=p.order, trainable=p.trainable))
        else:
            found.append(replace(p, unmeasurable=_SHARDED_EARLY) if flat and len(p.shape) == 1 else p)
    return (*found, *(replace(p, unmeasurable=_FLATTENED) for p in known.values()))


def select(names: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Return the names that match a pattern of ``include`` and none of ``exclude``, order kept.

    Example:
        >>> select(["conv.weight", "conv.bias", "fc.weight"], ["*"], ["*.bias"])
        ['conv.weight', 'fc.weight']
    """
    return [n for n in names if _matches(n, include) and not _matches(n, exclude)]


def unmatched(names: Iterable[str], patterns: Sequence[str]) -> dict[str, list[str]]:
    """Return each pattern that matches no name, with the nearest names there are.

    Example:
        >>> unmatched(["encoder.weight", "head.weight"], ["encodr.*"])
        {'encodr.*': ['encoder.weight', 'head.weight']}
    """
    names = list(names)
    missing = [p for p in patterns if not any(fnmatch.fnmatchcase(n, p) for n in names)]
    return {p: difflib.get_close_matches(p, names, n=3, cutoff=0.3) for p in missing}


def is_plain(tensor: Tensor) -> bool:
    """Whether it is a dense tensor of real numbers and nothing else; most are, and this is asked on every step."""
    ordinary = type(tensor) is Tensor or type(tensor) is nn.Parameter
    return ordinary and tensor.dtype in _REAL and tensor.layout is torch.strided and not tensor.is_meta


def unmeasurable(tensor: Tensor) -> str | None:
    """Say why the values of ``tensor`` cannot be read, or return ``None``.

    An empty *shard* is measurable: it adds nothing to the whole.
    """
    if is_plain(tensor) and tensor.numel():
        return None
    if _is_lazy(tensor):
        return "uninitialised lazy parameter"
    if tensor.is_meta:
        return "on the meta device, without values"
    if any(type(p).__name__.endswith("Partial") for p in getattr(tensor, "placements", ())):
        return "a partial sum that is not reduced yet"
    if tensor.numel() == 0:
        return "empty"
    if not (tensor.is_floating_point() or tensor.is_complex()):  # packed four-bit weights, masks, counters
        return f"no real numbers ({tensor.dtype})"
    return None


def values(tensor: Tensor) -> Tensor:
    """Return this process's share of ``tensor`` as a plain, dense, detached tensor of real numbers.

    A DTensor gives its local shard (asking a DTensor for a number silently returns the shard's), a sparse tensor its
    stored values, a complex tensor its real and imaginary parts, integers and eight-bit floats become float32.
    Nothing is copied where nothing must be converted. Call it only where ``unmeasurable`` returns ``None``.
    """
    if is_plain(tensor):
        return tensor.detach() if tensor.requires_grad else tensor
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    if tensor.layout != torch.strided:
        tensor = tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor.values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        tensor = tensor.float()
    return tensor


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _is_lazy(tensor: Tensor) -> bool:
    return nn.parameter.is_lazy(tensor)


def _behind_parametrization(owner: str, layers: dict[str, nn.Module]) -> nn.Module | None:
    """Return the layer whose weight is held as ``parametrizations.weight.original*``, if it is."""
    head, found, _ = f"{owner}.".rpartition("parametrizations.")
    return layers.get(head[:-1]) if found else None


def _leaf(name: str) -> str:
    """Return what it is called in its layer, without what a parametrisation puts behind that name."""
    _, parametrised, tail = name.rpartition("parametrizations.")
    return tail.partition(".")[0] if parametrised else tail.rpartition(".")[2]


def _wiring(name: str, layer: nn.Module) -> Wiring:
    leaf = _leaf(name)
    if isinstance(layer, _CONVOLUTIONS) and leaf.startswith("weight"):
        return Wiring(layer.groups, math.prod(layer.stride), layer.transposed)
    if isinstance(layer, nn.MultiheadAttention) and leaf.startswith("in_proj"):
        return Wiring(stacked=("query", "key", "value"))
    if leaf.startswith(("weight_ih", "weight_hh", "bias_ih", "bias_hh")):
        if isinstance(layer, (nn.LSTM, nn.LSTMCell)):
            return Wiring(stacked=("input", "forget", "cell", "output"))
        if isinstance(layer, (nn.GRU, nn.GRUCell)):
            return Wiring(stacked=("reset", "update", "new"))
    return PLAIN


def _kind(name: str, layer: nn.Module) -> Kind:
    leaf = _leaf(name)
    if "bias" in leaf:
        return "bias"
    table: tuple[tuple[tuple[type, ...], Kind], ...] = (
        (_NORMS, "norm"),
        (_CONVOLUTIONS, "convolution"),
        ((nn.Embedding, nn.EmbeddingBag), "embedding"),
        ((nn.RNNBase, nn.RNNCellBase), "recurrent"),
        ((nn.MultiheadAttention,), "attention"),
        ((nn.Linear, nn.Bilinear), "linear"),
    )
    return next((kind for types, kind in table if isinstance(layer, types)), "other")
