"""Rows, the printed table, the document and its plot."""

import html
import json
import statistics

KEYS = ("bench", "unit", "ours", "peer", "peer_value", "ratio", "spread", "bar", "holds")


def number(value):
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def make_row(bench, unit, ours, peer=None, peer_values=None, at_least=None, at_most=None):
    """`ours` and `peer_values` are lists, one value a round, of the same length. The ratio is the
    median of the rounds' ratios; the spread is the smallest and the largest of them."""
    middle = statistics.median
    ratios = [a / b for a, b in zip(ours, peer_values) if b] if peer_values else []
    judged = middle(ours)
    if ratios:
        judged = middle(ratios)
    bar = holds = None
    # A bar on a ratio says nothing when the peer did not run.
    can_judge = bool(ratios) or peer is None
    if at_least is not None:
        bar, holds = f">= {number(at_least)}", judged >= at_least if can_judge else None
    elif at_most is not None:
        bar, holds = f"<= {number(at_most)}", judged <= at_most if can_judge else None
    spread = ratios or ours
    return dict(zip(KEYS, (bench, unit, middle(ours), peer,
                           middle(peer_values) if peer_values else None,
                           judged if ratios else None, [min(spread), max(spread)], bar, holds)))


def write_json(path, rows):
    with open(path, "w") as file:
        json.dump(rows, file, indent=1)
        file.write("\n")


def _cells(row):
    spread = row["spread"]
    return (row["bench"], row["unit"], number(row["ours"]), row["peer"] or "-",
            number(row["peer_value"]), number(row["ratio"]),
            f"{number(spread[0])} .. {number(spread[1])}" if spread else "-", row["bar"] or "-",
            {True: "yes", False: "NO", None: "-"}[row["holds"]])


def print_table(rows):
    table = [KEYS, *map(_cells, rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(KEYS))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def markdown_table(rows):
    lines = ["| " + " | ".join(("work", *KEYS[1:])) + " |", "|" + " --- |" * len(KEYS)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def shortfalls(rows):
    short = [row for row in rows if row["holds"] is False]
    if all(row["bar"] is None for row in rows):
        return ""
    if not short:
        return "Every bar of this run holds.\n"
    return "\n".join(
        f"- **{row['bench']}**: {number(row['ratio'] if row['ratio'] is not None else row['ours'])}"
        f" where {row['bar']} is asked for." for row in short) + "\n"


_BEGIN, _END = "<!-- {}: written by ./run bench --docs -->", "<!-- {}: end -->"


def update_document(path, parts):
    """Replaces what stands between the markers of each named part."""
    with open(path) as file:
        text = file.read()
    for name, content in parts.items():
        begin, end = _BEGIN.format(name), _END.format(name)
        if begin not in text or end not in text:
            raise ValueError(f"{path} has no part named {name}")
        head, rest = text.split(begin, 1)
        text = f"{head}{begin}\n{content}{end}{rest.split(end, 1)[1]}"
    with open(path, "w") as file:
        file.write(text)


def _log_position(ratio, low, high, width):
    import math
    ratio = min(max(ratio, low), high)
    return (math.log(ratio) - math.log(low)) / (math.log(high) - math.log(low)) * width


def svg_plot(rows, title):
    """Bars of the ratio to the peer on a logarithmic scale, with a tick where the bar stands."""
    rows = [row for row in rows if row["ratio"] and row["bar"]]
    low, high, left, width, line = 0.02, 30.0, 330, 520, 22
    height = 70 + line * len(rows)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 90}" '
           f'height="{height}" font-family="sans-serif" font-size="12">',
           '<rect width="100%" height="100%" fill="white"/>',
           f'<text x="10" y="20" font-size="14" font-weight="bold">{html.escape(title)}</text>']
    for tick in (0.02, 0.1, 0.5, 1, 2, 5, 10, 30):
        x = left + _log_position(tick, low, high, width)
        colour = "#444" if tick == 1 else "#ddd"
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="45" y2="{height - 15}" '
                   f'stroke="{colour}"/><text x="{x:.1f}" y="40" text-anchor="middle" '
                   f'fill="#666">{tick:g}x</text>')
    one = left + _log_position(1, low, high, width)
    for i, row in enumerate(rows):
        y = 52 + i * line
        x = left + _log_position(row["ratio"], low, high, width)
        bar = left + _log_position(float(row["bar"].split()[1]), low, high, width)
        spread = [left + _log_position(v, low, high, width) for v in row["spread"] if v > 0]
        colour = "#2a7f62" if row["holds"] else "#c0392b"
        out.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">'
                   f'{html.escape(row["bench"])}</text>')
        out.append(f'<rect x="{min(x, one):.1f}" y="{y + 2}" width="{abs(x - one):.1f}" '
                   f'height="12" fill="{colour}"/>')
        if len(spread) == 2:
            out.append(f'<line x1="{spread[0]:.1f}" x2="{spread[1]:.1f}" y1="{y + 8}" '
                       f'y2="{y + 8}" stroke="black"/>')
        out.append(f'<line x1="{bar:.1f}" x2="{bar:.1f}" y1="{y - 1}" y2="{y + 17}" '
                   'stroke="#e67e22" stroke-width="3"/>')
        out.append(f'<text x="{left + width + 8}" y="{y + 12}">{number(row["ratio"])}x</text>')
    out.append(f'<text x="10" y="{height - 4}" fill="#666">orange: what is asked for; black: '
               'smallest and largest round; green: holds</text></svg>')
    return "\n".join(out) + "\n"
