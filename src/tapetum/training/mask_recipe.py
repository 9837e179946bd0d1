"""The recipe of a network that says for every pixel of a frame what contaminates it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tapetum.images.contaminants import NAMES
from tapetum.models.card import FrameContract  # noqa: TC001 - pydantic reads it
from tapetum.simulate.contaminants import SHARES, ContaminantSettings
from tapetum.training.recipe import RecipeBase, RecipePart, SimulatedPool

TILE = 512  # side of an example [pixel]


class FrameData(RecipePart):
    """Real frames that contaminants are put into: those the user names with ``--frames``, and of the package index."""

    source: Literal["frames"]
    share: float = Field(0.4, ge=0, le=1, description="of the examples that are made of a real frame")
    samples: list[str] = Field(default_factory=list, description="samples of the package index")
    tiles: int = Field(64, ge=1, description="tiles taken of one image at most")


class SimulatedFrames(SimulatedPool):
    """Frames that are simulated wholly, and the contaminants of all."""

    settings: dict[str, Any] = Field(
        default_factory=dict, description="of `tapetum.simulate.contaminants.ContaminantSettings`"
    )
    shares: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict, description="instead of those in `tapetum.simulate.contaminants.SHARES`"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if unknown := sorted(set(self.shares) - set(SHARES)):
            raise ValueError(f"shares: {unknown[0]!r} is none of {', '.join(SHARES)}")
        try:
            self.simulated()
        except TypeError as problem:
            raise ValueError(f"settings: {problem}") from None
        return self

    def simulated(self) -> ContaminantSettings:
        """What frames are drawn from."""
        pairs = {name: tuple(value) for name, value in self.settings.items()}
        return ContaminantSettings(**{"shape": (TILE, TILE), **pairs}, shares={**SHARES, **self.shares})


MaskData = Annotated[FrameData | SimulatedFrames, Field(discriminator="source")]


class Crops(RecipePart):
    """What of a frame is shown in an epoch."""

    side: int = Field(256, ge=32, le=TILE, multiple_of=32, description="[pixel]")
    per_frame: int = Field(2, ge=1)
    checked: int = Field(24, ge=1, description="validation frames whose loss the log gives after every epoch")
    scale: float = Field(0.0, ge=0, description="scatter of the unit of the noise, natural logarithm")
    offset: float = Field(0.0, ge=0, description="scatter of the sky [noise]")


class MaskLoss(RecipePart):
    """Cross-entropy of every class where its truth is known, averaged over pixels, then over classes."""

    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="of a class, 1 where it is not named"
    )
    positive: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="of the pixels in a class against those that are not, 1 where not named",
    )
    dice: float = Field(0.0, ge=0, description="weight of the soft Dice loss beside the cross-entropy")

    @field_validator("weights", "positive")
    @classmethod
    def _known(cls, value: dict[str, float]) -> dict[str, float]:
        if unknown := sorted(set(value) - set(NAMES)):
            raise ValueError(f"{unknown[0]!r} is none of the classes {', '.join(NAMES)}")
        return value


class MaskRecipe(RecipeBase):
    """How a network for contaminant masks is made."""

    SOURCES = ("frames", "simulation")
    FILES = ("frames", "--frames")

    task: Literal["masks"]
    input: FrameContract
    data: list[MaskData] = Field(min_length=1)
    crops: Crops = Crops()
    loss: MaskLoss = MaskLoss()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len({entry.source for entry in self.data}) != len(self.data):
            raise ValueError("data: each source at most once")
        return self

    @property
    def frames(self) -> FrameData | None:
        """The source of real frames, if there is one."""
        return next((entry for entry in self.data if isinstance(entry, FrameData)), None)

    @property
    def simulation(self) -> SimulatedFrames | None:
        """The source of all else; a run needs it."""
        return next((entry for entry in self.data if isinstance(entry, SimulatedFrames)), None)
