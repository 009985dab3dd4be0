"""Weights that two layers share: silent cases first, then a language model that shows why."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_weightwatch.audit import audit_init
from lightning_weightwatch.evidence import Initial, Layer, LossCall, Signal
from lightning_weightwatch.rules.tied_mismatch import RULE, check
from tests.helpers.verdicts import parameter
from tests.ward import nets

READ, WRITE = parameter("embed.weight", kind="embedding"), parameter("head.weight")
TIES = (("embed.weight", "head.weight"),)


def shared(std=1.0, shape=(1000, 64), tied=("head.weight",), **fields):
    return parameter("embed.weight", **{"kind": "embedding", "std": std, "shape": shape, "tied": tied} | fields)


def first_loss(loss, *, feeds_loss=True, classes=1000):
    calls = (LossCall("cross_entropy", "embed.weight", classes=classes),) if classes else ()
    return Signal((Layer("embed.weight", "embedding", feeds_loss=feeds_loss),), loss=loss, losses=calls)


GUESS = math.log(1000)
FROZEN = [parameter(v.name, trainable=False, content="same") for v in (READ, WRITE)]
SILENT = [
    pytest.param([], id="no parameters"),
    pytest.param([READ, WRITE], id="nothing is declared to be tied"),
    pytest.param(Initial(FROZEN, declared_ties=TIES), id="two frozen copies stay the same"),
    pytest.param(Initial([parameter("other.weight")], declared_ties=TIES), id="both left out of what is judged"),
    pytest.param([shared(0.02, (50257, 768))], id="GPT-2"),
    pytest.param([shared(0.02, (50257, 12288))], id="as wide as they come"),
    pytest.param([shared(1 / 8)], id="one over the root of the width"),
    pytest.param([shared(3 / 8)], id="at the limit"),
    pytest.param([shared(kind="linear")], id="two linear layers that share a weight"),
    pytest.param([shared(tied=())], id="an embedding alone may be N(0, 1)"),
    pytest.param([shared(tied=("decoder.embed_tokens.weight",))], id="shared by two embeddings"),
    pytest.param([shared(std=None)], id="not measured"),
    pytest.param(Initial([shared()], first_loss(GUESS)), id="T5 scales its logits down: the loss is ordinary"),
    pytest.param(Initial([shared()], first_loss(2.9 * GUESS)), id="somewhat above a guess"),
    pytest.param(Initial([shared()], first_loss(40.0, feeds_loss=False)), id="another layer makes the output"),
    pytest.param(Initial([shared(0.02)], first_loss(40.0)), id="a high loss, but it is not from here"),
    pytest.param(Initial([shared()], resumed=True), id="a checkpoint was loaded"),
]


@pytest.mark.parametrize("initial", SILENT)
def test_silent(initial):
    assert RULE(initial) == ()


# --- declared, and two ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("content", "numbers"), [("same", "the same numbers for now"), ("other", "different numbers")])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_declared_tie_that_is_none_is_told(content, numbers, resumed):
    pair = [parameter("embed.weight", content="same"), parameter("head.weight", content=content)]
    (finding,) = RULE(Initial(pair, resumed=resumed, declared_ties=TIES))
    assert (finding.severity, finding.parameters) == ("warning", ("embed.weight", "head.weight"))
    assert (finding.value, finding.limit) == (1.0, 0.0)
    assert numbers in finding.saw
    assert "model.head.weight = model.embed.weight" in finding.try_first


def test_frozen_ones_with_different_numbers_are_told():
    pair = [parameter(v.name, trainable=False) for v in (READ, WRITE)]
    assert [f.severity for f in RULE(Initial(pair, declared_ties=TIES))] == ["warning"]


def test_a_name_may_be_a_further_one():
    one = parameter("shared.weight", tied=("embed.weight",))
    (finding,) = RULE(Initial([one, WRITE], declared_ties=TIES))
    assert finding.parameters == ("shared.weight", "head.weight")


def test_several_are_told_at_once():
    others = [parameter("src.weight"), parameter("tgt.weight")]
    (finding,) = RULE(Initial([READ, WRITE, *others], declared_ties=(*TIES, ("src.weight", "tgt.weight"))))
    assert (finding.value, len(finding.parameters)) == (2.0, 4)
    assert "2 such pairs are two" in finding.saw


# --- one, and too large -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", [None, first_loss(float("nan")), first_loss(40.0, classes=0)])
def test_large_logits_are_a_note_where_no_loss_tells(signal):
    (finding,) = RULE(Initial([shared()], signal))
    assert (finding.severity, finding.parameters) == ("info", ("embed.weight",))
    assert (finding.value, finding.limit) == (8.0, 3.0)


@pytest.mark.parametrize("loss", [3.1 * GUESS, float("inf")])
def test_a_first_loss_far_above_a_guess_makes_it_a_warning(loss):
    (finding,) = RULE(Initial([shared(0.2)], first_loss(loss)))
    assert (finding.severity, finding.parameters, finding.limit) == ("warning", ("embed.weight",), 1.0)
    assert finding.value == pytest.approx(1.6)


def test_what_is_said():
    (finding,) = RULE(Initial([shared()], first_loss(40.0)))
    assert str(finding) == (
        "WARNING at step 0: tied_mismatch. embed.weight is head.weight as well, and has a standard deviation of 1 at "
        "the start: of an input of size 1 it makes logits of 8 (limit 1). The first loss is 40. Try first: Draw it "
        "smaller: nn.init.normal_(model.embed.weight, std=0.12)."
    )


def test_limits_can_be_moved():
    assert not list(check(Initial([READ, WRITE], declared_ties=TIES), pairs=1))
    assert list(check([shared(1 / 8)], spread=0.5))
    assert list(check(Initial([shared(0.02)], first_loss(40.0)), loud=0.1))
    assert list(check(Initial([shared()], first_loss(2.9 * GUESS)), ordinary=2.0))


# --- a language model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("std", "ill"), [(1.0, True), (0.02, False)])
@pytest.mark.parametrize("tied", [True, False])
def test_a_large_embedding_is_an_illness_only_where_it_makes_the_output(std, ill, tied):
    torch.manual_seed(0)
    model = nets.LanguageModel(65, 64, tied=tied, std=std)
    words = torch.randint(65, (16, 33))
    report = audit_init(model, (words[:, :-1], words[:, 1:]), functional.cross_entropy)
    found = [f for f in report.findings if f.rule == "tied_mismatch"]
    assert [(f.severity, f.parameters) for f in found] == [("warning", ("embedding.weight",))] * (ill and tied)
    assert (report.signal.loss > 3 * math.log(65)) is (ill and tied)
    for finding in found:
        with torch.no_grad():
            eval(finding.try_first.partition(": ")[2].removesuffix("."), {"nn": nn, "model": model})
        after = audit_init(model, (words[:, :-1], words[:, 1:]), functional.cross_entropy)
        assert "tied_mismatch" not in {f.rule for f in after.findings}


def test_a_tie_that_was_lost_on_the_way_is_found():
    model = nets.LanguageModel(65, 64, tied=True)
    model._tied_weights_keys = {"head.weight": "embedding.weight"}
    assert audit_init(model).findings == ()
    model.head.weight = copy.deepcopy(model.head.weight)
    (finding,) = [f for f in audit_init(model).findings if f.rule == "tied_mismatch"]
    assert finding.parameters == ("embedding.weight", "head.weight")
