"""The terminal, which names out of models reach as text only: never as control characters."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from graphprune.files import visible


class SafeConsole(Console):
    """A console that shows control characters of texts instead of sending them; its own styles still work."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of what is printed."""
        for segment in super().render(renderable, options):
            yield segment if segment.control is not None else Segment(visible(segment.text), segment.style)
