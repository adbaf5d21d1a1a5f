"""``report.html`` and the figures of a run: one self-contained file, verdict first, no private image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

from agents.pages import base64_text, render
from agents.session import Session

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_CURVES = {
    "transfer": ("transfer", "crimson"),
    "dyna_ppo": ("from scratch", "tab:blue"),
    "copy_mask": ("copied mask", "tab:orange"),
    "tpe": ("TPE", "tab:green"),
    "random": ("random", "0.5"),
}
"""Label and colour of the usual ones; others have their name, and a colour of the cycle."""


def write_report(folder: Path, summary: dict[str, Any], session: Session) -> Path:
    """Writes ``figures/search.png``, of a transfer ``figures/transfer.png``, and ``report.html``.

    Args:
        folder: Of the run.
        summary: What goes into ``result.json``.
        session: After the search.
    """
    (folder / "figures").mkdir(exist_ok=True)
    figure = folder / "figures" / "search.png"
    _draw_search(figure, summary, session)
    curves = None
    if "transfer" in summary:
        drawn = folder / "figures" / "transfer.png"
        _draw_transfer(drawn, summary)
        curves = base64_text(drawn.read_bytes())
    page = render(
        "train.html", run=summary, rows=_rows(summary), figure=base64_text(figure.read_bytes()), curves=curves
    )
    report = folder / "report.html"
    report.write_text(page, encoding="utf-8")
    return report


def _rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a metric: the choice beside both anchors."""
    anchors = summary["anchors"]
    return [
        {
            "name": name,
            "selected": measured,
            "base": anchors["base"]["metrics"][name],
            "full": anchors["full"]["metrics"][name],
        }
        for name, measured in summary["metrics"].items()
    ]


def _draw_transfer(path: Path, summary: dict[str, Any]) -> None:
    """The best utility so far of the transfer and of its rivals, at equal distinct evaluations."""
    transfer = summary["transfer"]
    longest = max(curve[-1][0] for curve in transfer["curves"].values() if curve)
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for name, curve in transfer["curves"].items():
        if not curve:
            continue
        counts, utilities = zip(*curve, strict=True)
        own, (label, colour) = name == "transfer", _CURVES.get(name, (name, None))
        # A searcher that has nothing more to ask keeps what it has.
        axes.step(
            [*counts, longest],
            [*utilities, utilities[-1]],
            where="post",
            label=label,
            linewidth=2.2 if own else 1.3,
            color=colour,
            zorder=3 if own else 2,
        )
    axes.set(
        xlabel="distinct masks measured on the target",
        ylabel=f"best utility so far at preference {summary['preference']:g}",
    )
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_search(path: Path, summary: dict[str, Any], session: Session) -> None:
    """Every measured mask on both axes, and how the best utility grew."""
    scored = session.scored()
    quality, privacy = zip(*(each.axes for each in scored), strict=True)
    utility = [each.utility for each in scored]
    shares = [each.evaluation.trainable_share for each in scored]
    figure, (plane, curve) = plt.subplots(1, 2, figsize=(10, 4.2))
    points = plane.scatter(quality, privacy, c=shares, cmap="viridis", vmin=0, vmax=1)
    figure.colorbar(points, ax=plane, label="share of the parameters that may learn")
    plane.plot([0, 1], [1, 0], "k.", markersize=4)
    plane.annotate("base", (0, 1), textcoords="offset points", xytext=(4, -10), fontsize=8)
    plane.annotate("full", (1, 0), textcoords="offset points", xytext=(-22, 4), fontsize=8)
    chosen = summary["selected"]["search"]["axes"]
    plane.scatter(
        [chosen["quality"]], [chosen["privacy"]], s=160, facecolors="none", edgecolors="crimson", linewidths=2
    )
    plane.set(xlabel="quality (0 base, 1 full fine-tuning)", ylabel="privacy (0 full fine-tuning, 1 held-out null)")
    plane.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), title="masks measured (circle: chosen)")
    best = [max(utility[: i + 1]) for i in range(len(utility))]
    curve.plot(range(1, len(utility) + 1), utility, ".", color="0.6", label="each")
    curve.step(range(1, len(best) + 1), best, where="post", color="crimson", label="best so far")
    curve.set(
        xlabel="distinct masks measured", ylabel=f"utility at preference {summary['preference']:g}", title="search"
    )
    curve.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
