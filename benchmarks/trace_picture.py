"""Draws a stretch of a trace file as SVG: the picture in docs/trace.md.

rpa-tune explain --chip v6e --family decode ... --trace trace.json
python benchmarks/trace_picture.py trace.json docs/trace.svg --start 40 --length 12
"""

import argparse
import json
from html import escape
from pathlib import Path
from typing import Any

_WIDTH, _LABEL, _LANE, _GAP = 1200, 170, 26, 6
_COLOURS = {
    "vector issue": "#4c78a8",
    "scalar issue": "#9ecae9",
    "waits": "#e45756",
    "copies HBM to VMEM": "#54a24b",
    "copies VMEM to HBM": "#88d27a",
    "copies to SMEM": "#bab0ac",
}


def draw(trace: dict[str, Any], start_us: float, length_us: float) -> str:
    """The slices between two times, one row a lane."""
    lanes = {
        event["tid"]: event["args"]["name"]
        for event in trace["traceEvents"]
        if event["name"] == "thread_name"
    }
    row_of = {lane: row for row, lane in enumerate(sorted(lanes))}
    scale = (_WIDTH - _LABEL) / length_us
    height = len(lanes) * (_LANE + _GAP) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
    ]
    for lane, row in row_of.items():
        y = row * (_LANE + _GAP) + _GAP
        parts.append(f'<text x="4" y="{y + 17}">{escape(lanes[lane])}</text>')
    for event in trace["traceEvents"]:
        if event["ph"] != "X" or event["tid"] not in row_of:
            continue
        begin = max(event["ts"], start_us)
        end = min(event["ts"] + event["dur"], start_us + length_us)
        if end <= begin:
            continue
        x, width = _LABEL + (begin - start_us) * scale, max(0.4, (end - begin) * scale)
        y = row_of[event["tid"]] * (_LANE + _GAP) + _GAP
        colour = _COLOURS.get(lanes[event["tid"]], "#f2a541")
        parts.append(
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_LANE}" fill="{colour}"/>'
        )
        if width > 7 * len(event["name"]):
            parts.append(
                f'<text x="{x + 3:.1f}" y="{y + 17}" fill="white">{escape(event["name"])}</text>'
            )
    for tick in range(int(length_us) + 1):
        x = _LABEL + tick * scale
        parts.append(
            f'<text x="{x:.1f}" y="{height - 8}" fill="#555">{start_us + tick:g} us</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Reads a trace, writes a picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--start", type=float, default=0.0, help="microseconds")
    parser.add_argument("--length", type=float, default=10.0, help="microseconds")
    args = parser.parse_args()
    trace = json.loads(args.trace.read_text())
    args.output.write_text(draw(trace, args.start, args.length))


if __name__ == "__main__":
    main()
