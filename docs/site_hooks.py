"""Hooks of MkDocs that make a site of pages which are written to be read in the repository.

MkDocs takes one folder of pages and the links between them. Our pages also stand in the
repository's root, and link to configs and code. These hooks add the pages and translate the links,
so that every page is written once and every link holds on GitHub as well as on the site.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# by name on the site
ROOT_PAGES = {
    "index.md": "README.md",
    **{f"{name}.md": f"{name}.md"
       for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY", "CODE_OF_CONDUCT")},
}  # fmt: skip
LINK = re.compile(r"\[([^\[\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Order the pages as README's table does."""
    pages = re.findall(
        r"^\| \[[^]]+\]\(docs/(\w+\.md)\)", (ROOT / "README.md").read_text("utf-8"), re.M
    )
    first, *others = ROOT_PAGES
    config.nav = [first, *pages, {"Project": others}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root."""
    for name, source in ROOT_PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have relative links lead to pages of the site, or into the repository, wherever that is.

    Without `repo_url` there is nowhere for the latter to lead, and their text stays.

    Raises:
        PluginError: a link to a file that does not exist.
    """
    source = ROOT_PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    pages = {f"docs/{file.src_uri}": file.src_uri for file in files}
    pages |= {path: name for name, path in ROOT_PAGES.items()}

    def link(match: re.Match) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists():
            raise PluginError(f"{source}: there is no {path}, where the link {match[0]} leads")
        if path in pages:
            start = posixpath.dirname(page.file.src_uri)
            return f"[{text}]({posixpath.relpath(pages[path], start or '.')}{anchor})"
        if not config.repo_url:
            return text
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path}{anchor})"

    return LINK.sub(link, markdown)
