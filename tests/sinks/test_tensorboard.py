"""What is written is read back from the event file, every point of it."""

import math
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard import data_compat
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.util import tensor_util
from torch.utils.tensorboard import SummaryWriter

from lightning_weightwatch.sinks import Histogram
from lightning_weightwatch.sinks.tensorboard import TensorBoardSink, _proto, is_summary_writer
from tests.helpers.events import read


@pytest.fixture
def written(tmp_path):
    """Return a function that lets a sink write and reads the event file back."""
    writers = []

    def write(*acts):
        writers.append(SummaryWriter(str(tmp_path)))
        sink = TensorBoardSink(writers[-1])
        for act in acts:
            act(sink)
        sink.flush()
        return read(tmp_path)

    yield write
    for writer in writers:
        writer.close()


def test_scalars_come_back_with_their_steps(written):
    numbers = {"health/a": 1.5, "health.b/name with spaces": -2e-7, "c": np.float32(3)}
    events = written(
        lambda sink: sink.scalars(numbers, 3, detail=False),
        lambda sink: sink.scalars({"c": 4.0}, 2**33, detail=True),
    )
    assert events.tags("scalars") == set(numbers)
    assert events.scalars("c") == {3: 3.0, 2**33: 4.0}
    assert events.scalars("health.b/name with spaces") == {3: pytest.approx(-2e-7)}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300], ids=str)
def test_a_scalar_that_is_not_finite_is_shown_as_such_and_hides_no_other(written, value):
    events = written(lambda sink: sink.scalars({"bad": value, "good": 1.0}, 0, detail=False))
    shown = math.inf if value == 1e300 else value  # event files hold float32
    assert events.scalars("bad") == {0: pytest.approx(shown, nan_ok=True)}
    assert events.scalars("good") == {0: 1.0}


def histogram_of(written, counts, edges):
    h = Histogram("weights", np.array(edges, dtype=float), np.array(counts, dtype=float))
    return written(lambda sink: sink.histograms([h], 5)).histograms("weights")[5]


def test_a_histogram_comes_back_with_its_counts_edges_and_sums(written):
    found = histogram_of(written, [1, 0, 3], [-1, 0, 1, 2])
    assert (list(found.bucket), list(found.bucket_limit)) == ([1, 0, 3], [0, 1, 2])
    assert (found.min, found.max, found.num) == (-1, 2, 4)
    assert (found.sum, found.sum_squares) == (-0.5 + 3 * 1.5, 0.25 + 3 * 2.25)


def test_empty_ends_of_a_histogram_are_trimmed(written):
    found = histogram_of(written, [0, 0, 2, 0, 5, 0], [0, 1, 2, 3, 4, 5, 6])
    assert (list(found.bucket), list(found.bucket_limit)) == ([2, 0, 5], [3, 4, 5])
    assert (found.min, found.max, found.num) == (2, 5, 7)


def test_a_histogram_without_elements_is_left_out_and_its_neighbours_are_not(written):
    edges = np.array([0.0, 1.0])
    made = [Histogram("none", edges, np.array([0.0])), Histogram("one", edges, np.array([1.0]))]
    assert written(lambda sink: sink.histograms(made, 0)).tags("histograms") == {"one"}


def test_tensorboards_own_conversion_keeps_every_count_and_edge():
    """Its server turns what is on disk into triples of left edge, right edge and count before it draws anything."""
    edges, counts = np.linspace(-2, 2, 9), np.array([0, 3, 0, 0, 7, 1, 0, 0], dtype=float)
    value = Summary.Value(tag="weights", histo=_proto(Histogram("weights", edges, counts)))
    triples = tensor_util.make_ndarray(data_compat.migrate_value(value).tensor)
    np.testing.assert_array_equal(triples[:, 0], edges[1:6])
    np.testing.assert_array_equal(triples[:, 1], edges[2:7])
    np.testing.assert_array_equal(triples[:, 2], counts[1:6])


def png(width=3, height=2, *, alpha=True):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 6 if alpha else 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes((4 if alpha else 3) * width)) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("alpha", [False, True])
def test_a_picture_comes_back_byte_for_byte_with_its_size(written, tmp_path, alpha):
    drawn = png(alpha=alpha)
    events = written(lambda sink: sink.image("health/0 report", drawn, 7))
    assert events.images("health/0 report") == {7: drawn}
    (picture,) = events.runs[0].Images("health/0 report")
    assert (picture.width, picture.height) == (3, 2)
    (file,) = tmp_path.glob("events*")
    (value,) = [v for event in LegacyEventFileLoader(str(file)).Load() for v in event.summary.value]
    assert value.image.colorspace == (4 if alpha else 3)


def test_text_comes_back_as_it_was_and_is_known_as_text(written):
    page = "| a | ü |\n| --- | --- |\n| 1 | *2* |"
    events = written(lambda sink: sink.text("findings", page, 1))
    assert events.text("findings") == {1: page}
    metadata = events.runs[0].SummaryMetadata("findings/text_summary")
    assert metadata.plugin_data.plugin_name == "text"


def test_nothing_to_write_writes_nothing(written):
    events = written(lambda sink: sink.scalars({}, 0, detail=False), lambda sink: sink.histograms([], 0))
    assert events.all_tags() == set()


def test_points_of_many_steps_are_all_kept(written):
    events = written(*[lambda sink, i=i: sink.scalars({"a": float(i)}, i, detail=False) for i in range(1500)])
    assert events.scalars("a") == {i: float(i) for i in range(1500)}


def test_a_summary_writer_is_told_from_its_look_alikes(tmp_path):
    class Mine(SummaryWriter):
        pass

    with SummaryWriter(str(tmp_path)) as writer, Mine(str(tmp_path)) as mine:
        assert is_summary_writer(writer)
        assert is_summary_writer(mine)
    dummy = type("SummaryWriter", (), {"__getattr__": lambda self, name: lambda *a: None})()
    assert not any(is_summary_writer(other) for other in (dummy, None, object(), SimpleNamespace(add_scalar=print)))
