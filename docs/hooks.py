"""Links from the pages to files of the repository outside docs, such as the script that makes a figure.

On GitHub `[benchmarks/cpu.py](../benchmarks/cpu.py)` works as it stands. mkdocs knows nothing outside of docs, so the
files that pages link to become files of the site, under `repository/`, and the links go there.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

FOLDER: Final = "repository"
_LINK: Final = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def outside(text: str, page: str) -> dict[str, str]:
    """The links of a page that lead out of docs: the path in the repository of each.

    Args:
        text: of the page, Markdown.
        page: its path in docs.
    """
    links = {match[1] for match in _LINK.finditer(text)}
    paths = {link: posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link)) for link in links}
    return {link: path for link, path in paths.items() if not path.startswith(("docs/", "../"))}


def on_files(files: Files, config: Any) -> Files:
    """Add the files that pages link to."""
    from mkdocs.structure.files import File

    root = Path(config["config_file_path"]).parent
    paths = {
        path for page in files.documentation_pages() for path in outside(page.content_string, page.src_uri).values()
    }
    for path in sorted(paths):
        if (root / path).is_file():
            files.append(File.generated(config, f"{FOLDER}/{path}", abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links out of docs go to these files."""
    start = posixpath.dirname(page.file.src_uri) or "."
    paths = outside(markdown, page.file.src_uri)

    def led(match: re.Match[str]) -> str:
        if (path := paths.get(match[1])) is None:
            return match[0]
        return f"]({posixpath.relpath(f'{FOLDER}/{path}', start)}{match[2] or ''})"

    return _LINK.sub(led, markdown)
