"""What the reports have in common: templates that escape everything, numbers for readers, bytes inside a page."""

from __future__ import annotations

import base64
from typing import Any

import jinja2


def render(template: str, **context: Any) -> str:
    """The page that a file of ``agents/templates`` makes of the context; whatever is put in is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("agents", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    return environment.get_template(template).render(**context)


def number(value: float | None) -> str:
    """Three digits; whole numbers from a thousand on; words for None."""
    if value is None:
        return "not measured"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def base64_text(content: bytes) -> str:
    """What follows ``base64,`` in a data URL."""
    return base64.b64encode(content).decode()
