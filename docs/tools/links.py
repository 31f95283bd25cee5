"""Asks for every address outside of the site: python docs/tools/links.py.

Links between the pages are checked by ``mkdocs build --strict``.
"""

import concurrent.futures
import logging
import re
import sys
import urllib.error
import urllib.request
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SECONDS = 20

_ADDRESS = re.compile(r"https?://[^\s)>\"'`}]+")
_log = logging.getLogger(__name__)


def addresses() -> dict[str, list[str]]:
    """Returns the pages, by address, that lead there."""
    found = defaultdict(list)
    for page in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]):
        for address in _ADDRESS.findall(page.read_text(encoding="utf-8")):
            name = str(page.relative_to(ROOT))
            if name not in found[address]:
                found[address].append(name)
    return found


def problem(address: str) -> str | None:
    """Returns why an address cannot be read; None if it can be."""
    agent = {"User-Agent": "Mozilla/5.0 (a check of links)"}
    try:
        request = urllib.request.Request(address, headers=agent)
        with urllib.request.urlopen(request, timeout=SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.reason}"
    except (OSError, ValueError) as error:
        return str(error)


def main() -> int:
    """Logs the addresses that cannot be read; returns 1 if there are any."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pages = addresses()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        problems = dict(zip(pages, pool.map(problem, pages), strict=True))
    for address, why in problems.items():
        if why:
            _log.info("%s (%s): %s", address, ", ".join(pages[address]), why)
    _log.info("%d addresses", len(pages))
    return int(any(problems.values()))


if __name__ == "__main__":
    sys.exit(main())
