"""Which parameters there are, what is known of each, and that asking changes nothing."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, prune

from lightning_weightwatch import parameters
from lightning_weightwatch.parameters import (
    as_wholes,
    clean,
    describe,
    named_tensors,
    select,
    unmatched,
    unmeasurable,
    values,
)


def described(module):
    return {p.name: p for p in describe(module)}


class Fsdp(nn.Module):
    """Wraps a module under the name that FSDP1 uses."""

    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("weight", "weight"),
        ("_orig_mod.encoder._fsdp_wrapped_module.weight", "encoder.weight"),
        ("a._checkpoint_wrapped_module.b._orig_mod.c", "a.b.c"),
        ("module.weight", "module.weight"),
        ("name with spaces.weight", "name with spaces.weight"),
    ],
)
def test_only_what_wrappers_add_is_cut_from_a_name(name, plain):
    assert clean(name) == plain


WRAPPERS = {
    "compiled": lambda: torch.compile(nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3)), backend="eager"),
    "compiled inside": lambda: nn.Sequential(torch.compile(nn.Conv1d(2, 3, 1), backend="eager"), nn.BatchNorm1d(3)),
    "checkpointed": lambda: nn.Sequential(checkpoint_wrapper(nn.Conv1d(2, 3, 1)), nn.BatchNorm1d(3)),
    "fsdp in fsdp": lambda: Fsdp(nn.Sequential(Fsdp(nn.Conv1d(2, 3, 1)), Fsdp(nn.BatchNorm1d(3)))),
}


@pytest.mark.parametrize("make", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_a_wrapped_network_is_described_as_the_bare_one(make, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # torch sets it as it begins to compile
    assert describe(make()) == describe(nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3)))
    assert list(named_tensors(make())) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_a_wrapper_that_is_a_module_of_its_own_stays_in_the_name():
    found = described(nn.DataParallel(nn.Linear(2, 3)))
    assert (found["module.weight"].kind, found["module.weight"].layer_type) == ("linear", "Linear")


KINDS = [
    (nn.Linear(2, 3), "weight", "linear"),
    (nn.Bilinear(2, 3, 4), "weight", "linear"),
    (nn.Conv3d(1, 2, 3), "weight", "convolution"),
    (nn.ConvTranspose1d(2, 2, 3), "weight", "convolution"),
    (nn.LSTM(2, 3), "weight_hh_l0", "recurrent"),
    (nn.LSTM(2, 3), "bias_ih_l0", "bias"),
    (nn.GRUCell(2, 3), "weight_ih", "recurrent"),
    (nn.MultiheadAttention(4, 2), "in_proj_weight", "attention"),
    (nn.MultiheadAttention(4, 2), "in_proj_bias", "bias"),
    (nn.MultiheadAttention(4, 2), "out_proj.weight", "linear"),
    (nn.Embedding(5, 2), "weight", "embedding"),
    (nn.EmbeddingBag(5, 2), "weight", "embedding"),
    (nn.LayerNorm(4), "weight", "norm"),
    (nn.LayerNorm(4), "bias", "bias"),
    (nn.GroupNorm(2, 4), "weight", "norm"),
    (nn.InstanceNorm2d(4, affine=True), "weight", "norm"),
    (nn.PReLU(), "weight", "other"),
    (nn.ParameterDict({"a b": torch.ones(2)}), "a b", "other"),
    (parametrizations.weight_norm(nn.Linear(2, 3)), "parametrizations.weight.original1", "linear"),
    (parametrizations.spectral_norm(nn.Conv1d(2, 3, 1)), "parametrizations.weight.original", "convolution"),
    (parametrizations.orthogonal(nn.Linear(3, 3)), "parametrizations.weight.original", "linear"),
    (prune.identity(nn.Linear(2, 3), "weight"), "weight_orig", "linear"),
]


@pytest.mark.parametrize(("module", "name", "kind"), KINDS, ids=[f"{type(m).__name__} {n}" for m, n, _ in KINDS])
def test_tells_what_a_parameter_is_for(module, name, kind):
    assert described(module)[name].kind == kind


def test_a_parametrised_bias_is_not_taken_for_a_weight():
    layer = nn.Linear(3, 3)
    nn.utils.parametrize.register_parametrization(layer, "bias", nn.Softplus(), unsafe=True)
    assert described(layer)["parametrizations.bias.original"].kind == "bias"


@pytest.mark.parametrize(
    ("module", "matrices"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)), ["0.weight", "2.weight"]),
        (nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm((3, 4))), []),
        (nn.RNN(2, 3), ["weight_ih_l0", "weight_hh_l0"]),
    ],
)
def test_matrices_are_what_mixes_inputs_into_outputs(module, matrices):
    assert [p.name for p in describe(module) if p.is_matrix] == matrices


def test_facts_of_each_parameter_in_order_of_registration():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1, bias=False).requires_grad_(False))
    module.add_module("name with spaces", nn.Linear(1, 1, bias=False))
    found = describe(module)
    assert [(p.name, p.order) for p in found] == [
        ("0.weight", 0),
        ("0.bias", 1),
        ("1.weight", 2),
        ("name with spaces.weight", 3),
    ]
    assert [(p.shape, p.numel, p.trainable) for p in found[:3]] == [
        ((3, 2), 6, True),
        ((3,), 3, True),
        ((1, 3), 3, False),
    ]
    assert (found[3].layer, found[3].layer_type) == ("name with spaces", "Linear")


def test_a_tied_parameter_is_listed_once_under_its_first_name():
    module = nn.ModuleDict({"emb": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    module["head"].weight = module["emb"].weight
    module["again"] = module["head"]
    (found,) = describe(module)
    assert (found.name, found.kind) == ("emb.weight", "embedding")
    assert found.tied == ("head.weight", "again.weight")


UNMEASURABLE = {
    "lazy": (nn.LazyLinear(3).weight, "uninitialised lazy parameter"),
    "meta": (nn.Linear(2, 3, device="meta").weight, "on the meta device, without values"),
    "empty": (nn.Parameter(torch.empty(0, 3)), "empty"),
    "bool": (nn.Parameter(torch.tensor([True]), requires_grad=False), "no real numbers (torch.bool)"),
}


@pytest.mark.parametrize(("tensor", "reason"), UNMEASURABLE.values(), ids=UNMEASURABLE.keys())
def test_what_cannot_be_measured_says_why_and_is_described_all_the_same(tensor, reason):
    module = nn.Module()
    module.odd = tensor
    assert unmeasurable(tensor) == reason
    assert described(module)["odd"].unmeasurable == reason


def test_a_lazy_parameter_gets_its_shape_once_it_has_one():
    layer = nn.LazyLinear(3)
    assert described(layer)["weight"].shape == ()
    layer(torch.ones(1, 5))
    assert (described(layer)["weight"].shape, described(layer)["weight"].unmeasurable) == ((3, 5), None)


SIDE_EFFECTS = {"spectral": parametrizations.spectral_norm, "weight": parametrizations.weight_norm}


@pytest.mark.parametrize("norm", SIDE_EFFECTS.values(), ids=SIDE_EFFECTS.keys())
def test_describing_does_not_move_what_reading_a_weight_would(norm):
    layer = norm(nn.Linear(6, 5)).train()
    before, random = copy.deepcopy(layer.state_dict()), torch.get_rng_state()
    describe(layer)
    named_tensors(layer)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)


def test_reading_a_spectrally_normed_weight_does_move_it_so_the_test_above_can_fail():
    layer = parametrizations.spectral_norm(nn.Linear(6, 5)).train()
    before = layer.parametrizations.weight[0]._u.clone()
    layer.weight  # noqa: B018
    assert not torch.equal(layer.parametrizations.weight[0]._u, before)


WHOLE, SHARD = nn.Linear(4, 6), nn.ParameterDict({"weight": torch.ones(11), "bias": torch.ones(3)})


def as_wholes_of(shard, before, *, flat=True):
    found = as_wholes(describe(shard), before, named_tensors(shard), flat=flat)
    return {p.name: (p.shape, p.unmeasurable) for p in found}


def test_what_was_noted_before_sharding_replaces_what_a_flat_shard_says():
    assert as_wholes_of(SHARD, describe(WHOLE)) == {"weight": ((6, 4), None), "bias": ((6,), None)}


def test_a_flat_shard_of_which_nothing_was_noted_is_not_judged_by_its_shape():
    lazy = describe(nn.LazyLinear(6))
    for shape, reason in as_wholes_of(SHARD, lazy).values():
        assert len(shape) == 1
        assert reason == "cut into shards before its whole shape could be noted"


def test_a_parameter_swallowed_by_a_flat_one_is_listed_as_not_measured():
    flat = nn.ParameterDict({"flat": torch.ones(30)})
    found = as_wholes_of(flat, describe(WHOLE))
    assert found["weight"] == ((6, 4), "flattened into one tensor with others by the strategy")
    assert found["flat"][1] is not None


def test_a_strategy_that_keeps_shapes_is_believed_where_nothing_was_noted():
    assert as_wholes_of(WHOLE, (), flat=False) == {"weight": ((6, 4), None), "bias": ((6,), None)}


NAMES = ["encoder.0.weight", "encoder.0.bias", "head.weight", "name with spaces.weight"]


@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        (["*"], [], NAMES),
        (["*"], ["*.bias"], [NAMES[0], NAMES[2], NAMES[3]]),
        (["head.*", "encoder.*"], [], NAMES[:3]),
        (["*spaces*"], [], NAMES[3:]),
        (["*"], ["*"], []),
        (["Head.*"], [], []),
    ],
)
def test_selects_by_pattern_and_keeps_the_order(include, exclude, chosen):
    assert select(NAMES, include, exclude) == chosen


def test_a_pattern_that_matches_nothing_comes_with_the_nearest_names():
    found = unmatched(iter(NAMES), ["head.*", "encodr.0.weight", "zzz"])
    assert found["encodr.0.weight"][0] == "encoder.0.weight"
    assert found["zzz"] == []
    assert "head.*" not in found


def test_values_are_detached_and_not_copied_where_nothing_must_be_converted():
    weight = nn.Linear(3, 2).weight
    assert values(weight).data_ptr() == weight.data_ptr()
    assert not values(weight).requires_grad


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.float8_e4m3fn, torch.float8_e5m2])
def test_integers_and_eight_bit_floats_become_float32(dtype):
    plain = values(torch.tensor([1, 2, 4]).to(dtype))
    assert (plain.dtype, plain.tolist()) == (torch.float32, [1.0, 2.0, 4.0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_keep_their_type(dtype):
    assert values(torch.ones(2, dtype=dtype)).dtype == dtype


def test_a_complex_tensor_gives_both_parts():
    assert math.hypot(*values(torch.tensor([3 - 4j])).flatten().tolist()) == 5.0


def test_layers_registered_last_to_first_are_found_in_forward_order():
    """A deep network registered backwards was told as the opposite illness."""
    net = nn.ModuleList([nn.Linear(4, 4) for _ in range(5)])
    order = parameters.ForwardOrder(dict(net.named_parameters()))
    x = torch.ones(1, 4)
    for layer in reversed(net):
        x = layer(x)
    x.sum().backward()
    order.stop()
    places = order.places([f"{i}.weight" for i in range(5)])
    assert sorted(places, key=places.get) == ["4.weight", "3.weight", "2.weight", "1.weight", "0.weight"]


def test_a_parameter_that_was_not_reached_stays_behind_its_neighbour():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    order = parameters.ForwardOrder(dict(net.named_parameters()))
    net[2](net[0](torch.ones(1, 2))).sum().backward()
    order.stop()
    places = order.places(["0.weight", "1.weight", "2.weight"])
    assert sorted(places, key=places.get) == ["0.weight", "1.weight", "2.weight"]


def test_listening_leaves_no_hook():
    layer = nn.Linear(2, 2)
    parameters.ForwardOrder(dict(layer.named_parameters())).stop()
    assert not layer.weight._post_accumulate_grad_hooks
