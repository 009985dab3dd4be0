"""A training in which every forward pass is listened to is the training it would have been."""

import contextlib

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own short name
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from lightning_weightwatch import GradientHealthMonitor, listening
from lightning_weightwatch.callbacks import _gradient_fit
from lightning_weightwatch.listening import Listener
from tests.helpers import fits, nets
from tests.helpers.hearing import stack
from tests.never.listening import remembered

EVERY = {"every_n_steps": 1, "statistics_every_n_steps": 1, "max_overhead": None}


@pytest.fixture(autouse=True)
def nothing_stays_entered():
    yield
    left = stack()
    listening._taken_off()
    assert left == []


class Normed(nets.Net):
    """In place, with buffers, with functions that are no modules."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(16, 16)
        )

    def forward(self, x):
        return self.head(F.dropout(torch.tanh_(self.body(x)), 0.1, training=self.training))


class Checkpointed(nets.Net):
    def forward(self, x):
        return checkpoint(lambda x: self.head(self.body(x)).softmax(1), x, use_reentrant=False)


class Attentive(nets.Net):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Unflatten(1, (2, 4)), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))


class Recurrent(nets.Net):
    def __init__(self):
        super().__init__()
        self.cells = nn.LSTM(2, 6, 2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.cells(x.unflatten(1, (4, 2)))[0][:, -1].relu())


class Taught(nets.Net):
    """A teacher that does not train, of torch's own attention, which has a fast path of its own then."""

    def __init__(self):
        super().__init__()
        self.teacher = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).requires_grad_(False)

    def on_train_start(self):
        self.teacher.eval()

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            wanted = self.teacher(batch[0].unflatten(1, (2, 4))).flatten(1)
        return F.mse_loss(self.body[0](batch[0])[:, :8], wanted)


class LineSearch(nets.Net):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class LeavesOut(nets.Net):
    """Returns nothing now and then."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx % 3 == 1 else loss


class SkipsTheEpoch(nets.Net):
    """Ends an epoch as a batch begins, after which no batch ends."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 3 else None


class OddBatches(nets.Net):
    """Batches hold text, numbers, classes of the user's, and integers."""

    def train_dataloader(self):
        def collate(rows):
            x, y = torch.utils.data.default_collate(rows)
            return {"x": x, "y": y, "names": ["a", "b"], "n": 3, "more": ({"nothing": None}, object(), [torch.ones(0)])}

        return torch.utils.data.DataLoader(nets.batches().dataset, batch_size=4, collate_fn=collate)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch["x"]), batch["y"], ignore_index=1, label_smoothing=0.1)


class Raw(nets.TwoOptimizers):
    """Differentiates without Lightning."""

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            F.cross_entropy(self(batch[0]), batch[1]).backward()
            optimizer.step()


class Doubles(TorchFunctionMode):
    """A mode of the user's, which matters: it doubles what relu gives."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        return 2 * made if func is F.relu else made


class WithModes(nets.Net):
    """Modes that begin in one hook and end in another."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.mode = Doubles()
        self.mode.__enter__()
        return batch

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.mode.__exit__(None, None, None)
        self.mode = Doubles()
        self.mode.__enter__()
        return loss

    def on_after_backward(self):
        self.mode.__exit__(None, None, None)


class LeavesAModeOpen(nets.Net):
    """An error within a mode that is not closed by it, and is swallowed; the mode is closed much later."""

    mode = None

    def training_step(self, batch, batch_idx):
        if batch_idx == 2:
            self.mode = Doubles()
            with contextlib.suppress(ZeroDivisionError):
                self.mode.__enter__()
                _ = 1 / 0
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self):
        self.mode.__exit__(None, None, None)


class SelfMade(nets.Net):
    """Device contexts around and within."""

    def training_step(self, batch, batch_idx):
        with torch.device("cpu"):
            return super().training_step(batch, batch_idx) + torch.zeros(())


NETS = [
    nets.Net,
    nets.TwoOptimizers,
    nets.Strange,
    nets.TurnsNaN,
    Normed,
    Checkpointed,
    Attentive,
    Recurrent,
    LineSearch,
]
NETS += [Taught, LeavesOut, SkipsTheEpoch, OddBatches, Raw, WithModes, LeavesAModeOpen, SelfMade]
OPTIONS = {
    "as it is": {},
    "accumulation": {"accumulate_grad_batches": 3},
    "bfloat16": {"precision": "bf16-mixed"},
    "a GradScaler": {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))]},
}
CASES = [(net, "as it is") for net in NETS] + [(net, how) for net in (nets.Net, Normed) for how in OPTIONS][1:]
QUIET = [
    pytest.mark.filterwarnings("ignore:.*training_step. returned .None.*"),
    pytest.mark.filterwarnings("ignore:.*lazy.*"),
    pytest.mark.filterwarnings("ignore:.*Lazy.*"),
]
pytestmark = QUIET


def result(net, how, callbacks):
    model = fits.fit(net, callbacks, **OPTIONS[how])
    return [*model.state_dict().values(), torch.get_rng_state()]


@pytest.mark.parametrize(("net", "how"), CASES, ids=lambda part: getattr(part, "__name__", part))
def test_weights_buffers_and_random_numbers_are_the_same_to_the_bit(net, how):
    monitor = GradientHealthMonitor(**EVERY)
    ours, truth = result(net, how, [monitor]), result(net, how, [])
    assert not monitor.broken
    for one, other in zip(ours, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def heard(net, **options):
    """Return what is remembered of the forward passes of a fit."""
    monitor, seen = remembered(**EVERY)
    with contextlib.suppress(ZeroDivisionError):
        fits.fit(net, [monitor], max_epochs=1, **options)
    assert not monitor.broken
    return seen[-1].listened


def test_every_pass_is_heard_with_its_layers_its_loss_and_its_inputs():
    found = heard(nets.Net)
    assert [one.step for one in found] == list(range(8))
    for one in found:
        assert [(a.function, a.after, a.units) for a in one.activations] == [
            ("relu", "body.0.weight", 16),
            ("relu", "body.3.weight", 16),
        ]
        assert [(c.function, c.after, c.classes) for c in one.losses] == [("cross_entropy", "head.weight", 3)]
        assert [(i.name, i.features) for i in one.inputs] == [("batch[0]", 8)]
        assert one.dropout == (pytest.approx(0.2),)


def test_of_an_accumulation_window_the_first_batch_is_heard():
    assert [one.step for one in heard(nets.Net, accumulate_grad_batches=3)] == [0, 1, 2]


@pytest.mark.parametrize("net", [nets.TwoOptimizers, Raw], ids=lambda net: net.__name__)
def test_of_several_optimizers_the_pass_before_the_first_backward_pass_is_heard(net):
    assert [(one.step, len(one.activations), len(one.losses)) for one in heard(net)] == [(i, 2, 1) for i in range(8)]


def test_a_pass_that_raises_leaves_nothing_entered():
    found = heard(nets.Breaks)
    assert [one.step for one in found] == list(range(5))  # what waits with the step that raised is not sent


def test_a_mode_that_stays_open_does_not_end_the_hearing():
    assert [(one.step, len(one.losses)) for one in heard(LeavesAModeOpen)] == [(i, 1) for i in range(8)]


class Compiled(nets.Net):
    def __init__(self):
        super().__init__()
        self.body.compile(backend="eager")


def test_where_something_is_compiled_nothing_is_entered(monkeypatch):
    """What is compiled would be compiled anew."""
    monkeypatch.setattr(Listener, "__enter__", lambda self: pytest.fail("it was entered"))
    assert heard(Compiled) == []
    torch._dynamo.reset()


def test_attention_that_does_not_train_is_not_listened_to():
    """It left its fast path, and the weights were others in the last digits."""
    assert heard(Taught) == []


def test_an_epoch_that_ends_as_a_batch_begins_is_not_heard_on(monkeypatch):
    """No batch ends then, and the mode stayed entered until the next one began."""
    entered = []
    monkeypatch.setattr(SkipsTheEpoch, "on_train_epoch_end", lambda self: entered.extend(stack()))
    heard(SkipsTheEpoch)
    assert entered == []


def test_an_error_of_ours_is_told_at_debug_level_and_the_monitor_goes_on(monkeypatch, caplog):
    monkeypatch.setattr(listening, "producer", lambda *_: 1 / 0)
    with caplog.at_level("DEBUG", "lightning_weightwatch"):
        assert heard(nets.Net) == []
    assert "Listening to a forward pass failed" in caplog.text


def test_what_is_known_of_targets_grows_over_the_run():
    """Every batch alone has too few of each class."""
    found = heard(nets.Net)
    labels = torch.cat([y for _, y in nets.batches()])
    shares = torch.bincount(labels).double() / len(labels)
    assert found[-1].losses[0].chance == pytest.approx(-(shares * shares.log()).sum().item(), rel=1e-5)
    assert found[0].losses[0].chance < found[-1].losses[0].chance


def test_passes_are_heard_as_often_as_statistics_are_taken(monkeypatch):
    monkeypatch.setattr(_gradient_fit, "_EARLY", 0)
    monitor, seen = remembered(every_n_steps=1, statistics_every_n_steps=3)
    fits.fit(nets.Net, [monitor], max_epochs=1)
    assert [one.step for one in seen[-1].listened] == [one.step for one in seen[-1].snapshots] == [0, 3, 6]


def test_a_monitor_that_is_switched_off_within_a_forward_pass_stops_listening(monkeypatch):
    """Its mode stayed entered, and slowed every call of torch for the rest of the run."""
    entered = []

    class Net(nets.Net):
        def training_step(self, batch, batch_idx):
            entered.append(torch._C._len_torch_function_stack())
            return super().training_step(batch, batch_idx)

    monkeypatch.setattr(GradientHealthMonitor, "_measure", lambda *_: 1 / 0)
    monitor = GradientHealthMonitor(max_overhead=None)
    fits.fit(Net, [monitor])
    assert monitor.broken
    assert entered == [1, *[0] * 15]
    assert monitor._fit.hooks is None


def test_a_listening_that_fails_is_told(monkeypatch, capsys):
    """Nothing was said, and so no finding about inputs passed for health."""
    monkeypatch.setattr(listening, "input_numbers", lambda _: 1 / 0)
    fits.fit(nets.Net, [GradientHealthMonitor()])
    words = "weightwatch: activations, loss functions and inputs not listened to: it failed: ZeroDivisionError"
    assert capsys.readouterr().out.count(words) == 1
