"""What HTML pages share: colours, tables that sort, pictures within the page.

A page is one file that loads nothing. Without JavaScript its tables are just tables.
"""

import base64
import html
import io
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root {
  color-scheme: light dark;
  --text: #1f2328; --muted: #59636e; --line: #d1d9e0; --page: #ffffff; --soft: #f4f6f8;
  --link: #0a58ca;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #e6e9ec; --muted: #9aa4ae; --line: #3a424b; --page: #15191e;
    --soft: #1f252b; --link: #7db4ff;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 60rem;
  font: 1rem/1.55 system-ui, sans-serif; color: var(--text); background: var(--page);
  overflow-wrap: break-word;
}
a { color: var(--link); }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .7rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; white-space: nowrap; }
thead th {
  border-bottom: 2px solid var(--line); white-space: normal; vertical-align: bottom;
}
tbody tr + tr { border-top: 1px solid var(--line); }
th button {
  padding: 0; border: 0; background: none; color: inherit; font: inherit;
  text-align: inherit; cursor: pointer;
}
th button::after { content: "\\a0\\2195"; color: var(--muted); font-weight: normal; }
th[aria-sort=ascending] button::after { content: "\\a0\\2191"; color: inherit; }
th[aria-sort=descending] button::after { content: "\\a0\\2193"; color: inherit; }
figure { margin: 0 0 1.8rem; break-inside: avoid; }
figure svg {
  display: block; width: 100%; max-width: 52rem; height: auto; margin: 0 auto .5rem;
  fill: currentColor; stroke-linejoin: round; stroke-linecap: butt;
}
figcaption { color: var(--muted); font-size: .9rem; }
figcaption p { margin: 0; }
.reading { color: var(--text); }
pre {
  padding: .8rem; overflow-x: auto; font-size: .8rem; line-height: 1.45;
  background: var(--soft); border: 1px solid var(--line); border-radius: 6px;
}
@media (max-width: 40rem) {
  table { font-size: .8rem; }
  th, td { padding: .35rem .2rem; }
  tbody th, tbody td:first-child { min-width: 7.5em; white-space: normal; }
  th button { text-decoration: underline dotted; }
  th:not([aria-sort]) button::after { content: none; }
}
@media print {
  :root {
    --text: #000000; --muted: #444444; --line: #bbbbbb; --page: #ffffff;
    --soft: #ffffff; --link: #000000;
  }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .wide, pre { overflow: visible; }
  pre { white-space: pre-wrap; }
  figure svg { max-height: 18cm; }
  th button::after { content: none; }
  h2 { break-after: avoid; }
  tr { break-inside: avoid; }
}
"""

# Every body's rows are sorted on their own; a row of another length is its title, and
# stays above them. Figures begin with the largest, texts with the first; a third click
# restores the order of the page. What is empty comes last.
SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const headings = [...table.tHead.rows[0].cells];
  const bodies = [...table.tBodies].map((body) => [
    body, [...body.rows].filter((row) => row.cells.length === headings.length),
  ]);
  headings.forEach((heading, column) => {
    const textOf = (row) => row.cells[column].textContent.trim();
    const numberOf = (row) => Number(textOf(row).split(" ")[0].replaceAll(",", ""));
    const isNumber = (row) => textOf(row) !== "" && !Number.isNaN(numberOf(row));
    const up = (a, b) => isNumber(a) && isNumber(b)
      ? numberOf(a) - numberOf(b)
      : textOf(a).localeCompare(textOf(b), "en", {numeric: true});
    const orders = {
      ascending: up,
      descending: (a, b) => up(b, a),
    };
    const named = ["ascending", "descending"];
    if (bodies.some(([, rows]) => rows.some(isNumber))) named.reverse();
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const next = named[named.indexOf(heading.ariaSort) + 1];
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      if (next) heading.setAttribute("aria-sort", next);
      const emptyLast = (a, b) => (textOf(a) === "") - (textOf(b) === "");
      for (const [body, rows] of bodies) {
        body.append(...(next
          ? [...rows].sort((a, b) => emptyLast(a, b) || orders[next](a, b))
          : rows));
      }
    });
  });
}
"""

_DPI = 200  # Of what is no line: sharp on screens with two pixels to a point.
_MAPPED = 256  # A colour map has no more colours; with more, it is a photograph.


def svg(figure: "Figure", name: str, alt: str) -> str:
    """Returns a figure as an element of a page.

    What is black or white in the figure has the colours of the page's text and of the
    page, so that it can be read on dark pages; its background is the page's. Images and
    rasterized artists are WebP pictures within the figure.

    Args:
      figure: the figure.
      name: tells its identifiers from those of the page's other figures.
      alt: what it shows, for readers who cannot see it.
    """
    import matplotlib

    stream = io.StringIO()
    # Nothing of when and by what it was drawn: the same figure is the same text.
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(
            stream, format="svg", dpi=_DPI, transparent=True, metadata=nothing
        )
    text = stream.getvalue()
    drawn = text[text.index(">", text.index("<svg")) + 1 :]
    for pattern, new in (
        # The style is the page's; comments repeat the texts.
        (r"<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", ""),
        (r"\n\s*", "\n"),
        (r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-"),
        (r"#000000\b", "currentColor"),
        (r"#ffffff\b", "var(--page)"),
        (r"data:image/png;base64,([^\"]+)", _as_webp),
    ):
        drawn = re.sub(pattern, new, drawn, flags=re.DOTALL)
    label = html.escape(alt)
    width, height = 72 * figure.get_size_inches()  # Points, as in what is drawn.
    box = f"0 0 {width:g} {height:g}"
    return f'<svg viewBox="{box}" role="img" aria-label="{label}">{drawn}'


def _as_webp(found: re.Match[str]) -> str:
    """Returns a PNG picture's address as that of a smaller WebP picture."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(found[1])))
    exact = image.getcolors(_MAPPED) is not None
    stream = io.BytesIO()
    image.save(stream, "webp", lossless=exact, quality=85, method=6)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
