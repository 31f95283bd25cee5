"""Hooks of mkdocs: pages from the root of the repository, links to its other files."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# Files outside the folder of the pages that are pages of the site, too.
FROM_ROOT = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
DOCS = "docs"

_LINK = re.compile(r"(?<=\]\()(?!https?://|#|mailto:)[^)\s]+")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that lie in the root of the repository."""
    root = Path(config.config_file_path).parent
    for source, page in FROM_ROOT.items():
        content = (root / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Makes links that lead to files of the repository lead there from the site."""
    sources = {page: source for source, page in FROM_ROOT.items()}
    path = page.file.src_uri
    source = sources.get(path, f"{DOCS}/{path}")
    return _LINK.sub(
        lambda found: target(found[0], source, path, str(config.repo_url)), markdown
    )


def target(link: str, source: str, page: str, repo_url: str) -> str:
    """Returns where a link leads on the site.

    Args:
      link: as it stands in the source, relative to it.
      source: path of the source in the repository.
      page: path of the page among the site's pages.
      repo_url: address of the repository.

    Returns:
      The page that the link means, relative to this page; for a file of the
      repository that is no part of the site, its address there.
    """
    path, hash_, anchor = link.partition("#")
    if not path:
        return link
    inside = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if inside in FROM_ROOT:
        found = FROM_ROOT[inside]
    elif inside.startswith(f"{DOCS}/"):
        found = inside.removeprefix(f"{DOCS}/")
    else:
        return f"{repo_url}/blob/main/{inside}{hash_}{anchor}"
    return posixpath.relpath(found, posixpath.dirname(page) or ".") + hash_ + anchor
