"""How a training is set up, read from its objects; whether it bears being listened to; what a validation said."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.compile import from_compiled
from torch import nn

from lightning_weightwatch.callbacks import _trainer
from lightning_weightwatch.callbacks._setup import dropout_of, is_compiled, setup_of, why_unheard
from lightning_weightwatch.callbacks._state import packed, unpacked
from tests.helpers import fits, nets
from tests.never.listening import remembered


def compiled(thing):
    return torch.compile(thing, backend="eager")


# --- setup ------------------------------------------------------------------------------------------------------------


def test_what_no_optimizer_holds_is_outside_and_what_is_frozen_is_not():
    net = nets.Net()
    net.body[0].requires_grad_(False)
    setup = setup_of(net, [torch.optim.AdamW(net.head.parameters())], 1)
    assert setup.outside == ("body.3.weight", "body.3.bias")
    assert setup.frozen == ("body.0.weight", "body.0.bias")
    assert (setup.optimizers, setup.automatic, setup.processes, setup.half) == (("AdamW",), True, 1, ())
    assert setup.dropout == {"body.2": 0.2}
    assert not setup.compiled


def test_several_optimizers_are_told_by_their_classes_and_parameters_of_all_of_them_are_inside():
    net = nets.TwoOptimizers()
    optimizers = [torch.optim.SGD(net.body.parameters()), torch.optim.Adam(net.head.parameters())]
    setup = setup_of(net, optimizers, 4)
    assert (setup.optimizers, setup.automatic, setup.outside) == (("SGD", "Adam"), False, ())
    assert setup.processes == 4


def test_parameters_in_half_precision_are_told():
    net = nets.Net()
    net.body[0].to(torch.bfloat16)
    net.head.bias.data = net.head.bias.data.half()
    assert setup_of(net, [], 1).half == ("body.0.weight", "body.0.bias", "head.bias")


def test_strange_parameters_are_no_trouble():
    assert "lazy.weight" in setup_of(nets.Strange(), [], 1).outside


def test_evidence_of_a_fit_has_its_setup():
    monitor, seen = remembered()
    fits.fit(nets.TwoOptimizers, [monitor], max_epochs=1)
    assert (seen[-1].setup.optimizers, seen[-1].setup.automatic, seen[-1].has_opponents) == (
        ("SGD", "SGD"),
        False,
        True,
    )


DROPOUT = {
    "modules": (
        nn.Sequential(nn.Dropout(0.1), nn.Dropout2d(0.2), nn.AlphaDropout(0.3)),
        {"0": 0.1, "1": 0.2, "2": 0.3},
    ),
    "none": (nn.Sequential(nn.Dropout(0.0), nn.Linear(1, 1)), {}),
    "not training": (nn.Sequential(nn.Dropout(0.5).eval(), nn.Dropout(0.25)), {"1": 0.25}),
    "attention": (nn.MultiheadAttention(4, 2, dropout=0.4), {"": 0.4}),
    "a recurrent network": (nn.ModuleDict({"a": nn.LSTM(2, 2, 2, dropout=0.3)}), {"a": 0.3}),
    "wrapped": (nn.ModuleDict({"_orig_mod": nn.ModuleDict({"drop": nn.Dropout(0.1)})}), {"drop": 0.1}),
}


@pytest.mark.parametrize("case", DROPOUT)
def test_dropout_that_trains_is_told_by_its_module(case):
    net, expected = DROPOUT[case]
    assert dropout_of(net) == expected


@pytest.mark.filterwarnings("ignore:dropout option adds dropout after all but last recurrent layer")
def test_dropout_between_layers_of_which_there_is_one_drops_nothing():
    assert dropout_of(nn.ModuleDict({"a": nn.LSTM(2, 2, 1, dropout=0.3)})) == {}


# --- compiled ---------------------------------------------------------------------------------------------------------


class InPlace(nets.Net):
    def __init__(self):
        super().__init__()
        self.head.compile(backend="eager")


class Wrapped(nets.Net):
    def __init__(self):
        super().__init__()
        self.body = compiled(self.body)


class OfAMethod(nets.Net):
    def __init__(self):
        super().__init__()
        self.quick = compiled(self.forward)


class OfTheClass(nets.Net):
    @compiled
    def quick(self, x):
        return x


class Inherits(OfTheClass):
    """The compiled method is that of its parent."""


class Attribute(nets.Net):
    """Its attributes answer to any name."""

    class Anything:
        """So do its own."""

        def __getattr__(self, name):
            return self

    def __init__(self):
        super().__init__()
        self.anything = self.Anything()


@pytest.mark.parametrize("net", [InPlace, Wrapped, OfAMethod, OfTheClass, Inherits], ids=lambda net: net.__name__)
def test_a_part_or_a_method_that_was_compiled_is_seen(net):
    assert is_compiled(net())
    assert setup_of(net(), [], 1).compiled
    assert why_unheard(net())


@pytest.mark.parametrize("net", [nets.Net, Attribute, nets.Strange], ids=lambda net: net.__name__)
def test_where_nothing_is_compiled_that_is_seen_too(net):
    assert not is_compiled(net())
    assert not why_unheard(net())


def test_a_function_beside_the_class_that_was_compiled_is_seen(monkeypatch):
    monkeypatch.setitem(globals(), "beside", compiled(lambda x: x))
    assert is_compiled(InPlaceNot())
    assert not is_compiled(nets.Net())  # of another file


class InPlaceNot(nets.Net):
    """Compiles nothing itself."""


def test_a_compiled_step_of_an_optimizer_is_seen():
    """The forward pass runs within it, under automatic optimization."""
    net = nets.Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    assert not why_unheard(net, [optimizer])
    optimizer.step = compiled(optimizer.step)
    assert is_compiled(net, [optimizer])
    assert why_unheard(net, [optimizer])


def test_a_module_that_lightning_took_out_of_its_wrapper_is_seen():
    """It carries the compiled methods, and is no wrapper any more."""
    net = from_compiled(compiled(nets.Net()))
    assert type(net) is nets.Net
    assert is_compiled(net)


@pytest.mark.parametrize(
    "part",
    [nn.MultiheadAttention(4, 2), nn.TransformerEncoderLayer(4, 2, 8)],
    ids=lambda part: type(part).__name__,
)
def test_attention_that_does_not_train_would_leave_its_fast_path(part):
    """Its results differed in the last digits on the steps that were listened to."""
    net = nets.Net()
    net.teacher = part
    assert not why_unheard(net.train())
    net.teacher.eval()
    assert why_unheard(net)
    assert not is_compiled(net)


# --- state ------------------------------------------------------------------------------------------------------------


def test_what_is_packed_loads_with_default_arguments_and_comes_back(tmp_path):
    state = {"a": np.arange(3), "b": [{"c": np.ones((2, 2)), "d": "text"}, 1.5, None], "e": {}, "f": {3: [True]}}
    torch.save(packed(state), tmp_path / "state.pt")
    back = unpacked(torch.load(tmp_path / "state.pt"))
    np.testing.assert_array_equal(back["a"], state["a"])
    np.testing.assert_array_equal(back["b"][0].pop("c"), np.ones((2, 2)))
    assert (back["b"], back["e"], back["f"]) == ([{"d": "text"}, 1.5, None], {}, {3: [True]})


def test_what_is_packed_is_a_copy():
    array = np.zeros(2)
    state = packed([array])
    array[:] = 7
    assert state[0].tolist() == [0, 0]


# --- validation -------------------------------------------------------------------------------------------------------


VALIDATION = [
    *("val_loss", "val/loss", "loss_val", "loss/val", "avg_val_loss", "valid_loss", "validation.loss", "eval_loss"),
    *("valLoss", "Val Loss", "VAL_LOSS", "val_loss_epoch", "val_loss/dataloader_idx_0", "val_mseloss", "lossValid"),
]
OTHERS = [
    *("loss", "train_loss", "value_loss", "retrieval_loss", "interval/loss", "val_accuracy", "val", "lossless_val"),
    *("evaluator_loss", "invalid_loss", "removal_loss"),
]


def said(metrics, sanity_checking=False):
    connector = SimpleNamespace(_callback_metrics=metrics)
    return _trainer.validation_loss(SimpleNamespace(sanity_checking=sanity_checking, _logger_connector=connector))


@pytest.mark.parametrize("name", VALIDATION)
def test_the_loss_of_a_validation_is_known_by_its_name(name):
    assert said({"accuracy": torch.tensor(0.5), name: torch.tensor(0.25)}) == (0.25, name)


@pytest.mark.parametrize("name", OTHERS)
def test_other_metrics_are_not_taken_for_it(name):
    """The loss of a critic, the value loss, was told as that of a validation."""
    assert said({name: torch.tensor(0.25)}) is None


def test_of_several_the_plainest_counts_whatever_their_order():
    metrics = {"val_loss_step": 1.0, "val_loss": 2.0, "val_loss_epoch": 3.0, "val_aux_loss": 4.0}
    assert said(metrics) == said(dict(reversed(metrics.items()))) == (2.0, "val_loss")
    assert said({"val_bloss": 1.0, "val_aloss": 2.0, "val_accuracy": 3.0}) == (2.0, "val_aloss")


def test_a_loss_that_is_not_finite_is_told_as_it_is():
    assert math.isnan(said({"val_loss": torch.tensor(math.nan)})[0])


def test_before_the_training_there_is_none():
    assert said({"val_loss": torch.tensor(1.0)}, sanity_checking=True) is None
    assert said({}) is None


class Validates(nets.Net):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def val_dataloader(self):
        return nets.batches(16)


def test_validations_of_a_fit_are_remembered_with_the_step_after_which_they_came():
    monitor, seen = remembered(every_n_steps=2)
    trainer, losses = fits.trainer([monitor], max_epochs=3, num_sanity_val_steps=2), []
    net = Validates()
    trainer.callbacks[0].on_train_epoch_end = lambda *_: losses.append(trainer.callback_metrics["val_loss"].item())
    trainer.fit(net)
    found = seen[-1].validations
    assert [one.name for one in found] == ["val_loss"] * len(found)
    assert [one.step for one in found][:2] == [7, 15]
    assert [one.loss for one in found] == losses[: len(found)]
