"""The page on a phone, a tablet and a desk, with little and with much to show."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from apportion.search.web.report import page
from tests.web.test_page import browser, tab  # noqa: F401  (fixtures)

LONG = "transformer.encoder.layers.11.attention.output.dense.LayerNorm.projection"


def job(algorithms: int, layers: int, span: float) -> dict[str, Any]:
    """Figures as job_figures makes them; fitness differs by `span` about 0.123456789."""
    names = [f"algorithm-{i}" for i in range(algorithms)]
    levels = ["dense", "unstr-0.50", "2:4+w4a4", "filter-0.30"]
    low, points = 0.123456789, list(range(1, 61))
    fall = [low + span * (1 - i / 60) for i in points]
    candidate = [i % len(levels) for i in range(layers)]
    runs = [
        {
            "run": f"{name}-s0-0123456789abcdef",
            "algorithm": name,
            "seed": 0,
            "state": "finished",
            "asked": 60,
            "evaluations": 60,
            "trials": 60,
            "scored": 60,
            "best": low,
            "seconds": 12345.678,
        }
        for name in names
    ]
    row = dict.fromkeys(("median", "q1", "q3", "area", "to_best", "seconds", "thinking"), low)
    league = [
        row
        | {"algorithm": name, "best": low, "wins": 1, "seeds": 1, "evaluations": 60, "scored": 60}
        for name in names
    ]
    shares = [[1 / layers, 0.5 / layers, 0.3 / layers, 0.2 / layers]] * layers
    text = ",".join(map(str, candidate))
    return {
        "summary": {
            "job": "0123456789abcdef",
            "state": "searching",
            "fitness": "kl",
            "budgets": {"flops": 0.25, "latency": "2.5ms"},
            "algorithms": names,
            "asked": 60 * algorithms,
            "evaluations": 60 * algorithms,
            "best": low,
        },
        "runs": runs,
        "space": {
            "layers": [f"{LONG}.{i}" for i in range(layers)],
            "levels": [levels] * layers,
            "errors": [[0.0, 0.1, 0.2, 0.3]] * layers,
            "costs": {"flops": shares},
            "base": {"flops": 0.0},
            "budgets": {"flops": 0.25},
            "uniform": candidate,
            "optimum": candidate,
        },
        "curves": [
            {"algorithm": n, "runs": 1, "evaluations": points, "median": fall}
            | {"low": fall, "high": fall}
            for n in names
        ],
        "league": league,
        "comparison": None,
        "picks": [
            {"run": r["run"], "algorithm": r["algorithm"], "seed": 0, "candidate": candidate}
            for r in runs
        ],
        "trials": [
            {"run": r["run"], "number": i, "fitness": low + span * i / 60, "candidate": text}
            for i, r in enumerate(runs)
        ],
        "files": ["best/" + "long-name-" * 12 + ".safetensors"],
        "written": "2026-01-01",
    }


LAYOUT = """() => {
  const boxes = (found) => [...found].map((one) => [one.textContent, one.getBoundingClientRect()]);
  const cross = (a, b) => a.left < b.right - 1 && b.left < a.right - 1
    && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  const overlaps = [];
  for (const svg of document.querySelectorAll("svg")) {
    const texts = boxes(svg.querySelectorAll("text.tick, text.axis-title"));
    texts.forEach(([a, p], i) => texts.slice(i + 1).forEach(([b, q]) => {
      if (cross(p, q)) overlaps.push(`${a} | ${b}`);
    }));
  }
  return {
    width: document.documentElement.scrollWidth, window: window.innerWidth, overlaps,
    ticks: [...document.querySelectorAll("text.tick")].map((one) => one.textContent),
    small: Math.min(
      ...boxes(document.querySelectorAll("text.tick")).map(([, box]) => box.height)) };
}"""


@pytest.mark.parametrize("width", [390, 800, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("algorithms", "layers", "span"),
    [(1, 4, 1e-6), (1, 4, 0.0), (16, 4, 0.5), (1, 224, 1e-4), (16, 224, 30_000.0)],
)
def test_nothing_is_wider_than_the_window_and_axes_can_be_read(
    width: int,
    scheme: str,
    algorithms: int,
    layers: int,
    span: float,
    tab: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    (tmp_path / "report.html").write_text(page(job(algorithms, layers, span)))
    tab.set_viewport_size({"width": width, "height": 900})
    tab.emulate_media(color_scheme=scheme)
    tab.goto(f"file://{tmp_path}/report.html")
    tab.get_by_role("region", name="Best trials").get_by_role("button", name="show").first.click()
    layout = tab.evaluate(LAYOUT)
    if folder := os.environ.get("APPORTION_SCREENSHOTS"):
        name = f"{width}-{scheme}-{algorithms}-{layers}.png"
        tab.screenshot(path=f"{folder}/{name}", full_page=True)
    assert layout["width"] <= layout["window"]
    assert layout["overlaps"] == []
    assert len(layout["ticks"]) >= 4
    assert max(map(len, layout["ticks"])) <= 7, layout["ticks"]
    assert layout["small"] >= 9  # pixels: else nobody can read them


def test_costs_of_pairs_are_in_a_profiles_totals_and_shares(tab: Any, tmp_path: Path) -> None:  # noqa: F811
    figures = job(algorithms=1, layers=2, span=0.1)
    space = figures["space"] | {
        "costs": {"flops": [[0.1, 0.05, 0, 0], [0, 0, 0, 0]]},
        "base": {"flops": 0.01},
        "pairs": {"flops": [[0, 1, [[0.8, 0.4, 0, 0], [0.4, 0.22, 0, 0], [0] * 4, [0] * 4]]]},
        "uniform": [0, 1],
    }
    (tmp_path / "report.html").write_text(page(figures | {"space": space}))
    tab.goto(f"file://{tmp_path}/report.html")
    tab.get_by_role("button", name="uniform").click()
    cards = tab.locator("section[aria-live] ul.cards li").all_inner_texts()
    assert "0.51" in cards[0]  # 0.01 + 0.1 + 0.4
    rows = tab.get_by_role("region", name="Layers of the profile").locator("tbody tr")
    assert [row.split()[-1] for row in rows.all_inner_texts()] == ["0.3", "0.2"]
