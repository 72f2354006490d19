#!/usr/bin/env python3
"""Makes docs/results-halfcheetah.md, docs/results-gantry.md and their curves from the raw files of tools/results/run.py, and
from nothing else.

usage: tools/results/render.py [RAW-FOLDER [DOCS-FOLDER]]
"""

import json
import sys
from pathlib import Path
from xml.sax.saxutils import escape

from plan import GANTRY

ROOT = Path(__file__).resolve().parents[2]
COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf"]


def mean(values):
    return sum(values) / len(values)


def load(folder, gantry):
    """The raw files of the gantry, or of HalfCheetah, by kind, in the order of their names."""
    found = {"pretrain": [], "finetune": []}
    for path in sorted(folder.glob("*.json")):
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict) and value.get("kind") in found and (value["start"] in GANTRY) == gantry:
            found[value["kind"]].append(value)
    return found


def grouped(runs, *keys):
    """Runs by the values of `keys`."""
    groups = {}
    for run in runs:
        groups.setdefault(tuple(run[key] for key in keys), []).append(run)
    return groups


def curve(runs):
    """Mean over the seeds of the mean return, at the steps that all seeds have."""
    by_step = [{point["steps"]: mean(point["returns"]) for point in run["points"]} for run in runs]
    steps = sorted(set.intersection(*(set(seed) for seed in by_step)))
    return [(step, mean([seed[step] for seed in by_step])) for step in steps]


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def svg(title, lines, axis):
    """A chart of named lines of (x, y) points."""
    width, height, left, right, top, bottom = 720, 360, 70, 170, 30, 45
    points = [point for _, line in lines for point in line]
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low, high = min(ys + [0]), max(ys + [1])
    span_x, span_y = max(xs) - min(xs) or 1, (high - low) or 1

    def place(x, y):
        px = left + (x - min(xs)) / span_x * (width - left - right)
        return round(px, 1), round(height - bottom - (y - low) / span_y * (height - top - bottom), 1)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="18" font-size="14">{escape(title)}</text>',
    ]
    for tick in range(5):
        x, y = min(xs) + span_x * tick / 4, low + span_y * tick / 4
        (px, _), (_, py) = place(x, low), place(min(xs), y)
        out.append(f'<line x1="{left}" x2="{width - right}" y1="{py}" y2="{py}" stroke="#ddd"/>')
        out.append(f'<text x="{left - 6}" y="{py + 4}" text-anchor="end">{y:.0f}</text>')
        out.append(f'<text x="{px}" y="{height - bottom + 18}" text-anchor="middle">{x:.0f}</text>')
    out.append(f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle">{escape(axis)}</text>')
    for index, (name, line) in enumerate(lines):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in line))
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = top + 16 * index + 8
        out.append(f'<line x1="{width - right + 10}" x2="{width - right + 30}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>')
        out.append(f'<text x="{width - right + 36}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join([*out, "</svg>", ""])


def finetune_section(start, runs, docs):
    """Table and curves of all methods from one start."""
    rows, lines = [], []
    for (method,), seeds in grouped(runs, "method").items():
        points = curve(seeds)
        first, last = points[0][1], points[-1][1]
        # The dip: lowest return after the start, evaluation or exploration, against the return at the start.
        explored = [value for run in seeds for _, value in run["episodes"]]
        lowest = min(value for _, value in points)
        ends = ", ".join(f"{mean(run['points'][-1]['returns']):.0f}" for run in seeds)
        share = mean([run["points"][-1]["offline_share"] for run in seeds])
        rows.append([
            method, len(seeds), points[-1][0], f"{first:.0f}", f"{lowest - first:+.0f}", f"{last:.0f}",
            f"{last - first:+.0f}", ends, f"{min(explored):.0f}" if explored else "-", f"{100 * share:.0f} %",
        ])  # fmt: skip
        lines.append((method, points))
    name = f"results-{start}.svg"
    (docs / name).write_text(svg(f"HalfCheetah, start: {start}", lines, "online steps"), encoding="utf-8")
    head = ["method", "seeds", "steps", "before", "dip", "after", "gain", "after, by seed", "worst exploration episode", "offline rows at the end"]
    return table(head, rows) + ["", f"![returns by online steps]({name})", ""]


def pretrain_section(runs, docs):
    rows, lines = [], []
    for run in runs:
        settings, points = run["settings"], [(e["updates"], mean(e["returns"])) for e in run["evaluations"]]
        best = max(points, key=lambda point: point[1])
        rows.append([
            run["start"], run["seed"], settings["method"], settings["ensemble_size"], settings["cql_actions"],
            settings["batch_size"], settings.get("initial_temperature", 1.0), settings["behaviour_cloning_updates"], run["updates"], f"{points[-1][1]:.0f}",
            f"{best[1]:.0f} at {best[0]}", f"{run['cpu_ms_per_update']:.0f}",
        ])  # fmt: skip
        lines.append((f"{run['start']}, s{run['seed']}, α {settings.get('initial_temperature', 1.0):g}", points))
    (docs / "results-pretrain.svg").write_text(svg("Pretraining on HalfCheetah data", lines, "updates"), encoding="utf-8")
    head = ["data", "seed", "method", "N", "actions of a kind", "batch", "α at the start", "imitation updates", "updates", "return", "best", "CPU ms per update"]
    return table(head, rows) + ["", "![returns by updates](results-pretrain.svg)", ""]


def page(raw, docs):
    """Writes the page; what people say of the figures stands in RAW/notes.md and is taken over as it is."""
    found = load(raw, gantry=False)
    docs.mkdir(parents=True, exist_ok=True)
    text = [
        "# Results on HalfCheetah",
        "",
        "Made by `tools/results/render.py` from the files in `docs/results` alone; the measuring is done by",
        "`tools/results/run.py` (`--help` has the sizes), in parts that resume. Simulated HalfCheetah, MuJoCo 3.17.0. A",
        "return is the mean over deterministic episodes. The dip is the lowest evaluation against the one before",
        "fine-tuning.",
        "",
    ]
    notes = raw / "notes.md"
    if notes.exists():
        text += [notes.read_text(encoding="utf-8").strip(), ""]
    groups = grouped(found["finetune"], "start")
    if ("published",) in groups:
        text += ["## The published agents, fine-tuned", "", *finetune_section("published", groups.pop(("published",)), docs)]
    if found["pretrain"]:
        text += ["## Own pretraining", "", *pretrain_section(found["pretrain"], docs)]
    for (start,), runs in groups.items():
        text += [f"## Fine-tuned after pretraining on {start}", "", *finetune_section(start, runs, docs)]
    (docs / "results-halfcheetah.md").write_text("\n".join(text), encoding="utf-8")


def percent(value):
    return f"{100 * value:.0f} %"


def exploring(run):
    """Success rates of a run's own episodes, in which actions are sampled: before the first update, the lowest over 500
    steps after it, and over the last 1000 steps."""
    first = int(next(s for s in reversed(run["set"]) if s.startswith("learner.warmup_steps=")).split("=")[1])
    last = run["points"][-1]["steps"]
    rate = lambda low, high: mean([value for step, value in run["episodes"] if low < step <= high] or [0.0])
    return rate(0, first), min(rate(s, s + 500) for s in range(first, last - 499, 100)), rate(last - 1000, last)


def windows(seeds):
    """Success rate in percent by online steps, over the episodes of 500 steps and all seeds."""
    steps = min(run["points"][-1]["steps"] for run in seeds)
    inside = lambda low: [100 * value for run in seeds for step, value in run["episodes"] if low < step <= low + 500]
    return [(low + 500, mean(inside(low))) for low in range(0, steps, 500) if inside(low)]


def success_section(start, runs, docs):
    """Success rates of all methods of one task, and what its minibatches held."""
    rows, lines = [], []
    for (method,), seeds in grouped(runs, "method").items():
        points = curve(seeds)
        ends = [percent(mean(run["points"][-1]["returns"])) for run in seeds]
        explored = [[percent(rate) for rate in exploring(run)] for run in seeds]
        rows.append([method, points[-1][0], percent(points[0][1]), percent(max(value for _, value in points)),
                     ", ".join(ends), *(", ".join(column) for column in zip(*explored))])  # fmt: skip
        lines.append((method, windows(seeds)))
    name = f"results-{start}.svg"
    (docs / name).write_text(svg(f"{start}: successes in percent while exploring", lines, "online steps"), encoding="utf-8")
    head = ["method", "steps", "before", "best", "after, by seed", "exploring before", "at its worst", "at the end"]
    text = table(head, rows) + ["", f"![successes by online steps]({name})", ""]
    shares = [(run, point) for run in runs for point in run["points"] if "by_source" in point]
    if not shares:
        return text
    text += ["Shares of a minibatch by source:", ""]
    rows = [[run["method"], run["seed"], point["steps"], *(percent(point["by_source"][source]) for source in SOURCES)]
            for run, point in shares]  # fmt: skip
    return text + table(["method", "seed", "steps", *SOURCES], rows) + [""]


SOURCES = ["scripted", "random", "online"]


def gantry_page(raw, docs):
    """Writes the gantry's page; what people say of the figures stands in RAW/notes-gantry.md."""
    found = load(raw, gantry=True)
    if not found["pretrain"]:
        return
    text = ["# Results on the gantry", "", "Made by `tools/results/render.py` from the files in `docs/results` alone.", ""]
    notes = raw / "notes-gantry.md"
    if notes.exists():
        text += [notes.read_text(encoding="utf-8").strip(), ""]
    rows = []
    for run in found["pretrain"]:
        points = [(e["updates"], mean(e["returns"])) for e in run["evaluations"]]
        best = max(points, key=lambda point: point[1])
        rows.append([run["start"], run["seed"], run["updates"], f"{percent(best[1])} at {best[0]}", percent(points[-1][1]),
                     f"{run['cpu_ms_per_update']:.0f}"])  # fmt: skip
    head = ["task", "seed", "updates", "best of the evaluations", "at the end", "CPU ms per update"]
    text += ["## Pretraining", "", *table(head, rows), ""]
    for start in GANTRY:
        runs = [run for run in found["finetune"] if run["start"] == start]
        if runs:
            text += [f"## {start}", "", *success_section(start, runs, docs)]
    (docs / "results-gantry.md").write_text("\n".join(text), encoding="utf-8")


def pages(raw, docs):
    """Writes both pages."""
    page(raw, docs)
    gantry_page(raw, docs)


if __name__ == "__main__":
    pages(*(Path(argument) for argument in (sys.argv[1:] + [str(ROOT / "docs/results"), str(ROOT / "docs")][len(sys.argv) - 1 :])))
