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
    def inner(self) -> int:
        """The number of classes that a grid may have: all but that of what is outside of it."""
        return self.classes - (self.outside is not None)

    @property
    def void(self) -> int | None:
        """The class of what surrounds the content of a canvas: that outside of grids, or the background."""
        return self.background if self.outside is None else self.outside

    @property
    def content(self) -> tuple[int, ...]:
        """The classes that are neither background nor outside of a grid."""
        return tuple(number for number in range(self.classes) if number not in (self.background, self.outside))

    def describe(self) -> str:
        """Size and classes, as `28x28, 2 classes (Bernoulli likelihood)`: two logits a cell are one log odds."""
        kind = "colours" if self.arc and self.outside is None else "classes"
        return f"{self.height}x{self.width}, {self.classes} {kind}" + " (Bernoulli likelihood)" * (self.classes == 2)

    def text(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def of(cls, text: str) -> "Canvas":
        return cls(**json.loads(text))


ARC = Canvas()
