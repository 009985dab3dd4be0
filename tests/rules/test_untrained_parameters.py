"""Parameters that ask to be trained and never are: silent cases first."""

import pytest

from lightning_weightwatch.evidence import Evidence, Setup, Watched
from lightning_weightwatch.rules.untrained_parameters import RULE, check
from tests.helpers.shots import SHOTS, shoot, train

NAN, INF = float("nan"), float("inf")
NAMES = ("body.0.weight", "body.2.weight", "head.weight", "head.bias")
SHAPES = ((8, 4), (8, 8), (3, 8), (3,))
MOVED = {"weight_norm": 2.0, "update_norm": 0.1, "grad_norm": 1.0}


def layers(names=NAMES, shapes=SHAPES):
    numels = [8 * len(shape) for shape in shapes]
    return [Watched(n, k, len(s) > 1, shape=s) for n, k, s in zip(names, numels, shapes, strict=True)]


def run(norms=None, *, watched=None, setup=None, steps=50, shots=None, **options):
    """Return evidence in which all has a gradient and moves, unless told otherwise."""
    watched = layers() if watched is None else watched
    scaled_loss, window = options.pop("scaled_loss", False), options.pop("window", 200)
    evidence = Evidence(watched, scaled_loss=scaled_loss, window=window)
    evidence.setup = setup or Setup()
    weights = MOVED | {"weight_norm": [2.0] * len(watched)}
    shots = {step: weights | {"weight_norm": 2.0 + step} for step in SHOTS} if shots is None else shots
    return train(evidence, [1.0] * steps, norms=norms, shots=shots, **options)


def without(*columns, width=4):
    return lambda step: [NAN if i in columns else 1.0 for i in range(width)]


def test_silent_where_all_is_trained():
    assert RULE(run()) == ()


# Outside any optimizer


def test_a_parameter_in_no_optimizer_is_told_at_the_first_step():
    (finding,) = RULE(run(without(2, 3), setup=Setup(outside=NAMES[2:]), steps=1))
    assert (finding.severity, finding.parameters) == ("warning", NAMES[2:])
    assert (finding.since_step, finding.step, finding.value, finding.limit) == (0, 0, 2.0, 0.0)
    assert finding.unit == "parameters in no optimizer"


def test_before_any_step_nothing_is_said():
    assert RULE(run(setup=Setup(outside=NAMES), steps=0)) == ()


def test_a_parameter_that_is_stepped_after_all_is_in_an_optimizer():
    assert RULE(run(setup=Setup(outside=NAMES, optimizers=(), automatic=False))) == ()


def test_optimizers_that_lightning_does_not_know_are_waited_for():
    setup = Setup(outside=NAMES[2:], optimizers=(), automatic=False)
    assert RULE(run(without(2, 3), setup=setup, steps=9)) == ()
    (finding,) = RULE(run(without(2, 3), setup=setup, steps=10))
    assert finding.parameters == NAMES[2:]


def twin_modules(online, other, shapes=((8, 4), (8,), (2, 8), (2,))):
    tails = ("0.weight", "0.bias", "2.weight", "2.bias")
    return layers([f"{module}.{tail}" for module in (online, other) for tail in tails], shapes * 2)


def only_first_trained(watched):
    half = len(watched) // 2
    setup = Setup(outside=tuple(p.name for p in watched[half:]))
    return run(without(*range(half, 2 * half), width=2 * half), watched=watched, setup=setup)


@pytest.mark.parametrize("other", ["target", "q_target", "ema_model", "teacher", "old", "encoder_k", "net.momentum"])
def test_a_copy_that_is_kept_up_by_hand_is_worth_knowing_only(other):
    (finding,) = RULE(only_first_trained(twin_modules("online", other)))
    assert (finding.severity, len(finding.parameters)) == ("info", 4)
    assert finding.unit == "copies in no optimizer"


def test_a_tower_that_is_no_copy_by_name_or_shape_was_forgotten():
    assert [f.severity for f in RULE(only_first_trained(twin_modules("user", "fold")))] == ["warning"]
    watched = layers(
        ["online.0.weight", "online.2.weight", "target.0.weight", "target.2.weight"], [(8, 4), (2, 8), (8, 4), (1, 8)]
    )
    assert [f.severity for f in RULE(only_first_trained(watched))] == ["warning"]
    single = layers(["key.weight", "query.weight", "x.weight", "k.weight"], [(4, 4)] * 4)
    assert [f.severity for f in RULE(only_first_trained(single))] == ["warning"]


def test_a_copy_of_something_that_is_not_trained_either_is_no_excuse():
    watched = twin_modules("online", "target")
    (finding,) = RULE(
        run(without(*range(8), width=8), watched=watched, setup=Setup(outside=tuple(p.name for p in watched)))
    )
    assert (finding.severity, len(finding.parameters)) == ("warning", 8)


# Unused


UNUSED_SILENT = [
    pytest.param(run(without(0), steps=9), id="too few steps"),
    pytest.param(run(lambda t: [NAN if t != 4 else 1.0, 1.0, 1.0, 1.0]), id="it had one once"),
    pytest.param(run(lambda t: [NAN] * 4), id="nothing has one"),
    pytest.param(run(without(0), setup=Setup(frozen=NAMES[:1])), id="frozen"),
    pytest.param(
        run(without(0), shots={0: MOVED | {"weight_norm": [NAN, 2.0, 2.0, 2.0]}}), id="frozen, in no optimizer"
    ),
    pytest.param(run(without(0), steps=60, window=50), id="the start is forgotten: it may have had one"),
    pytest.param(
        run(lambda t: [1.0 if t % 2 else NAN, NAN, 1.0, 1.0], watched=layers(("a.0.w", "a.1.w", "c.w", "d.w"))),
        id="its like is asked now and then",
    ),
    pytest.param(
        run(without(1), watched=layers(("experts.0.w", "experts.1.w", "c.w", "d.w"))), id="an expert nobody asked yet"
    ),
]


@pytest.mark.parametrize("evidence", UNUSED_SILENT)
def test_silent_on_what_may_be_used_yet(evidence):
    assert RULE(evidence) == ()


def test_ten_steps_without_a_gradient_are_told():
    (finding,) = RULE(run(without(0, 1), steps=10))
    assert (finding.severity, finding.parameters) == ("warning", NAMES[:2])
    assert (finding.since_step, finding.step, finding.value, finding.limit) == (0, 9, 10.0, 10.0)
    assert finding.unit == "steps without any gradient"


def test_a_block_that_is_left_out_is_told_though_its_like_are_used():
    (finding,) = RULE(run(without(1), watched=layers(("blocks.0.w", "blocks.1.w", "c.w", "d.w"))))
    assert finding.parameters == ("blocks.1.w",)


def test_of_optimizers_that_take_turns_those_count_that_have_stepped():
    """The first has not had its turn yet; the head of the second has no gradient though it was stepped."""
    stepped = {0: MOVED | {"weight_norm": [NAN, NAN, 2.0, 2.0], "grad_norm": [NAN, NAN, 1.0, NAN]}}
    evidence = run(without(0, 1, 3), setup=Setup(optimizers=("Adam", "Adam")), shots=stepped)
    assert [f.parameters for f in RULE(evidence)] == [NAMES[3:]]


# Unmoved


def still(columns=(0,), *, weights=2.0, update=None, **extra):
    moved = [0.0 if i in columns else 0.1 for i in range(4)] if update is None else update
    return (
        MOVED
        | {"weight_norm": [weights if i in columns else weights + 1 for i in range(4)], "update_norm": moved}
        | extra
    )


def shots_of(make):
    return {step: make(step) for step in SHOTS}


SAME = [2.0, 3.0, 3.0, 3.0]
UNMOVED_SILENT = [
    pytest.param(run(shots={0: still()}), id="one measured step"),
    pytest.param(run(shots=shots_of(lambda t: still(grad_norm=[0.0, 1, 1, 1]))), id="without a gradient nothing moves"),
    pytest.param(
        run(shots=shots_of(lambda t: still(grad_norm=[0.0, 1, 1, 1])), rate=lambda t: None), id="the same, rate unknown"
    ),
    pytest.param(run(shots=shots_of(lambda t: still()), rate=lambda t: 0.0), id="no rate"),
    pytest.param(run(shots=shots_of(lambda t: still(weights=2.0 + t))), id="it moves in steps that were not measured"),
    pytest.param(run(shots=shots_of(lambda t: still()), norms=lambda t: [INF] * 4, scaled_loss=True), id="skipped"),
    pytest.param(run(shots=shots_of(lambda t: still()), setup=Setup(half=NAMES)), id="half precision: another illness"),
    pytest.param(run(shots=shots_of(lambda t: still()), rate=lambda t: 1e-8), id="a step below float32's resolution"),
    pytest.param(run(shots={0: MOVED} | {t: still() for t in SHOTS[1:]}), id="it moved once"),
]


@pytest.mark.parametrize("evidence", UNMOVED_SILENT)
def test_silent_on_what_could_not_or_did_move(evidence):
    assert RULE(evidence) == ()


def test_two_steps_that_changed_nothing_are_told():
    (finding,) = RULE(run(shots={0: still(), 10: still()}, steps=20))
    assert (finding.severity, finding.parameters) == ("warning", NAMES[:1])
    assert (finding.since_step, finding.step, finding.value, finding.limit) == (0, 19, 2.0, 2.0)
    assert finding.unit == "steps that changed nothing"


def test_where_nothing_moves_at_all_it_is_critical():
    (finding,) = RULE(run(shots=dict.fromkeys(SHOTS, MOVED | {"update_norm": 0.0})))
    assert (finding.severity, finding.parameters) == ("critical", NAMES)


def test_steps_at_a_rate_of_zero_do_not_count():
    (finding,) = RULE(run(shots=shots_of(lambda t: still()), rate=lambda t: 0.1 if t >= 20 else 0.0))
    assert (finding.since_step, finding.value) == (20, 3.0)


def test_an_unknown_rate_is_no_excuse():
    assert RULE(run(shots=shots_of(lambda t: still()), rate=lambda t: None))


def test_limits_can_be_moved():
    assert list(check(run(without(0), steps=5), steps=5))
    assert not list(check(run(shots={0: still(), 10: still()}), snapshots=3))
    assert list(check(run(shots=shots_of(lambda t: still()), rate=lambda t: 1e-8), smallest=1e-9))


def test_snapshots_of_before_parameters_came_are_read_by_name():
    earlier = Evidence(layers(NAMES[:1], SHAPES[:1]))
    train(earlier, [1.0] * 20, shots={t: {"weight_norm": 2.0, "update_norm": 0.0, "grad_norm": 1.0} for t in (0, 10)})
    later = Evidence(layers())
    later.take_over(earlier)
    later.add(20, [1.0] * 4, loss=1.0, learning_rate=0.1)
    shoot(later, 20, **MOVED | {"update_norm": [0.0, 0.1, 0.1, 0.1]})
    (finding,) = RULE(later)
    assert (finding.parameters, finding.value) == (NAMES[:1], 3.0)
