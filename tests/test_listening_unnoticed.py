"""A forward pass is the same whether it is heard or not, whatever happens within it."""

import contextlib
import gc
import math
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own short name
from torch import nn
from torch.overrides import TorchFunctionMode, handle_torch_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from lightning_weightwatch import listening
from lightning_weightwatch.callbacks._listening import Ear
from lightning_weightwatch.evidence import Listened
from lightning_weightwatch.listening import Listener
from tests.helpers.hearing import LABELS, LAYER, X, hear, listener, normal, stack

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated.*"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is not supported in Python.*"),
]
NAN = math.nan


@pytest.fixture(autouse=True)
def nothing_stays_entered():
    yield
    left = stack()
    listening._taken_off()
    assert left == []


# --- the forward pass is the same -------------------------------------------------------------------------------------


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] ** 2 * grad


def seeded(make):
    torch.manual_seed(0)
    return make()


MLP = seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(8, 6), nn.Tanh()))
CNN = seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(inplace=True), nn.Flatten()))
ATTENTION = seeded(lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True))
LSTM = seeded(lambda: nn.LSTM(4, 5, 2, dropout=0.2))
SCRIPTABLE = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU()))


def functions(x):
    return torch.relu(x) + torch.sigmoid(x)


def scripted(thing, x):
    with torch.jit.optimized_execution(False):  # else the first runs differ from those that follow
        return torch.jit.script(thing)(x)


def in_place():
    h = LAYER(X)
    F.relu(h[:, :3], inplace=True)
    h = h * 2
    return (F.leaky_relu_(h) * 1).sigmoid_().sum()


def under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        return F.cross_entropy(F.gelu(MLP(X)), LABELS)


def selective(keep):
    def policy(_, op, *__, **___):
        return keep if op in SAVED else torch.utils.checkpoint.CheckpointPolicy.PREFER_RECOMPUTE

    def part(x):
        return F.softmax(F.relu(LAYER(x)), 1).std(0)

    return checkpoint(
        part, X, use_reentrant=False, context_fn=lambda: create_selective_checkpoint_contexts(policy)
    ).sum()


SAVED = {getattr(torch.ops.aten, name).default for name in ("addmm", "relu", "mean", "detach", "all", "sum")}
SAVED |= {torch.ops.aten.std.correction, torch.ops.aten.std.default, torch.ops.aten.eq.Scalar}
MUST = torch.utils.checkpoint.CheckpointPolicy.MUST_SAVE


def penalised():
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(MLP(x).sum(), x, create_graph=True)
    return F.mse_loss(slope.norm(dim=1), torch.ones(5))


def offloaded():
    with torch.autograd.graph.save_on_cpu():
        return F.cross_entropy(MLP(X).softmax(1), LABELS)


def traced():
    net = torch.jit.trace(LAYER, X, check_trace=False)
    return F.relu(net(X)).sum()


def traced_functions():
    made = torch.jit.trace(lambda x: F.softmax(F.relu(x), 1), X, check_trace=False)
    return made(LAYER(X)[:, :4]).std()


def transformed():
    grads = torch.func.vmap(torch.func.grad(lambda r: F.softplus(F.relu(r)).sum()))(X)
    return (torch.func.vmap(F.softmax, (0, None))(LAYER(X), -1) * grads.sum()).sum()


def broken():
    return F.cross_entropy(MLP(X * NAN), LABELS)


def ignoring():
    return F.cross_entropy(LAYER(X)[:, :, None].expand(5, 6, 3), torch.tensor([[-100, 1, 5]] * 5), label_smoothing=0.1)


PROGRAMS = {
    "layers with dropout and in place": lambda: F.cross_entropy(MLP(X), LABELS),
    "a convolution and a norm": lambda: F.mse_loss(CNN(normal(3, 2, 5, 5)), torch.ones(3, 36)),
    "functions in place, also on views": in_place,
    "attention": lambda: F.l1_loss(ATTENTION(normal(2, 5, 8)), torch.zeros(2, 5, 8)),
    "a recurrent network": lambda: LSTM(X)[0].relu().sum(),
    "autocast": under_autocast,
    "checkpointing": lambda: checkpoint(lambda x: F.cross_entropy(MLP(x).softmax(1), LABELS), X, use_reentrant=False),
    "reentrant checkpointing": lambda: checkpoint(
        lambda x: MLP(x).relu(), X.clone().requires_grad_(), use_reentrant=True
    ).sum(),
    "selective checkpointing": lambda: selective(MUST),
    "what was saved lies elsewhere": offloaded,
    "a gradient penalty": penalised,
    "scripted modules": lambda: scripted(SCRIPTABLE, X).relu().sum(),
    "scripted functions": lambda: scripted(functions, LAYER(X)).sum(),
    "tracing": traced,
    "tracing functions": traced_functions,
    "torch.func": transformed,
    "a function of the user's": lambda: Cube.apply(F.silu(LAYER(X))).sum(),
    "NaN": broken,
    "targets that are ignored": ignoring,
    "flat attention": lambda: F.scaled_dot_product_attention(*[F.elu(LAYER(X))[None]] * 3, dropout_p=0.2).sum(),
    "random functions": lambda: F.rrelu(LAYER(X), training=True).sum() + F.gumbel_softmax(LAYER(X)).std(),
}
MODULES = (LAYER, MLP, CNN, ATTENTION, LSTM, SCRIPTABLE)


def graph(tensor):
    """Return the names of all nodes behind a tensor, level by level."""
    level, names = [tensor.grad_fn], []
    while level and len(names) < 500:
        names += [type(node).__name__ for node in level]
        level = [following for node in level for following, _ in node.next_functions if following is not None]
    return names


def everything(run, around):
    """Run it, differentiate it, and return all that came of it."""
    buffers = [buffer.clone() for module in MODULES for buffer in module.buffers()]
    for module in MODULES:
        module.zero_grad()
    torch.manual_seed(7)
    with around:
        made = run()
    nodes = graph(made)
    made.backward()
    found = [made.detach(), torch.get_rng_state()]
    parameters = [p for module in MODULES for p in module.parameters()]
    found += [torch.zeros(()) if p.grad is None else p.grad for p in parameters]
    held = [buffer for module in MODULES for buffer in module.buffers()]
    found += [buffer.clone() for buffer in held]
    for buffer, before in zip(held, buffers, strict=True):
        buffer.copy_(before)
    return found, nodes


@pytest.mark.parametrize("run", PROGRAMS.values(), ids=PROGRAMS)
def test_results_gradients_buffers_random_numbers_and_the_graph_are_the_same(run):
    heard = listener(*MODULES, batch=X)
    (ours, nodes), (truth, expected) = everything(run, heard), everything(run, contextlib.nullcontext())
    heard.close()
    assert heard.failure is None
    assert nodes == expected
    for one, other in zip(ours, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_selective_checkpointing_was_not_fed_with_our_operations():
    """What is saved is taken out again in order; what we had computed within would have come out for the user's."""
    (ours, _), (truth, _) = (everything(PROGRAMS["selective checkpointing"], a) for a in (listener(LAYER), listener()))
    assert all(torch.equal(one, other) for one, other in zip(ours, truth, strict=True))
    assert [a.function for a in hear(PROGRAMS["selective checkpointing"], LAYER).activations] == []


def test_a_compiled_function_with_a_full_graph_can_be_called():
    """It is not asked whether functions of other files are compiled; our own must not break their graph."""

    @torch.compile(backend="eager", fullgraph=True)
    def compiled(x):
        return F.softmax(F.relu(x), 1).sum()

    try:
        with listener():
            inside = compiled(X)
        assert torch.equal(inside, compiled(X))
    finally:
        torch._dynamo.reset()


class Reads(TorchDispatchMode):
    """Notes every operation that waits for the device."""

    def __init__(self):
        super().__init__()
        self.seen, self.operations = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._opname
        self.operations += 1
        if name in ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "equal", "unique"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "case", [case for case in PROGRAMS if not case.startswith(("scripted", "selective", "tracing", "torch.func"))]
)
def test_nothing_is_read_back(case):
    with Reads() as alone:
        PROGRAMS[case]()
    with Reads() as ours:
        heard = listener(*MODULES, batch=X)
        with heard:
            PROGRAMS[case]()
        heard.close()
    assert ours.seen == alone.seen
    assert ours.operations > alone.operations  # else nothing was measured


def test_no_activation_is_kept_alive():
    heard, references = listener(LAYER, batch=(batch := normal(5, 4))), [weakref.ref(batch)]
    with heard:
        made = F.relu(LAYER(batch))
        references.append(weakref.ref(made))
        F.mse_loss(made, made.detach() + 1)
    heard.close()
    del made, batch
    gc.collect()
    assert [reference() for reference in references] == [None, None]


# --- modes of the user's ----------------------------------------------------------------------------------------------


class Notes(TorchFunctionMode):
    """Notes every function it is asked for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


def work():
    return F.cross_entropy(F.relu(LAYER(X)), LABELS)


def noted(*, outside, ours):
    notes, heard = Notes(), listener(LAYER) if ours else contextlib.nullcontext()
    with contextlib.ExitStack() as entered:
        for context in (notes, heard) if outside else (heard, notes):
            entered.enter_context(context)
        work()
    return notes.seen


@pytest.mark.parametrize("outside", [True, False], ids=["before", "inside"])
def test_a_mode_of_the_users_sees_its_own_functions_and_none_of_ours(outside):
    """What was measured was told to a mode that had been entered before."""
    assert noted(outside=outside, ours=True) == noted(outside=outside, ours=False) != []


def test_a_mode_of_the_users_does_not_see_the_batch_measured_either():
    with Notes() as alone:
        work()
    with Notes() as notes:
        ear = Ear()
        ear.enter(0, {}, [X, X + 1])
        work()
        ear.leave()
    notes.seen.remove("add")  # of the batch
    assert notes.seen == alone.seen


def test_it_hears_beside_a_mode_of_the_users():
    for order in ([Notes(), listener(LAYER)], [listener(LAYER), Notes()]):
        with order[0], order[1]:
            work()
        heard = next(mode for mode in order if isinstance(mode, Listener))
        heard.close()
        assert [a.function for a in heard.read(heard.numbers.numpy()).activations] == ["relu"]


def test_a_mode_that_was_entered_before_can_be_left_while_it_listens():
    """The innermost mode is the one that is taken away: it was ours, and the user's stayed for ever."""
    ear, notes = Ear(), Notes()
    notes.__enter__()
    ear.enter(0, {}, None)
    notes.__exit__(None, None, None)
    assert [type(mode) for mode in stack()] == [Listener]
    ear.leave()
    assert stack() == []
    assert ear.take() is not None


def test_a_mode_that_is_entered_inside_can_be_left_after_it():
    ear, notes = Ear(), Notes()
    ear.enter(0, {}, None)
    notes.__enter__()
    ear.leave()
    assert stack() == [notes]
    notes.__exit__(None, None, None)


def test_a_mode_that_an_exception_leaves_open_stays_the_users_business():
    """It lay above ours, which then listened to the rest of the run."""
    ear, notes = Ear(), Notes()
    for step in range(3):
        ear.enter(step, {}, None)
        assert sum(isinstance(mode, Listener) for mode in stack()) == 1
        if step == 0:
            notes.__enter__()
        work()
        ear.leave()
        assert stack() == [notes]
        heard = ear.take()
        assert len(heard.read(heard.numbers.numpy()).losses) == 1
    notes.__exit__(None, None, None)


def test_it_cannot_be_left_from_within_a_function_of_another_mode_and_is_deaf_until_it_can():
    ear = Ear()

    class Leaves(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    class LeavesWithin(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            ear.leave()
            return torch.ones(1)

    ear.enter(0, {id(LAYER.weight): "weight"}, None)
    torch.neg(torch.ones(1).as_subclass(LeavesWithin))
    assert [type(mode) for mode in stack()] == [Listener]
    work()
    heard = ear.take()
    assert heard.read(heard.numbers.numpy()) == Listened(0)
    ear.enter(1, {}, None)
    ear.leave()
    assert stack() == []


@pytest.mark.parametrize("where", ["around", "inside", "left inside", "left after"])
def test_device_contexts_end_in_peace(where):
    """Torch insists on finding its device at the very bottom."""
    ear, device = Ear(), torch.device("meta")
    if where in ("around", "left inside"):
        device.__enter__()
    ear.enter(0, {}, None)
    if where in ("inside", "left after"):
        device.__enter__()
    assert torch.empty(2).is_meta
    F.relu(LAYER(X))
    if where in ("inside", "left inside"):
        device.__exit__(None, None, None)
        assert not torch.empty(2).is_meta
    ear.leave()
    if where in ("around", "left after"):
        assert torch.empty(2).is_meta
        device.__exit__(None, None, None)
    assert not torch.empty(2).is_meta
    heard = ear.take()
    assert heard.numbers.device.type == "cpu"
    assert len(heard.read(heard.numbers.numpy()).activations) == 1


def test_a_default_device_may_be_set_and_taken_back_while_it_listens():
    ear = Ear()
    for first in (False, True):
        if first:
            torch.set_default_device("meta")
        ear.enter(int(first), {}, None)
        torch.set_default_device(None if first else "meta")
        ear.leave()
        torch.set_default_device(None)
        assert not torch.empty(1).is_meta
    assert stack() == []


def test_a_dispatch_mode_of_the_users_sees_its_own_operations_and_none_of_ours():
    with Reads() as alone:
        work()
    with listener(LAYER, batch=X), Reads() as inside:
        work()
    assert inside.operations == alone.operations


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_an_error_in_measuring_changes_nothing_and_is_kept(monkeypatch, caplog):
    def fails(*_):
        raise ZeroDivisionError("ours")

    for name in ("producer", "spread", "fed_by", "input_numbers"):
        with monkeypatch.context() as patched:
            patched.setattr(listening, name, fails)
            ear = Ear()
            ear.enter(0, {id(LAYER.weight): "weight"}, X)
            made = work()
            ear.leave()
        assert torch.equal(made, work())
        assert ear.take() is None
        assert stack() == []


def test_numbers_that_cannot_be_put_together_are_given_up(monkeypatch):
    """The stack raised on leaving, and the monitor was switched off."""
    monkeypatch.setattr(listening, "spread", lambda x: torch.ones(2) if x.dim() == 2 else torch.ones(1))
    ear = Ear()
    ear.enter(0, {}, None)
    work()
    ear.leave()
    assert ear.take() is None


def test_a_batch_that_cannot_be_looked_into_is_left_alone():
    class Refuses(dict):
        def items(self):
            raise KeyError("no")

    ear = Ear()
    ear.enter(0, {}, Refuses())
    assert torch.equal(work(), work())
    ear.leave()
    assert ear.take() is None


def test_a_function_that_is_no_key_is_called_all_the_same():
    """One of the user's that can be overridden, made of an object."""

    class Function:
        __hash__ = None

        def __call__(self, x):
            if torch.overrides.has_torch_function((x,)):
                return handle_torch_function(self, (x,), x)
            return x + 1

    with listener():
        assert Function()(torch.ones(1)).item() == 2


def test_an_error_of_the_users_passes_through():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), listener(LAYER):
        F.relu(LAYER(torch.ones(2, 3)))


def test_a_step_is_heard_once():
    ear = Ear()
    for step, entered in ((4, True), (4, False), (5, True)):
        ear.enter(step, {}, None)
        assert bool(stack()) is entered
        ear.leave()
    assert ear.take().step == 5
    assert ear.take() is None
    ear.leave()


def test_what_is_measured_has_the_type_of_the_host():
    heard = listener(LAYER, batch=X.double())
    with heard:
        work()
    heard.close()
    assert (heard.numbers.dtype, heard.numbers.dim()) == (torch.float32, 1)
    assert np.isfinite(heard.numbers.numpy()).sum() == len(heard.numbers)
