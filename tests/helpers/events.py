"""Reads event files back, every point of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EVERYTHING = {"scalars": 0, "histograms": 0, "images": 0, "tensors": 0}


@dataclass
class Events:
    """What stands in the event files below a folder."""

    runs: list[EventAccumulator] = field(default_factory=list)

    def _each(self, kind: str, tag: str) -> Iterator[object]:
        for run in self.runs:
            if tag in run.Tags()[kind]:
                yield from {
                    "scalars": run.Scalars,
                    "histograms": run.Histograms,
                    "images": run.Images,
                    "tensors": run.Tensors,
                }[kind](tag)

    def tags(self, kind: str) -> set[str]:
        """Return the tags of one kind, as they were given."""
        return {tag.removesuffix("/text_summary") for run in self.runs for tag in run.Tags()[kind]}

    def all_tags(self) -> set[str]:
        """Return all tags, as they were given."""
        return set().union(*(self.tags(kind) for kind in EVERYTHING))

    def scalars(self, tag: str) -> dict[int, float]:
        """Return a scalar by step."""
        return {event.step: event.value for event in self._each("scalars", tag)}

    def histograms(self, tag: str) -> dict[int, object]:
        """Return a histogram by step."""
        return {event.step: event.histogram_value for event in self._each("histograms", tag)}

    def images(self, tag: str) -> dict[int, bytes]:
        """Return an encoded picture by step."""
        return {event.step: event.encoded_image_string for event in self._each("images", tag)}

    def text(self, tag: str) -> dict[int, str]:
        """Return a page of text by step."""
        found = self._each("tensors", f"{tag}/text_summary")
        return {event.step: event.tensor_proto.string_val[0].decode() for event in found}


def read(folder: Path) -> Events:
    """Read every event file below ``folder``."""
    events = Events()
    for place in sorted({path.parent for path in Path(folder).rglob("events.out.tfevents.*")}):
        run = EventAccumulator(str(place), size_guidance=EVERYTHING)
        run.Reload()
        events.runs.append(run)
    return events
