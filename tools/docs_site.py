#!/usr/bin/env python3
"""Build the documentation as a site in build/site, and check it: `make docs`.

The pages of docs/ are copied to build/docs-src, with the reference (tools/reference.py), and with the files outside of
docs/ that they link to. So a page may link to any file of the repository, as it does for a plain viewer.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import reference
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
SOURCES, SITE = ROOT / "build" / "docs-src", ROOT / "build" / "site"
_SHOWN_AS_THEY_ARE = (".md", ".png", ".svg", ".jpg")
_CODE_OR_LINK = re.compile(
    r"^```.*?^```$|`[^`\n]+`|(?P<text>\[[\w./-]+\.md)?\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)", re.S | re.M
)
_ELSEWHERE = re.compile(r"[a-z]+:|//")
_LOADED_BY_CSS = re.compile(r"""url\(["']?((?:https?:)?//[^)"']+)""")
_BLOCK_KINDS = ("table", "tr", "ul", "ol", "li", "pre", "img", "h1", "h2", "h3")
_BLOCK = re.compile(rf"<({'|'.join(_BLOCK_KINDS)})\b")
_ADVICE = "A list needs an empty line before it, and what belongs to an item four spaces"
_PAGES = {"canonical", "prev", "next", "alternate"}
"""The values of ``rel`` for which a browser loads nothing."""
_SCRIPTED = {"mermaid", "glightbox"}
"""The classes of elements for which the theme's script would load another one from elsewhere."""


def home(path: Path) -> Path:
    """Return the place of a file of the repository among the sources of the site."""
    inside = path.relative_to(ROOT)
    if inside.parts[0] == "docs":
        return Path(*inside.parts[1:])
    place = Path("files") / inside
    return place if path.suffix in _SHOWN_AS_THEY_ARE else place.with_name(f"{place.name}.md")


def _title(page: Path) -> str:
    return page.read_text().partition("\n")[0].removeprefix("# ")


def moved(text: str, path: Path) -> tuple[str, list[Path]]:
    """Return a page as its copy has it, and the files outside of docs/ that it links to."""
    found = []

    def link(match: re.Match[str]) -> str:
        target = match["target"]
        if match[0].startswith("`"):
            return match[0].replace("\\|", "|")  # in a table, plain viewers need the backslash, and the site shows it
        file = (path.parent / (target or "")).resolve()
        file = file / "README.md" if file.is_dir() else file
        if target is None or urlsplit(target).scheme or not file.is_file():
            return match[0]
        if not file.is_relative_to(ROOT / "docs"):
            found.append(file)
        text = f"[{_title(file)}" if match["text"] else ""  # a file's name is no text for readers of the site
        return f"{text}]({os.path.relpath(home(file), home(path).parent)}{match['anchor'] or ''})"

    return _CODE_OR_LINK.sub(link, text), found


def copy_sources() -> None:
    """Copy the pages of docs/, and what they link to, to the sources of the site."""
    shutil.rmtree(SOURCES, ignore_errors=True)
    pending = [path for path in (ROOT / "docs").rglob("*") if path.is_file()]
    done = set()
    while pending:
        path = pending.pop()
        if path in done:
            continue
        done.add(path)
        copy = SOURCES / home(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            text, found = moved(path.read_text(), path)
            pending += found
            copy.write_text(text)
        elif copy.suffix == ".md":
            copy.write_text(f"# {path.relative_to(ROOT)}\n\n~~~~~ {path.suffix[1:]}\n{path.read_text()}~~~~~\n")
        else:
            shutil.copyfile(path, copy)


class Page(HTMLParser):
    """What the HTML of a page has: anchors, links, and what a browser loads with it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.anchors, self.links, self.loads = {""}, list[str](), list[str]()
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and not _PAGES & {*given.get("rel", "").split()}:
            self.loads.append(given.get("href", ""))
        self.loads += [given[name] for name in ("src", "poster", "data") if name in given]
        self.loads += [part.split()[0] for part in given.get("srcset", "").split(",") if part.split()]
        self.loads += [f"https://the script of {kind}" for kind in _SCRIPTED & {*given.get("class", "").split()}]


def problems(site: Path = SITE) -> Iterator[str]:
    """Yield what is wrong in a site: links and anchors that lead nowhere, and what is loaded from another host."""

    @cache
    def page(path: Path) -> Page:
        return Page(path.read_text() if path.suffix == ".html" else "")

    def leads_somewhere(path: Path, link: str) -> bool:
        parts = urlsplit(link)
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        target = target / "index.html" if target.is_dir() else target
        return target.is_file() and (target.suffix != ".html" or unquote(parts.fragment) in page(target).anchors)

    for path in sorted(site.rglob("*.html")):
        here, name = page(path), path.relative_to(site)
        yield from (f"{name}: loads {load} from another host" for load in here.loads if urlsplit(load).netloc)
        if name.name != "404.html":  # its links are absolute: it is sent for paths of any depth
            local = [link for link in (*here.links, *here.loads) if not _ELSEWHERE.match(link)]
            yield from (f"{name}: {link} leads nowhere" for link in local if not leads_somewhere(path, link))
    for path in sorted(site.rglob("*.css")):
        for url in _LOADED_BY_CSS.findall(path.read_text()):
            yield f"{path.relative_to(site)}: loads {url} from another host"


def differences(sources: Path = SOURCES, site: Path = SITE) -> Iterator[str]:
    """Yield the pages whose tables, lists, listings and headings a plain viewer shows otherwise than the site does."""
    plain = MarkdownIt("commonmark").enable("table")
    for page in sorted(sources.rglob("*.md")):
        place = page.relative_to(sources)
        folder = place.parent if page.name in ("index.md", "README.md") else place.with_suffix("")
        built = (site / folder / "index.html").read_text().partition("<article")[2].partition("</article>")[0]
        shown = [Counter(_BLOCK.findall(html)) for html in (plain.render(page.read_text()), built)]
        kinds = sorted(kind for kind in _BLOCK_KINDS if shown[0][kind] != shown[1][kind])
        if kinds:
            yield f"{place}: a plain viewer shows other {', '.join(kinds)} than the site. {_ADVICE}"


def main() -> None:
    copy_sources()
    reference.write(SOURCES / "reference")
    subprocess.run([Path(sys.executable).with_name("zensical"), "build", "--clean"], cwd=ROOT, check=True)
    found = [*problems(), *differences()]
    print(*found, f"build/site: {len([*SITE.rglob('*.html')])} pages, {len(found)} problems", sep="\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
