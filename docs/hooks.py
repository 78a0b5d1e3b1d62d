"""What the site is made of beside its texts: tutorials, recorded results and the code's own tables.

Pages are jinja2 templates. The functions of `Pages` are their names: each returns Markdown from a
file of `docs/results`, or from a table of the package, so that no figure is typed by hand.
"""

import contextlib
import io
import json
import os
import re
from pathlib import Path

import jinja2
import jupytext
import nbclient
import nbconvert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from rich.console import Console

from jax_massact.cli import make_parser
from jax_massact.cli.listing import TABLES
from jax_massact.cli.table import COMMANDS, STUDIES, load
from jax_massact.nn.parameters import PARAMETERS
from jax_massact.plan.report import print_plan
from jax_massact.report import words
from jax_massact.report.matplotlib_painter import draw
from jax_massact.studies.changes import CHANGES
from jax_massact.train.report import amount

DOCS = Path(__file__).parent
RESULTS = DOCS / "results"


def on_files(files, config):
    """Executes the tutorials, and draws the figures of the recorded results.

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
    for name in results():
        for chart in charts(name):
            file = f"figures/{name}-{chart.name}.png"
            files.append(File.generated(config, file, content=draw(chart)["png"]))
    return files


def on_page_markdown(markdown, page, config, files):
    """Fills in a page's functions."""
    if page.file.src_uri.startswith("tutorials/"):
        return markdown
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    up = "../" * page.file.src_uri.count("/")
    figure = lambda study, name, text: f"![{text}]({up}figures/{study}-{name}.png)\n\n{made(study)}"
    return environment.from_string(markdown).render(**PAGES, figure=figure)


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


def results():
    """The studies that have a recorded result, with how it was made."""
    return json.loads((RESULTS / "made.json").read_text())


def result(name):
    """A recorded result."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def charts(name):
    """The charts of a recorded result that need its JSON file alone."""
    makers, found = results()[name]["charts"], result(name)
    return [load(f"jax_massact.studies.{study(name)}.figures:{m}")(found) for m in makers]


def study(name):
    """The study of a recorded result, whose name it has unless it says otherwise."""
    return results()[name].get("study", name)


def made(name):
    """How a recorded result was made: command, hardware, versions, date."""
    how, found = results()[name], result(name)
    versions = how.get("versions") or found["versions"]
    software = ", ".join(f"{package} {versions[package]}" for package in ("python", "jax"))
    return f"`{how['command']}`, {how['hardware']}, {software}, {how['date']}."


def output(name):
    """What the command prints of a recorded result."""
    console = Console(file=io.StringIO(), width=78, legacy_windows=False)
    load(f"jax_massact.studies.{study(name)}.report:show")(result(name), console)
    return f"```text\n{console.file.getvalue().rstrip()}\n```\n\n{made(name)}"


def gemma3():
    """The second real model: its largest activation by block, and the perplexities."""
    found = result("gemma3-270m")
    versions, date = found["versions"], found["date"]
    software = ", ".join(f"{package} {versions[package]}" for package in ("python", "jax"))
    layers = table(
        ("after block", "largest activation", "at", "median"),
        [[l["layer"], words.number(l["value"]), f"position {l['position']}, dim {l['dim']}",
          words.number(l["median"])] for l in found["layers"]],
    )
    perplexity = table(
        ("dim 163 at BOS", "perplexity"),
        [[name, words.number(value)] for name, value in found["perplexity"].items()],
    )
    how = f"`{found['command']}`, {found['hardware']}, {software}, {date}."
    return f"{perplexity}\n\n{layers}\n\n{found['tokens']} tokens, BOS included. {how}"


def runs(name):
    """A recorded table of training runs, a row each; the file names its columns."""
    found = result(name)
    cell = lambda x: {str: str, int: "{:,}".format}.get(type(x), words.number)(x)
    rows = [[cell(row[key]) for key in found["columns"]] for row in found["rows"]]
    versions = found["versions"]
    software = ", ".join(f"{package} {versions[package]}" for package in ("python", "jax"))
    how = f"`{found['command']}`, {found['hardware']}, {software}, {found['date']}."
    return f"{table(found['columns'].values(), rows)}\n\n{how}"


def image_bench():
    """The probe of an image encoder on a GPU, beside its forward pass and timm's."""
    found = result("bench-probe-vit-l14")
    how, forward = found["made"], found["rows"]["forward"]["seconds"]
    rows = [[name, f"{1000 * row['seconds']:.1f}", f"{row['seconds'] / forward:.3f}",
             "-" if row["temporary"] is None else f"{row['temporary'] / 2**20:,.0f}"]
            for name, row in found["rows"].items()]
    software = ", ".join(f"{package} {how['versions'][package]}"
                         for package in ("python", "jax", "timm"))
    xla = found["xla"]
    return (
        f"{table(('', 'ms', 'to the forward pass', 'temporary MiB'), rows)}\n\n"
        f"`{how['command']}`, {how['hardware']}, {software}, {how['date']}.\n\n"
        f"The forward pass takes cuDNN's attention: in another run on such a GPU "
        f"{1000 * xla['cudnn_seconds']:.0f} ms where it is asked for by name, and "
        f"{1000 * xla['seconds']:.0f} ms with `implementation=xla`. There the attention of 128 "
        f"patches of an image was measured, of 64 now: the probe took "
        f"{1000 * xla['probe_of_128']:.1f} ms."
    )


def image_training():
    """What the first runs of `configs/vit_small.py` have shown."""
    found = result("vit-small")
    head = ("run", "steps", "accuracy", "top-1", "top-1 / median", "patch norm", "largest",
            "outliers", "sink rate", "kurtosis")
    keys = ("accuracy", "top1", "ratio", "patch_norm", "patch_norm_max", "outliers", "sink_rate",
            "kurtosis")
    rows = [[run["name"], f"{row['step']:,}", *(words.number(row[key]) for key in keys)]
            for run in found["runs"] for row in run["rows"]]
    software = ", ".join(f"{package} {found['versions'][package]}" for package in ("python", "jax"))
    how = f"`{found['command']}`, {found['hardware']}, {software}, {found['date']}."
    return f"{table(head, rows)}\n\n{found['data']}. {how}"


def planned(name, model, slice):
    """What `massact plan` prints of a recorded plan."""
    found = next(row for row in result(name)["rows"]
                 if (row["model"], row["slice"]) == (model, slice))
    console = Console(file=io.StringIO(), width=78, legacy_windows=False)
    print_plan(found, found["compiled"], None, console)
    made = found["made"]
    how = f"`{made['command']}`, {made['hardware']}, {made['date']}."
    return f"```text\n{console.file.getvalue().rstrip()}\n```\n\n{how}"


def plans(name):
    """Recorded plans for slices of TPUs, a row each: the compiler's memory beside the estimate."""
    found, rows = result(name), []
    for row in found["rows"]:
        compiled, estimate = row["compiled"], row["memory"]["total"]
        memory = compiled["memory"]
        overlapped, emitted = (sum(c[key] for c in compiled["collectives"])
                               for key in ("asynchronous", "count"))
        mesh = ", ".join(f"{axis} {size}" for axis, size in row["mesh"].items() if size > 1)
        fits = "fits" if memory["total"] <= memory["available"] else "does not fit"
        rows.append([
            row["model"], f"`{row['slice']}`", mesh, fits, amount(memory["total"]),
            amount(estimate), f"{estimate / memory['total']:.2f}", f"{overlapped} of {emitted}",
            f"{compiled['cpu_seconds']:.0f} s",
        ])
    head = ("model", "slice", "mesh", "compiles, and", "memory of a chip", "estimate", "ratio",
            "asynchronous collectives", "compiled in, CPU time")
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    dates = sorted({row["made"]["date"] for row in found["rows"]})
    how = f"`massact plan`, {found['rows'][0]['made']['hardware']}, {versions}, {dates[-1]}."
    return f"{table(head, rows)}\n\n{how}"


def usage(name):
    """What `--help` prints of a command."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        make_parser(argv := [*name.split(), "--help"]).parse_args(argv)
    return f"```text\n{printed.getvalue().rstrip()}\n```"


def table(head, rows):
    """A table in Markdown."""
    cells = lambda row: "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
    return "\n".join([cells(head), cells(["---"] * len(head)), *map(cells, rows)])


def listing(name):
    """A table of `massact list`."""
    _, head, rows = TABLES[name]
    return table(head, [[f"`{row[0]}`", *row[1:]] for row in rows()])


def commands():
    """Command, the question it answers, its page."""
    pages = {name: name.split()[0] for name in COMMANDS}
    return table(
        ("command", "what it answers"),
        [[f"[`massact {name}`](commands/{page}.md)" if (DOCS / "commands" / f"{page}.md").exists()
          else f"`massact {name}`", COMMANDS[name].about] for name, page in pages.items()],
    )


def parameters():
    """The table of parameters: what the code knows of each."""
    fields = next(iter(PARAMETERS.values()))._fields
    rows = [[f"`{name}`", *row] for name, row in PARAMETERS.items()]
    return table(("parameter", *fields), rows)


def changes():
    """The interventions."""
    return table(("name", "in words"), [[f"`{name}`", c.words] for name, c in CHANGES.items()])


FUNCTIONS = (output, gemma3, runs, planned, plans, usage, listing, commands, parameters, changes,
             image_bench, image_training)
PAGES = {f.__name__: f for f in FUNCTIONS} | {"studies": STUDIES}
