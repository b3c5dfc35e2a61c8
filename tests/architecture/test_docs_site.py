"""The documentation as a site (`make docs`): its navigation, the names of its reference, and what its check notices."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import docs_site  # noqa: E402
import reference  # noqa: E402

PAGES = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
GENERATED = {f"reference/{page}.md" for page in (*reference.PAGES, "errors", "options", "settings", "commands")}


def test_the_navigation_names_every_page_once() -> None:
    named = Counter(re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))

    assert named == Counter(PAGES | GENERATED), "give the page a line in the `nav` of mkdocs.yml"


def test_every_public_name_has_one_entry_in_the_reference() -> None:
    entries = Counter(thing.path for thing in reference.documented().values())
    errors = {thing.path for path, thing in reference.public_names().items() if path.startswith("exceptions.")}

    assert not {path: number for path, number in entries.items() if number > 1}
    assert not {path for path, thing in reference.public_names().items() if thing.path not in {*entries, *errors}}, (
        "add them to a page in PAGES of tools/reference.py"
    )


def test_a_link_out_of_the_documentation_leads_to_a_copy_in_the_site() -> None:
    text = "[a](../examples/hello.py) [b](guide.md#build-a-graph) [c](../SECURITY.md) `[d](../Makefile)`"

    moved, outside = docs_site.moved(text, ROOT / "docs" / "index.md")

    assert moved == (
        "[a](files/examples/hello.py.md) [b](guide.md#build-a-graph) [c](files/SECURITY.md) `[d](../Makefile)`"
    )
    assert outside == [ROOT / "examples" / "hello.py", ROOT / "SECURITY.md"]
    assert docs_site.moved("[a](docs/guide.md#x)", ROOT / "SECURITY.md")[0] == "[a](../guide.md#x)"
    assert docs_site.moved("[docs/guide.md](docs/guide.md)", ROOT / "SECURITY.md")[0] == "[User guide](../guide.md)"


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<a href="other/">', "other/ leads nowhere"),
        ('<a href="guide/#nothing">', "guide/#nothing leads nowhere"),
        ('<a href="#nothing">', "#nothing leads nowhere"),
        ('<img src="picture.png">', "picture.png leads nowhere"),
        ('<img src="https://other.host/picture.png">', "loads https://other.host/picture.png from another host"),
        ('<img srcset="//other.host/2x.png 2x">', "loads //other.host/2x.png from another host"),
        ('<script src="https://other.host/x.js"></script>', "loads https://other.host/x.js from another host"),
        ('<link rel="stylesheet" href="https://fonts/f.css">', "loads https://fonts/f.css from another host"),
        ('<pre class="mermaid">', "loads https://the script of mermaid from another host"),
    ],
)
def test_the_check_of_the_site_notices(tmp_path: Path, html: str, problem: str) -> None:
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide" / "index.html").write_text('<h1 id="start">')
    (tmp_path / "index.html").write_text(f'<a href="guide/#start"><a href="https://other.host"><h1 id="top">{html}')

    assert [*docs_site.problems(tmp_path)] == [f"index.html: {problem}"]


def test_the_check_of_the_site_notices_what_a_stylesheet_loads(tmp_path: Path) -> None:
    (tmp_path / "main.css").write_text("@font-face{src:url(https://fonts/f.woff2)} b{background:url(data:x)}")

    assert [*docs_site.problems(tmp_path)] == ["main.css: loads https://fonts/f.woff2 from another host"]


@pytest.mark.parametrize(
    ("page", "built", "kinds"),
    [
        ("- a\n- b\n", "<ul><li>a</li><li>b</li></ul>", []),
        ("What:\n- a\n", "<p>What: - a</p>", ["li, ul"]),
        ("- a\n\n  | b |\n  | --- |\n  | c |\n", "<ul><li>a</li></ul><p>| b |</p>", ["table, tr"]),
    ],
)
def test_the_check_of_the_site_notices_what_looks_otherwise_than_in_a_plain_viewer(
    tmp_path: Path, page: str, built: str, kinds: list[str]
) -> None:
    (tmp_path / "page").mkdir()
    (tmp_path / "page.md").write_text(page)
    (tmp_path / "page" / "index.html").write_text(f"<ul></ul><article>{built}</article>")

    found = [*docs_site.differences(tmp_path, tmp_path)]

    assert [one.partition(".md: ")[2].partition(".")[0] for one in found] == [
        f"a plain viewer shows other {kind} than the site" for kind in kinds
    ]
