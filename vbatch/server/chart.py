"""A small chart of the pace over time, as SVG that needs neither script nor style of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vbatch.server.samples import Point
from vbatch.text import duration, rate

WIDTH, HEIGHT = 640, 120  # in units of the view box


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What the template draws: two paths, the top of the scale, where it begins, and the same in words."""

    line: str
    area: str
    top: str
    begins: str
    words: str


def chart(points: Sequence[Point]) -> Chart | None:
    """Return the chart of requests per second; None where there is nothing to see."""
    if len(points) < 2 or not any(point.requests for point in points):
        return None
    oldest, newest = points[0].ago, points[-1].ago
    span = max(oldest - newest, 1.0)
    most = _scale(max(point.requests for point in points))
    places = [(WIDTH * (oldest - point.ago) / span, HEIGHT * (1 - point.requests / most)) for point in points]
    line = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    best = max(point.requests for point in points)
    words = (
        f"{rate(points[-1].requests)} requests/s now, {rate(best)} at most, "
        f"{rate(sum(point.requests for point in points) / len(points))} on average "
        f"in the last {duration(oldest)}"
    )
    return Chart(
        line=line,
        area=f"{line} L{WIDTH} {HEIGHT} L0 {HEIGHT} Z",
        top=rate(most),
        begins=f"{duration(oldest)} ago",
        words=words,
    )


def _scale(most: float) -> float:
    """Return the next round number."""
    step = 10.0 ** (len(str(int(most))) - 1) if most >= 1 else 0.1
    while step * 10 < most:
        step *= 10
    return next((factor * step for factor in (1, 2, 3, 4, 5, 6, 8, 10) if factor * step >= most), 10 * step)
