"""What a section of the results measured against a goal: rows of the one table at their top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """`must` and `stretch` are bounds of `measured`: from above, unless `at_least`."""

    name: str
    measured: float
    must: float
    stretch: float
    at_least: bool = False
    unit: str = ""

    def reached(self, bound: float) -> bool:
        return self.measured >= bound if self.at_least else self.measured <= bound


@dataclass(frozen=True)
class Section:
    text: str
    goals: Sequence[Goal] = ()


def table(goals: Sequence[Goal]) -> str:
    lines = [
        "| goal | measured | must | | stretch | |",
        "|---|---:|---:|---|---:|---|",
    ]
    for goal in goals:
        sign = "≥" if goal.at_least else "≤"
        cells = [
            f"{sign} {bound:.3g}{goal.unit} | {'yes' if goal.reached(bound) else '**no**'}"
            for bound in (goal.must, goal.stretch)
        ]
        lines.append(f"| {goal.name} | {goal.measured:.3g}{goal.unit} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)
