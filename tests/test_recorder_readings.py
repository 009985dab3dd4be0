"""What is gathered beside norms: learning rates, batches, stale gradients, silent units, and how processes differ."""

import functools
import math
import threading

import numpy as np
import pytest
import torch
from torch import nn

from lightning_weightwatch import reduce
from lightning_weightwatch.meters.targets import Targets
from lightning_weightwatch.meters.units import STEPS
from lightning_weightwatch.parameters import describe, named_tensors
from lightning_weightwatch.recorder import GradientRecorder
from tests.helpers.hearing import LAYER, listener

NAN, INF = math.nan, math.inf
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))


def recorder_of(module, rows=16):
    return GradientRecorder(describe(module), named_tensors(module), rows=rows, sharded=False)


def gathered(recorder, **options):
    return recorder.receive(recorder.send({}, agree=True, **options))


def train(net, recorder, optimizers, steps, *, clears=True, loss_of=None):
    """Do what the monitor does around the steps of a training; every optimizer differentiates for itself."""
    for step in steps:
        for optimizer in optimizers:
            if clears:
                optimizer.zero_grad()
            recorder.before_backward()
            loss = net(X).square().mean() if loss_of is None else loss_of(step)
            loss.backward()
            recorder.add(step, optimizer, recorder.gradients(optimizer), loss=loss.detach(), batch=float(step % 3))
            recorder.before_step(optimizer)
            optimizer.step()
            recorder.after_step(step, optimizer, {})


def test_learning_rates_and_batches_are_those_of_their_steps_also_over_flushes():
    net = network()
    recorder, optimizer = recorder_of(net), torch.optim.SGD(net.parameters(), lr=1.0)
    schedule, seen = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), []
    for step in range(7):
        train(net, recorder, [optimizer], [step])
        schedule.step()
        if step in (2, 6):
            found = gathered(recorder)
            seen += zip(found.steps, found.learning_rates, found.batches, strict=True)
    assert seen == [(step, 0.5**step, step % 3) for step in range(7)]


def test_of_several_optimizers_in_a_step_the_largest_learning_rate_counts():
    net = network()
    rates = (0.01, 0.3, 0.02)
    optimizers = [torch.optim.SGD(net.parameters(), lr=rate) for rate in rates]
    for order in (optimizers, optimizers[::-1]):
        recorder = recorder_of(net)
        train(net, recorder, order, [0])
        train(net, recorder, order[:1], [1])
        found = gathered(recorder)
        assert found.learning_rates.tolist() == [0.3, order[0].param_groups[0]["lr"]]


@pytest.mark.parametrize("known_first", [True, False])
def test_an_optimizer_without_a_known_learning_rate_hides_no_other(known_first):
    net = network()
    one, other = (torch.optim.SGD(net.parameters(), lr=0.1) for _ in range(2))
    other.param_groups[0]["lr"] = None
    recorder = recorder_of(net)
    for optimizer in (one, other) if known_first else (other, one):
        recorder.add(0, optimizer, recorder.gradients(optimizer))
    assert gathered(recorder).learning_rates.tolist() == [0.1]
    recorder.add(1, other, recorder.gradients(other))
    assert np.isnan(gathered(recorder).learning_rates).all()


@pytest.mark.parametrize(("clears", "stale"), [(True, [NAN, 0, 0, 0]), (False, [NAN, 1, 1, 1])])
def test_gradients_that_are_not_cleared_are_told_from_the_second_step_on(clears, stale):
    net = network()
    recorder = recorder_of(net)
    train(net, recorder, [torch.optim.SGD(net.parameters(), lr=1e-3)], range(4), clears=clears)
    np.testing.assert_array_equal(gathered(recorder).stale, stale)


def test_one_optimizer_of_two_that_forgets_to_clear_makes_the_step_stale():
    net = network()
    one, other = (torch.optim.SGD(part.parameters(), lr=1e-3) for part in (net[0], net[2]))
    recorder = recorder_of(net)
    for step in range(3):
        for optimizer in (one, other):
            if optimizer is one:
                optimizer.zero_grad()
            recorder.before_backward()
            net(X).square().mean().backward()
            recorder.add(step, optimizer, recorder.gradients(optimizer))
    np.testing.assert_array_equal(gathered(recorder).stale, [NAN, 1, 1])


def test_steps_that_nobody_announced_are_neither_stale_nor_not():
    net = network()
    recorder, optimizer = recorder_of(net), torch.optim.SGD(net.parameters(), lr=1e-3)
    for step in range(3):
        net(X).square().mean().backward()
        recorder.add(step, optimizer, recorder.gradients(optimizer))
    assert np.isnan(gathered(recorder).stale).all()


def test_units_that_are_silent_are_told_as_shares_and_their_streaks_outlast_a_flush():
    net = network()
    with torch.no_grad():
        net[0].bias[:2] = -100.0
    recorder, optimizer = recorder_of(net), torch.optim.SGD(list(net.parameters())[::-1], lr=1e-4)
    told = []
    for step in range(STEPS + 5):
        train(net, recorder, [optimizer], [step])
        if step % 5 == 4:
            told.append(gathered(recorder).dead)
    assert [one.step for one in told] == [4, 9, 14, 19, 24]
    assert {one.steps for one in told} == {STEPS}
    shares = [one.share.tolist() for one in told]
    np.testing.assert_array_equal(shares, [[NAN, 0, NAN, 0]] * 3 + [[NAN, 0.4, NAN, 0]] * 2)


def test_a_flush_of_nothing_has_no_reading():
    found = gathered(recorder_of(network()))
    assert (found.steps, found.dead, found.listened, found.replicas, found.broken_losses) == ([], None, None, None, {})


def test_what_was_heard_travels_with_a_flush():
    net = network()
    recorder, heard = recorder_of(net), listener(LAYER, batch=torch.ones(5, 4), targets=Targets())
    with heard:
        torch.relu(LAYER(torch.ones(5, 4)))
    heard.close()
    train(net, recorder, [torch.optim.SGD(net.parameters(), lr=0.1)], [3])
    found = gathered(recorder, listener=heard).listened
    assert (found.step, [a.function for a in found.activations], found.inputs[0].abs_max) == (3, ["relu"], 1.0)


def test_a_listener_that_heard_nothing_travels_too():
    net, heard = network(), listener()
    recorder = recorder_of(net)
    heard.close()
    train(net, recorder, [torch.optim.SGD(net.parameters(), lr=0.1)], [3])
    assert gathered(recorder, listener=heard).listened.activations == ()


def test_names_are_those_of_all_tensors_watched_or_not():
    net = network()
    recorder = GradientRecorder(describe(net)[:1], named_tensors(net), rows=2, sharded=False)
    assert recorder.names == {id(p): name for name, p in net.named_parameters()}


# --- processes --------------------------------------------------------------------------------------------------------


class Pretended:
    """Processes that are threads; what they exchange is merged when all have handed it in."""

    WAYS = {"sum": np.add, "max": np.maximum, "min": np.minimum}  # noqa: RUF012 - it is not changed

    def __init__(self, monkeypatch, size):
        self.size, self._mine, self._given = size, threading.local(), {}
        self._barrier = threading.Barrier(size, timeout=20)
        for name, way in {
            "is_distributed": lambda: True,
            "world_size": lambda: size,
            "rank": lambda: self._mine.rank,
            "exchange": self._exchange,
        }.items():
            monkeypatch.setattr(reduce, name, way)

    def _exchange(self, partials, merges):
        self._given[self._mine.rank] = {key: part.double().numpy() for key, part in partials.items()}
        self._barrier.wait()
        given = [self._given[rank] for rank in range(self.size)]
        merged = {key: functools.reduce(self.WAYS[merges[key]], [one[key] for one in given]) for key in partials}
        self._barrier.wait()
        return {key: torch.as_tensor(part) for key, part in merged.items()}

    def __call__(self, work):
        """Return what each makes of it."""
        made, failed = [None] * self.size, []

        def run(rank):
            self._mine.rank = rank
            try:
                made[rank] = work(rank)
            except BaseException as error:  # noqa: BLE001 - it is raised in the test
                failed.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
        return made


def on_each(monkeypatch, losses, *, drift=0.0, snapshot=True, size=2):
    """Train the same on all processes, but for their losses; the last one's weights drift."""
    nets = [network() for _ in range(size)]  # one after another: threads share the random stream

    def work(rank):
        net = nets[rank]
        recorder, optimizer = recorder_of(net), torch.optim.SGD(net.parameters(), lr=0.0)
        if rank == size - 1:
            with torch.no_grad():
                net[0].weight.mul_(1 + drift)
        if snapshot:
            recorder.begin_snapshot(7)
        train(net, recorder, [optimizer], [7, 8], loss_of=lambda step: net(X).sum() * 0 + losses[rank][step - 7])
        return gathered(recorder)

    return Pretended(monkeypatch, size)(work)


def test_all_processes_know_the_mean_loss_and_whose_own_broke_first(monkeypatch):
    found = on_each(monkeypatch, [[1.0, 2.0], [3.0, NAN]])
    for mine in found:
        np.testing.assert_array_equal(mine.losses, [2.0, INF])
        assert mine.broken_losses == {1: 8}


def test_losses_that_are_finite_broke_nowhere(monkeypatch):
    assert [mine.broken_losses for mine in on_each(monkeypatch, [[1.0, 2.0]] * 2)] == [{}, {}]


@pytest.mark.parametrize(("drift", "relative"), [(0.0, 0.0), (0.1, 0.05 / 1.05), (NAN, INF)], ids=str)
def test_copies_of_two_processes_are_compared_parameter_by_parameter(monkeypatch, drift, relative):
    for mine in on_each(monkeypatch, [[1.0, 1.0]] * 2, drift=drift):
        assert (mine.replicas.step, mine.replicas.odd) == (7, ())
        assert mine.replicas.spread.tolist() == [pytest.approx(relative, rel=1e-5), 0.0, 0.0, 0.0]


def test_of_three_processes_the_odd_one_is_named(monkeypatch):
    for mine in on_each(monkeypatch, [[1.0, 1.0]] * 3, drift=0.1, size=3):
        assert mine.replicas.odd == (2,)
        assert mine.replicas.spread[0] == pytest.approx(np.std([1, 1, 1.1]) / np.mean([1, 1, 1.1]), rel=1e-5)


def test_without_a_snapshot_copies_are_not_compared(monkeypatch):
    assert [mine.replicas for mine in on_each(monkeypatch, [[1.0, 1.0]] * 2, snapshot=False)] == [None, None]


def test_what_is_left_of_a_run_that_broke_off_is_read_alone(monkeypatch):
    """Other processes may be gone."""
    monkeypatch.setattr(reduce, "is_distributed", lambda: True)
    monkeypatch.setattr(reduce, "exchange", lambda *_: pytest.fail("it waited for others"))
    net = network()
    recorder = recorder_of(net)
    train(net, recorder, [torch.optim.SGD(net.parameters(), lr=0.1)], [0])
    found = recorder.receive(recorder.send({}, agree=False))
    assert (found.steps, found.broken_losses, found.replicas) == ([0], {}, None)
