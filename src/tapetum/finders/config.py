"""Settings that every finder has."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class FinderConfig(BaseModel):
    """Settings of a finder; each finder's own `Config` adds to them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    verify: bool = Field(
        default=True, description="check sha256 and golden vectors of the model when it is loaded"
    )
