"""The recipe of a network that says whether a telescope followed the sky."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tapetum.models.card import FrameContract  # noqa: TC001 (pydantic reads it)
from tapetum.simulate.tracking import EXTRAS, TrackingSettings
from tapetum.training.recipe import CalibrationSpec, RecipeBase, SimulatedPool


class SimulatedTiles(SimulatedPool):
    """Simulated star fields, trailed and not."""

    side: int = Field(256, ge=64, le=1024, multiple_of=16, description="of a tile to learn from [pixel]")
    test_side: int = Field(
        256, ge=64, le=2048, multiple_of=16, description="of a tile of validation and test [pixel]"
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description="of `tapetum.simulate.tracking.TrackingSettings`"
    )
    extras: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict, description="instead of those in `tapetum.simulate.tracking.EXTRAS`"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if unknown := sorted(set(self.extras) - set(EXTRAS)):
            raise ValueError(f"extras: {unknown[0]!r} is none of {', '.join(EXTRAS)}")
        try:
            self.simulated(self.side)
        except TypeError as problem:
            raise ValueError(f"settings: {problem}") from None
        return self

    def simulated(self, side: int) -> TrackingSettings:
        """What tiles of this side are drawn from."""
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in self.settings.items()
        }
        given["shape"] = (side, side)
        return TrackingSettings(**given, extras={**EXTRAS, **self.extras})


class TrackingRecipe(RecipeBase):
    """How a network for tracking errors is made."""

    SOURCES = ("simulation",)
    FILES = ("files", "--frames")

    task: Literal["tracking"]
    input: FrameContract
    data: list[SimulatedTiles] = Field(min_length=1, max_length=1)
    calibration: CalibrationSpec = CalibrationSpec()
