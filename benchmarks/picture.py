"""The tables of a device as one picture: how many times as fast as each peer is jaxvae?

    python -m benchmarks.picture TABLES.json [LIMITS.json]

TABLES is what the workloads wrote with --out, LIMITS what `benchmarks.limits --tables TABLES --json LIMITS` did. The
picture comes to lie beside TABLES.
"""

import argparse
import json
from pathlib import Path

from jaxvae.figures._page import COLORS, INK, new_figure, save, tidy

ROW, HEAD = 0.19, 0.34  # inches of a bar, and of a table's title


def draw(tables_file, limits_file=None):
    """Draw and return the picture's path."""
    tables = json.loads(Path(tables_file).read_text())
    shares = json.loads(Path(limits_file).read_text())["results"]["fractions"] if limits_file else {}
    rows = {
        title: [(name, row["ratio"]) for name, row in table["rows"].items() if name != table["ours"]]
        for title, table in tables.items()
    }
    rows = {title: ratios for title, ratios in rows.items() if ratios}
    height = sum(HEAD + ROW * len(ratios) for ratios in rows.values())
    figure = new_figure(8.2, height + 0.9, layout="constrained")
    axes = figure.add_subplot()
    y, ticks = 0.0, []
    for title, ratios in rows.items():
        table = tables[title]
        speed = f"{table['rows'][table['ours']]['median']:,.0f} a second"
        if title in shares:
            speed += f", {shares[title][table['ours']]:.0%} of the matrix product peak"
        head = {"transform": axes.get_yaxis_transform(), "color": INK, "va": "center"}
        head["bbox"] = {"facecolor": "white", "linewidth": 0, "pad": 1}
        axes.text(0.012, y + HEAD / 3, title, fontsize=9, weight="bold", **head)
        axes.text(0.99, y + HEAD / 3, speed, fontsize=8, ha="right", **head)
        y += HEAD
        for name, ratio in ratios:
            color = COLORS[0] if ratio >= 1 else COLORS[1]
            axes.barh(y, ratio - 1, left=1, height=0.75 * ROW, color=color)
            ahead = ratio >= 1
            axes.annotate(
                f"{ratio:.2f}", (ratio, y), (3 if ahead else -3, 0), textcoords="offset points",
                ha="left" if ahead else "right", va="center", fontsize=7.5, color=INK,
            )  # fmt: skip
            ticks.append((y, name))
            y += ROW
    everyone = [ratio for ratios in rows.values() for _, ratio in ratios]
    axes.set_xscale("log")
    axes.set(xlim=(min(0.7, 0.8 * min(everyone)), 1.3 * max(everyone)), ylim=(y, 0))
    axes.set_yticks(*zip(*ticks, strict=True))
    marks = [
        mark for mark in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if axes.get_xlim()[0] <= mark <= axes.get_xlim()[1]
    ]
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.minorticks_off()
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_xlabel("jaxvae's examples per second over the other's")
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    tidy(axes)
    axes.tick_params(axis="y", length=0)
    first = next(iter(tables.values()))
    machine = (
        f"{first['device']}, {first['processor']}, {first['cores']} cores"
        if first["device"] == "cpu"
        else first["device"]
    )
    rounds = min(len(table["rounds"]) for table in tables.values())
    figure.suptitle(f"How many times as fast: {machine}, medians of {rounds} rounds", fontsize=10.5, color=INK)
    return save(figure, Path(tables_file).with_suffix(".png"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path)
    parser.add_argument("limits", type=Path, nargs="?")
    args = parser.parse_args()
    print(draw(args.tables, args.limits))


if __name__ == "__main__":
    main()
