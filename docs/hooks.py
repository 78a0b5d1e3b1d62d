"""What the site has beside its pages: tutorials, executed, and a check that nothing is fetched."""

import os
import re
from pathlib import Path

import jupytext
import nbclient
import nbconvert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

DOCS = Path(__file__).parent


def on_files(files, config):
    """Executes the tutorials.

    With MASSACT_TUTORIALS=off they are shown as they are written: the tests execute all but the
    one that trains.
    """
    for path in sorted((DOCS / "tutorials").glob("*.py")):
        notebook = jupytext.read(path)
        if os.environ.get("MASSACT_TUTORIALS") != "off":
            # From the root of the repository, as a reader would.
            place = {"metadata": {"path": DOCS.parent}}
            nbclient.NotebookClient(notebook, resources=place).execute()
        exporter = nbconvert.MarkdownExporter()
        images = {"output_files_dir": f"{path.stem}_files"}
        text, extra = exporter.from_notebook_node(notebook, images)
        links = f"\n\nAs a [notebook]({path.stem}.ipynb) or a [script]({path.name}).\n"
        head, line, rest = text.lstrip().partition("\n")
        made = {f"{path.stem}.md": head + links + line + rest,
                f"{path.stem}.ipynb": jupytext.writes(notebook, fmt="ipynb"), **extra["outputs"]}
        for name, content in made.items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links to tutorials, which are scripts in the repository, lead to their pages."""
    return re.sub(r"\(((?:\.\./)*tutorials/\w+)\.py\)", r"(\1.md)", markdown)


def on_post_build(config):
    """Refuses a page that loads anything from another place."""
    found = [
        f"{path}: {tag}"
        for path in Path(config.site_dir).rglob("*.html")
        for tag in re.findall(
            r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>"
            r"|<link\b(?=[^>]*rel=[\"']?(?:stylesheet|preconnect|icon|preload))[^>]*"
            r"href=[\"']?(?:https?:)?//[^>]*>", path.read_text())
    ] + [
        f"{path}: {address}" for path in Path(config.site_dir).rglob("*.css")
        for address in re.findall(r"url\([\"']?(?:https?:)?//[^)]*", path.read_text())
    ]
    if found:
        raise PluginError("loaded from elsewhere: " + "; ".join(found))
