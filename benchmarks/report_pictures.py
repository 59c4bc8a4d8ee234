"""Pictures of reports for the documents: parts of a page as a browser draws it.

Needs Playwright and Chromium (`apt-get install chromium`).

```
rpa-tune report .rpa-tune/quickstart.jsonl -o report.html
.venv/bin/python benchmarks/report_pictures.py report.html docs/report-quickstart.png \
    --parts "#study h2" "#why" "#chart-space" "#chart-causes"
```
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

DRAWN_MS = 120_000
# Leaves what is asked for, and what it stands in.
KEEP = """parts => {
  const kept = parts.flatMap((part) => [...document.querySelectorAll(part)].slice(0, 1));
  for (const each of [...document.querySelectorAll("body *")]) {
    if (!kept.some((part) => part.contains(each) || each.contains(part))) each.remove();
  }
}"""


def main() -> None:
    """Draws one picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument(
        "--parts", nargs="+", required=True, help="CSS selectors; the first of each"
    )
    parser.add_argument("--study", default="", help="label of the study to show")
    parser.add_argument("--width", type=int, default=1080)
    parser.add_argument("--dark", action="store_true")
    given = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        context = browser.new_context(
            viewport={"width": given.width, "height": 400},
            color_scheme="dark" if given.dark else "light",
        )
        page = context.new_page()
        study = f"#study={given.study}" if given.study else ""
        page.goto(given.page.resolve().as_uri() + study)
        page.wait_for_selector("body[data-drawn=yes]", timeout=DRAWN_MS)
        page.evaluate(KEEP, given.parts)
        page.screenshot(path=given.picture, full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
