"""The base of all sections of a run file."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
