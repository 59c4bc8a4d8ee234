"""A document as one HTML file that needs nothing else: script, styles and data are in it.

The data and the plotting library are compressed; the page unpacks them.
"""

import base64
import functools
import gzip
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import vl_convert

# Where a column repeats itself as often, its distinct values are listed once.
_REPEATS = 3


def render(document: Mapping[str, Any]) -> str:
    """The file's text.

    Args:
      document: See `document.make_document`.
    """
    assets = files("rpa_tune.report.page")
    parts = {
        "title": html.escape(str(document["title"])),
        "style": assets.joinpath("page.css").read_text(),
        "licence": assets.joinpath("LICENSE-vega.txt").read_text(),
        "library": _zipped(_library()),
        "data": _zipped(json.dumps(document, separators=(",", ":"), allow_nan=False)),
        "script": assets.joinpath("page.js").read_text(),
    }
    page = assets.joinpath("page.html").read_text()
    for name, text in parts.items():
        page = page.replace("{{" + name + "}}", text, 1)
    return page


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    newest = vl_convert.get_vegalite_versions()[-1]
    bundle: Any = vl_convert.javascript_bundle  # its stub asks for a snippet; without one it is all
    return str(bundle(None, newest))


def _zipped(text: str) -> str:
    # Without a time in its head, so that equal reports are equal files.
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def read_document(page: str) -> dict[str, Any]:
    """The document in a page that `render` made.

    Raises:
      ValueError: There is none.
    """
    _, found, rest = page.partition('id="data">')
    if not found:
        raise ValueError("not a report: it has no data")
    packed = rest.partition("</script>")[0]
    document: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(packed)))
    return document


def pack(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows as columns, with the values of those that repeat themselves listed once.

    Args:
      rows: All have the same names, with plain JSON values.
    """
    columns: dict[str, Any] = {}
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows]
        distinct = {_typed(value): None for value in values}
        if len(distinct) * _REPEATS <= len(values):
            places = {key: place for place, key in enumerate(distinct)}
            columns[name] = {
                "of": [key[1] for key in distinct],
                "at": [places[_typed(v)] for v in values],
            }
        else:
            columns[name] = {"of": values}
    return {"length": len(rows), "columns": columns}


def _typed(value: Any) -> tuple[type, Any]:
    """Tells 1 from True and from 1.0, which are equal."""
    return type(value), value


def unpack(packed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The inverse of `pack`."""
    columns = {
        name: [column["of"][at] for at in column["at"]] if "at" in column else column["of"]
        for name, column in packed["columns"].items()
    }
    return [{name: values[i] for name, values in columns.items()} for i in range(packed["length"])]
