from __future__ import annotations

import pytest

from envs.datasets.reports import report_caption, report_sections

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with new onset ascites  // eval for infection

 COMPARISON:  None.

 FINDINGS: 

 There is no focal consolidation. Compared with ___ the heart
 is larger:  mild cardiomegaly.
 LUNGS: clear.

 IMPRESSION: 

 1. Mild cardiomegaly.
 2. Line placed by Dr. ___ on ___.

 RECOMMENDATION(S):  Follow up in ___ weeks.
"""  # noqa: W291


def test_the_sections_of_a_report_in_mimics_form() -> None:
    assert report_sections(REPORT) == {
        "findings": "There is no focal consolidation. Compared with ___ the heart is larger: mild cardiomegaly. "
        "LUNGS: clear.",
        "impression": "1. Mild cardiomegaly. 2. Line placed by Dr. ___ on ___.",
    }


@pytest.mark.parametrize(
    ("report", "findings", "impression"),
    [
        ("FINDINGS AND IMPRESSION:  Clear.\n", "Clear.", "Clear."),
        ("IMPRESSION/FINDINGS: Clear.", "Clear.", "Clear."),
        ("Findings: one\n two\nImpression: three\n", "one two", "three"),
        ("FINDINGS\nClear.\nCONCLUSION:\nNormal.", "Clear.", "Normal."),
        ("PROVISIONAL FINDINGS IMPRESSION (PFI):  Clear.\nNOTIFICATION: told.", "Clear.", "Clear."),
        ("WET READ: ok\nIMPRESSION: early\nFINAL REPORT\nnothing\nIMPRESSION: late", None, "late"),
        ("IMPRESSION: said\nFINAL ADDENDUM\nmore\nIMPRESSION:\n", None, "said"),
        ("IMPRESSION:  AP chest compared to ___:\n\n Clear.", None, "AP chest compared to ___: Clear."),
        ("FINDINGS: In these findings: clear.\nThe study: good\n", "In these findings: clear. The study: good", None),
        ("No change.", None, None),
        ("", None, None),
    ],
)
def test_variants(report: str, findings: str | None, impression: str | None) -> None:
    sections = report_sections(report)
    assert (sections.get("findings"), sections.get("impression")) == (findings, impression)


def test_marks_are_removed_or_replaced_and_counted() -> None:
    assert report_caption(REPORT, "impression", "") == ("1. Mild cardiomegaly. 2. Line placed by Dr. on.", 2)
    assert report_caption(REPORT, "impression", "X")[0] == "1. Mild cardiomegaly. 2. Line placed by Dr. X on X."
    assert report_caption(REPORT, "impression", "___")[0].endswith("Dr. ___ on ___.")
    assert report_caption(REPORT, "impression", r"\1")[0].endswith(r"Dr. \1 on \1.")
    caption, marks = report_caption(REPORT, "both", "")
    assert caption.startswith("There is no focal")
    assert caption.endswith("Dr. on.")
    assert marks == 3


def test_both_says_a_shared_section_once_and_does_with_one() -> None:
    assert report_caption("FINDINGS AND IMPRESSION: Clear.", "both", "") == ("Clear.", 0)
    assert report_caption("IMPRESSION: Clear.", "both", "") == ("Clear.", 0)
    assert report_caption("IMPRESSION: Clear.", "findings", "") == ("", 0)
