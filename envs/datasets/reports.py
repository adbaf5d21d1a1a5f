"""Radiology reports: the part that describes the image, as a caption."""

from __future__ import annotations

import re

SECTIONS = ("findings", "impression")

_FINDINGS = frozenset({"FINDING", "FINDINGS"})
_IMPRESSION = frozenset({"IMPRESSION", "IMPRESSIONS", "CONCLUSION", "CONCLUSIONS"})
# What ends a section. Any other heading in capitals (LUNGS:, AP CHEST, 3:15 A.M.:) is part of what is described.
_OTHER_WORDS = (
    "ADDENDUM ATTESTATION CLINICAL COMPARISON COMPARISONS EXAM EXAMINATION EXAMINATIONS HISTORY INDICATION INDICATIONS "
    "NOTIFICATION PROCEDURE READ REASON RECOMMENDATION RECOMMENDATIONS REPORT STUDY TECHNIQUE"
)
_OTHERS = frozenset(_OTHER_WORDS.split())
_FILLERS = frozenset({"AND", "FINAL", "OR", "S", "WET"})
_LONGEST_HEADING = 60
_MARK = re.compile(r"_{3,}")


def report_sections(report: str) -> dict[str, str]:
    """The findings and the impression of a report, white space collapsed; those that it does not have are missing.

    A heading begins a line and ends with a colon, in capitals whatever its words (``FINDINGS:``, ``PROVISIONAL
    FINDINGS:``), in small letters only if it has no other words than headings have (``Findings:``). ``FINDINGS`` alone
    on a line needs no colon. ``FINDINGS AND IMPRESSION:`` gives both. Of a section that occurs twice, as under a wet
    read and again under the final report, the last that says something counts.
    """
    found: dict[str, str] = {}
    names: tuple[str, ...] = ()
    lines: list[str] = []

    def close() -> None:
        if text := " ".join(" ".join(lines).split()):
            found.update(dict.fromkeys(names, text))

    for line in report.splitlines():
        heading = _heading(line)
        if heading is None:
            lines.append(line)
            continue
        close()
        names, rest = heading
        lines = [rest]
    close()
    return found


def report_caption(report: str, section: str, mark: str) -> tuple[str, int]:
    """The caption that a report gives, and how many ``___`` marks of de-identification were in it.

    Args:
        report: The whole text.
        section: ``findings``, ``impression``, or ``both`` for what there is of the two.
        mark: What each mark becomes. Removed by default, since a mark that thousands of captions share is what a model
            memorizes first (arXiv 2502.07516).

    Returns:
        An empty caption if the report has no such section.
    """
    sections = report_sections(report)
    wanted = SECTIONS if section == "both" else (section,)
    text = " ".join(dict.fromkeys(sections[name] for name in wanted if name in sections))
    text, marks = _MARK.subn(lambda _: mark, text)
    if marks and not mark:
        text = re.sub(r"\s+([.,;:)])", r"\1", " ".join(text.split()))
    return text.strip(), marks


def _heading(line: str) -> tuple[tuple[str, ...], str] | None:
    """Sections that a line begins (none for a heading of something else) and its text; None if it is no heading."""
    name, colon, rest = line.strip().partition(":")
    words = set(re.findall(r"[A-Z]+", name.upper()))
    begun = tuple(section for section, known in zip(SECTIONS, (_FINDINGS, _IMPRESSION), strict=True) if words & known)
    if not begun and not words & _OTHERS:
        return None
    only_headings = words <= _FINDINGS | _IMPRESSION | _OTHERS | _FILLERS
    if colon:
        is_heading = len(name) <= _LONGEST_HEADING and (name.isupper() or only_headings)
    else:
        is_heading = name.isupper() and only_headings
    return (begun, rest) if is_heading else None
