"""The Markdown files: links and anchors lead somewhere, named test files exist, lines are short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for folder in (".", "docs", "results", "config", "examples", ".github")
    for path in (ROOT / folder).glob("*.md" if folder == "." else "**/*.md")
)
# The lines of generated pages are as long as the descriptions that they are made from.
GENERATED = {"docs/configuration.md", "docs/api.md", "docs/models.md"}
LONGEST = 120


def name(path: Path) -> str:
    """Return the path of a page below the clone."""
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> list[tuple[int, str]]:
    """Return the (number, line) of all lines outside of code blocks, tables and comments."""
    lines, fenced, comment = [], False, False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
            continue
        comment = comment or line.startswith("<!--")
        if not fenced and not comment and not line.startswith("    ") and not line.lstrip().startswith("|"):
            lines.append((number, line))
        comment = comment and "-->" not in line
    return lines


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for _, line in prose(path):
        if match := re.match(r"#+ (.+)", line):
            text = re.sub(r"[^\w\- ]", "", match[1].lower()).replace(" ", "-")
            repeated = sum(re.fullmatch(rf"{re.escape(text)}(-\d+)?", other) is not None for other in found)
            found.add(f"{text}-{repeated}" if repeated else text)
    return found


def links(path: Path) -> list[str]:
    """Return the relative links and images of a page, tables included."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{link} does not exist"
        assert not anchor or anchor in anchors(target), f"{link}: {name(target)} has no such heading"


@pytest.mark.parametrize("page", [page for page in PAGES if name(page) not in GENERATED], ids=name)
def test_lines_are_short(page):
    assert [number for number, line in prose(page) if len(line) > LONGEST] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_files_exist(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?:tests|workflow|profiles|envs)/[\w/]+\.(?:py|smk|yaml|txt|csv)", text)
    assert [file for file in named if not (ROOT / file).exists()] == []
