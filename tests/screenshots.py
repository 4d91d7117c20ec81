"""Looks at each page of the built site in a browser, as wide as a desk and as a phone (`make screenshots`).

Chromium (Debian's `chromium`) loads every page into a frame of that width. A page that is wider than its
frame, or a table that was not rendered, is printed with its address, and the status is 1. With `--pictures`,
pictures of the pages are written to build/screenshots.
"""

from __future__ import annotations

import functools
import html
import http.server
import json
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).parents[1]
SITE = ROOT / "build" / "site"
PICTURES = ROOT / "build" / "screenshots"
WIDTHS = (1280, 390)
HEIGHT = 900
SLACK = 1
"""Pixels that rounding may add."""
CHROMIUM = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
PROBE = "probe.html"
SCRIPT = """<!doctype html><meta charset="utf-8"><pre id="found">unfinished</pre><script>
const jobs = JOBS, found = [];
async function look([page, width]) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${width}px;height:HEIGHTpx;border:0`;
  frame.src = page;
  document.body.append(frame);
  await new Promise(done => frame.onload = done);
  await new Promise(done => setTimeout(done, 150));
  const inner = frame.contentDocument;
  const raw = [...inner.querySelectorAll("article p")].filter(p => /^\\|.*\\|/.test(p.textContent.trim()));
  found.push({page, width, needs: inner.documentElement.scrollWidth, raw: raw.length});
  frame.remove();
}
(async () => {
  for (const job of jobs) await look(job);
  document.getElementById("found").textContent = JSON.stringify(found);
})();
</script>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def pages() -> list[str]:
    """The addresses of all pages, from the root of the site."""
    found = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
    return [page for page in found if page not in {PROBE, "404.html"}]


def browse(*options: str) -> str:
    """What Chromium prints."""
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [*CHROMIUM, f"--user-data-dir={profile}", *options],
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
        )
    return done.stdout


def measure(address: str) -> list[dict[str, object]]:
    """What the probe has found of each page at each width."""
    jobs = [[f"/{quote(page)}", width] for page in pages() for width in WIDTHS]
    text = SCRIPT.replace("JOBS", json.dumps(jobs)).replace("HEIGHT", str(HEIGHT))
    (SITE / PROBE).write_text(text, encoding="utf-8")
    try:
        shown = browse("--virtual-time-budget=200000", "--dump-dom", f"{address}/{PROBE}")
    finally:
        (SITE / PROBE).unlink()
    content = re.search(r'<pre id="found">(.*?)</pre>', shown, re.DOTALL)
    if content is None or content[1] == "unfinished":
        sys.exit("The browser did not look at all pages.")
    return json.loads(html.unescape(content[1]))


def draw(address: str) -> None:
    """Write a picture of each page at each width."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for page in pages():
        for width in WIDTHS:
            name = f"{page.removesuffix('.html').replace('/', '_')}-{width}.png"
            print(name, file=sys.stderr)
            browse(
                f"--screenshot={PICTURES / name}",
                f"--window-size={width},{2 * HEIGHT}",
                f"{address}/{quote(page)}",
            )


def main() -> int:
    """Serve the site, look at it, and report."""
    handler = functools.partial(Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        found = measure(address)
        if "--pictures" in sys.argv:
            draw(address)
        server.shutdown()
    wrong = [one for one in found if one["needs"] > one["width"] + SLACK or one["raw"]]
    for one in wrong:
        print(f"{one['page']} at {one['width']}: needs {one['needs']} pixels, {one['raw']} tables as text")
    print(f"{len(found)} views of {len(pages())} pages, {len(wrong)} of them broken")
    return 1 if wrong or not found else 0


if __name__ == "__main__":
    sys.exit(main())
