"""The parts of the site's pages that are recorded results and the code's own tables.

In a page of `docs/` such a part lies between `<!-- output("probe") -->`, a call of a function of
this module, and `<!-- end -->`, so that it can be read in the repository as well. `python
docs/pages.py` writes all of them again; `tests/docs/test_pages.py` says when that is needed.
"""

import contextlib
import hashlib
import io
import json
import os
import re
from pathlib import Path
from unittest import mock

import matplotlib
from rich.console import Console

from jax_massact.cli import make_parser
from jax_massact.cli.listing import TABLES
from jax_massact.cli.table import COMMANDS, STUDIES, load
from jax_massact.nn.parameters import PARAMETERS
from jax_massact.plan.report import print_plan
from jax_massact.report import words
from jax_massact.report.matplotlib_painter import STYLE, figure_of
from jax_massact.studies.changes import CHANGES
from jax_massact.train.report import amount

DOCS = Path(__file__).parent
RESULTS = DOCS / "results"
PART = re.compile(r"<!-- (\w+\(.*?\)) -->\n(?:(?!<!--).)*<!-- end -->", re.DOTALL)
FIGURE = re.compile(r'<!-- figure\("(.+?)", "(.+?)", ')


def pages():
    """The pages that have such parts, each with its text."""
    found = {page: page.read_text("utf-8") for page in sorted(DOCS.rglob("*.md"))}
    return {page: text for page, text in found.items() if PART.search(text)}


def written(page, text):
    """The text of a page, its parts as they are now."""
    functions = {f.__name__: f for f in FUNCTIONS}
    functions["figure"] = lambda *names: figure(page, *names)
    fill = lambda part: f"<!-- {part[1]} -->\n\n{eval(part[1], functions)}\n\n<!-- end -->"
    return PART.sub(fill, text)


def main():
    """Writes the pages' parts, and the figures that they show."""
    for page, text in pages().items():
        page.write_text(written(page, text), "utf-8")
        for study, name in FIGURE.findall(text):
            (chart,) = (c for c in charts(study) if c.name == name)
            with matplotlib.rc_context(STYLE | {"savefig.dpi": 120}):
                figure_of(chart).savefig(drawn(study, name), metadata={"Source": digest(study)})


def drawn(study, name):
    """The file of a figure."""
    return DOCS / "figures" / f"{study}-{name}.png"


def digest(name):
    """SHA-256 of a recorded result: a figure has that of the file it was drawn from."""
    return hashlib.sha256((RESULTS / f"{name}.json").read_bytes()).hexdigest()


def figure(page, study, name, text):
    """A chart of a recorded result, in a page."""
    path = os.path.relpath(drawn(study, name), page.parent)
    return f"![{text}]({path})\n\n{made(study)}"


def screen(show, *found):
    """What a function prints of these to a terminal of 78 columns."""
    console = Console(file=io.StringIO(), width=78, legacy_windows=False, color_system=None)
    show(*found, console)
    lines = map(str.rstrip, console.file.getvalue().rstrip().split("\n"))
    return "```text\n" + "\n".join(lines) + "\n```"


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
    show = load(f"jax_massact.studies.{study(name)}.report:show")
    return f"{screen(show, result(name))}\n\n{made(name)}"


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
    made = found["made"]
    how = f"`{made['command']}`, {made['hardware']}, {made['date']}."
    return f"{screen(print_plan, found, found['compiled'], None)}\n\n{how}"


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
    """What `--help` prints of a command, 80 columns wide."""
    printed = io.StringIO()
    with (contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit),
          mock.patch.dict(os.environ, COLUMNS="80")):
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


def studies():
    """What each study's settings are called, and what it writes."""
    return table(
        ("study", "settings", "writes"),
        [[f"`{name}`", f"`{row.settings.split(':')[1]}`", row.writes]
         for name, row in STUDIES.items()],
    )


FUNCTIONS = (output, gemma3, runs, planned, plans, usage, listing, commands, parameters, changes,
             image_bench, image_training, studies)


if __name__ == "__main__":
    main()
