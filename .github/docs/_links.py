"""Whether a built site holds together: `python .github/docs/_links.py build/site`.

Every link within it leads to a file, and to a place in that file where it names one; nothing that a browser loads by
itself (scripts, styles, fonts, pictures) comes from another host.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("script", "src"), ("link", "href"), ("img", "src"), ("source", "src"), ("iframe", "src"), ("video", "src")}
NOT_LOADED = {"canonical", "author", "license", "index", "search", "next", "prev"}  # of <link rel=...>


class Page(HTMLParser):
    """The links, the places and what is loaded of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.places: set[str] = {"", "top"}
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element names."""
        given = {name: value or "" for name, value in attrs}
        self.places.update(given[name] for name in ("id", "name") if name in given)
        for name in ("href", "src"):
            if name not in given:
                continue
            self.links.append(given[name])
            if (tag, name) in LOADED and given.get("rel") not in NOT_LOADED:
                self.loaded.append(given[name])


def problems(site: Path) -> list[str]:
    """What is wrong, a line each."""
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        here = path.relative_to(site.resolve())
        found += [f"{here} loads {url}" for url in page.loaded if elsewhere(url)]
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                found.append(f"{here}: no file {link}")
            elif target in pages and unquote(parts.fragment) not in pages[target].places:
                found.append(f"{here}: no place {link}")
    for path in [*site.rglob("*.css"), *site.rglob("*.js")]:
        text = path.read_text(errors="replace")
        urls = re.findall(r"""(?:url\(|@import\s+|import\()["']?([^"')\s;]+)""", text)
        found += [f"{path.relative_to(site)} loads {url}" for url in urls if elsewhere(url)]
    return sorted(set(found))


def elsewhere(url: str) -> bool:
    """Whether an address is on another host."""
    return bool(urlsplit(url).netloc)


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]))
    print("\n".join(wrong) or "all links hold, and nothing is loaded from elsewhere")
    sys.exit(bool(wrong))
