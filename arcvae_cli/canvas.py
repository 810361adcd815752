"""The canvas of a corpus or a model of grids: its size, its classes and what they mean."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Canvas:
    """`height` x `width` cells of `classes` classes; the defaults are those of ARC grids up to 16x16.

    `background`: the class that means empty, None where no class does. `outside`: the class of cells outside of a grid
    that is smaller than the canvas, counted in `classes`; None where they have the class of the background. `arc`:
    whether the classes are ARC's colours. `tiles`: the characters of the classes of text maps.
    """

    height: int = 16
    width: int = 16
    classes: int = 10
    background: int | None = 0
    outside: int | None = None
    arc: bool = True
    tiles: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def cells(self) -> int:
        return self.height * self.width

    @property
    def fill(self) -> int:
        """The class of cells outside of a grid that is smaller than the canvas."""
        return self.outside if self.outside is not None else self.background or 0

    def text(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def of(cls, text: str) -> "Canvas":
        return cls(**json.loads(text))


ARC = Canvas()
