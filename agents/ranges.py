"""Ranges that several settings share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, FiniteFloat

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[FiniteFloat, Field(gt=0)]
Weight = Annotated[FiniteFloat, Field(ge=0)]
