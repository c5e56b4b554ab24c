"""Metrics as Prometheus reads them (text exposition format 0.0.4). Pure, and a page long: the usual library costs a
quarter of a second at every start of a daemon. `promtool check metrics` says whether it is right.

    # HELP fsd_chunks Chunks stored here.
    # TYPE fsd_chunks gauge
    fsd_chunks 17
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fsd.core.histogram import BOUNDS_S, Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

Labels = Mapping[str, str]
NO_LABELS: Labels = {}


@dataclass(slots=True)
class Family:
    """All series of one name. Counters end in `_total`; names carry their unit: seconds, bytes."""

    name: str
    kind: str
    help: str
    lines: list[str] = field(default_factory=list[str])

    def add(self, value: float, labels: Labels = NO_LABELS) -> "Family":
        self.lines.append(f"{self.name}{_labels(labels)} {_number(value)}")
        return self

    def observe(self, histogram: Histogram, labels: Labels = NO_LABELS) -> "Family":
        below = 0
        for bound, count in zip(BOUNDS_S, histogram.buckets, strict=False):
            below += count
            self.lines.append(f"{self.name}_bucket{_labels({**labels, 'le': _number(bound)})} {below}")
        total = below + histogram.buckets[-1]
        self.lines.append(f"{self.name}_bucket{_labels({**labels, 'le': '+Inf'})} {total}")
        self.lines.append(f"{self.name}_sum{_labels(labels)} {_number(histogram.sum_s)}")
        self.lines.append(f"{self.name}_count{_labels(labels)} {total}")
        return self


def gauge(name: str, help: str, value: float) -> Family:
    return Family(name, GAUGE, help).add(value)


def counter(name: str, help: str, value: float) -> Family:
    return Family(name, COUNTER, help).add(value)


def render(families: Iterable[Family]) -> bytes:
    return "".join(_render(families)).encode()


def _render(families: Iterable[Family]) -> Iterator[str]:
    for family in families:
        yield f"# HELP {family.name} {_escaped(family.help)}\n# TYPE {family.name} {family.kind}\n"
        for line in family.lines:
            yield line + "\n"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_quoted(value)}"' for name, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', '\\"')


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))
