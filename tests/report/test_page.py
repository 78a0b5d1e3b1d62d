import base64
import json
import re
from pathlib import Path

import headless
import numpy as np
import pytest
import report_examples as examples
from page_reader import read_page as read

from jax_massact.report import charts
from jax_massact.report.encode import write_text
from jax_massact.report.html import (
    Section,
    escape,
    render,
    script_json,
)
from jax_massact.studies.probe.page import probe_page


def write(result, folder: Path) -> Path:
    page = probe_page(result, examples.activation_map(result))
    return write_text(folder / "report.html", page)


def test_sections_and_their_links(tmp_path):
    page = read(write(examples.strict_found(), tmp_path))
    anchors = [s["id"] for s in page.tags("section")]
    assert anchors == ["verdict", "massive", "surface", "magnitudes", "writers", "prompt",
                       "outliers", "layers", "settings"]
    assert [a["href"] for a in page.tags("a")] == [f"#{anchor}" for anchor in anchors]
    assert "Dimension 507 is massive (strict) from layer 11 to 28" in page.text
    assert "data.sequences" in page.text and "0.10.2" in page.text


def test_everything_is_inside_the_file_and_plotly_once(tmp_path):
    path = write(examples.strict_found(), tmp_path)
    page = read(path)
    assert not [s for s in page.tags("script") if "src" in s]
    assert [link["href"] for link in page.tags("link")] == ["data:,"]
    assert not page.tags("img") and not page.tags("iframe")
    policy = next(m["content"] for m in page.tags("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'") and "http" not in policy
    assert len(re.findall(r"\* plotly\.js v\d", path.read_text(encoding="utf-8"))) == 1


def test_relaxed_and_outliers_are_called_by_their_names(tmp_path):
    page = read(write(examples.relaxed_only(), tmp_path))
    assert "Relaxed only: not massive by the strict definition" in page.text
    assert "dim 77 (relaxed)" in page.blocks["who-writes-data"]
    assert "Massive (strict)" not in page.text
    assert page.tags("mark")[0]["class"] == "relaxed"
    assert "93%" in page.text


def test_many_records_are_drawn_in_part_and_said_so(tmp_path):
    records = [examples.massive(d, 1e4 - d, 0, 2, 4) for d in range(30)]
    page = read(write(examples.result(records, depth=4), tmp_path))
    lines = [t for t in json.loads(page.blocks["who-writes-data"])["data"] if "line" in t]
    assert len(lines) == 24
    assert [t["visible"] for t in lines] == [True] * 8 + ["legendonly"] * 16
    assert "The 24 largest of 30 are drawn." in page.text


def test_none_found_has_no_writers_section(tmp_path):
    page = read(write(examples.none_found(), tmp_path))
    assert "No massive activations found, strict or relaxed." in page.text
    assert "writers" not in [s["id"] for s in page.tags("section")]
    assert not page.tags("mark")


def test_text_cannot_become_a_tag(tmp_path):
    page = read(write(examples.nasty(), tmp_path))
    assert len(page.tags("script")) == 5  # plotly, three charts and the page's own
    assert not page.tags("b") and not page.tags("img")
    assert "</style><img src=x onerror=alert(1)>[/]" in page.text
    assert "<b>$x$</b></title>[red]Ġ" in page.text
    for name in ("activation-map-data", "top-magnitudes-data", "who-writes-data"):
        json.loads(page.blocks[name])


def test_prompt_shows_every_token_and_marks_the_massive_ones(tmp_path):
    result = examples.nasty()
    page = read(write(result, tmp_path))
    marks = page.tags("mark")
    assert len(marks) == 10
    assert marks[0]["data-tip"].splitlines() == [
        "position 0", "dim 5: 3,000 at layer 1, mean over sequences",
        "dim 9: 900 at layer 1, mean over sequences",
    ]
    prompt = page.text[page.text.index("All tokens;") :]
    for shown in ("<|im_start|>", "</script>", "↵\n", "→\t", "···", "Ġthe", "中文", "\\x00",
                  "\\x1b[31m", "\\u202e", "\\ud800", "</mark>", "%{x}", "␍"):
        assert shown in prompt


def test_nan_is_null_in_the_charts(tmp_path):
    page = read(write(examples.broken_numbers(), tmp_path))
    top = json.loads(page.blocks["top-magnitudes-data"])["data"][0]["y"]
    assert top[3] == 15 and top[4:] == [None] * 26
    assert "2,600 activations NaN or infinite" in page.text


def test_size_without_plotly_is_small(tmp_path):
    from plotly.offline import get_plotlyjs

    path = write(examples.strict_found(), tmp_path)
    assert path.stat().st_size - len(get_plotlyjs().encode()) < 700_000


def test_magnitudes_survive_their_codes():
    magnitude = np.array([[1e-6, 0.5, 24926.0], [0.0, np.nan, np.inf]])
    codes, low, step = charts.encode_magnitudes(magnitude)
    assert codes.dtype == np.uint16
    np.testing.assert_allclose(np.exp(low + codes[0] * step), magnitude[0], rtol=2e-4)
    assert codes[1].tolist() == [0, 0, 0] and codes[0].min() == 1 and codes.max() == 65535
    assert charts.encode_magnitudes(np.zeros((2, 2)))[0].tolist() == [[0, 0], [0, 0]]


def test_surface_spec_holds_the_map():
    result = examples.strict_found()
    activation_map = examples.activation_map(result)
    spec = charts.surface(result, activation_map)
    codes = np.frombuffer(base64.b64decode(spec["codes"]), "<u2").reshape(spec["shape"])
    decoded = np.exp(spec["low"] + codes * spec["step"])
    np.testing.assert_allclose(decoded, activation_map.magnitude, rtol=2e-4)
    assert spec["bins"][0] == "dims 0 to 3" and spec["bins"][-1] == "dims 571 to 575"
    mark = next(m for m in spec["marks"] if m["label"] == "dim 507")
    assert (mark["row"], mark["first"], mark["last"]) == (0, 11, 28)
    assert activation_map.first_dim[mark["column"]] <= 507


def test_further_sections_need_nothing_new():
    more = Section("interventions", "Interventions & more", "<p>body</p>")
    page = render("title", "subtitle", [more], "footer")
    assert '<section id="interventions"><h2>Interventions &amp; more</h2>\n<p>body</p>' in page
    assert '<a href="#interventions">' in page


def test_escape_and_script_json():
    assert escape("</a>&\"'\x00\n") == "&lt;/a&gt;&amp;&quot;&#x27;\\x00\n"
    block = script_json("x", {"a": "</script><!--", "b": 1.23456789})
    assert block.count("<") == 2 and '"b":1.2346' in block


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    executable = headless.find()
    if executable is None:
        pytest.skip(f"no Chromium on the path (looked for {', '.join(headless.NAMES)})")
    browser = headless.Browser(executable, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def open_page(browser, path: Path) -> headless.Page:
    page = browser.open(path)
    page.wait_for("document.documentElement.dataset.drawn === 'true'")
    return page


# Inked pixels of the WebGL canvas: an empty or a lost context has none.
INK = """(async () => {
  const canvas = document.querySelector('#activation-map canvas');
  const url = await Plotly.toImage('activation-map', {format: 'png', width: 500, height: 400});
  const image = new Image(); image.src = url; await image.decode();
  const flat = document.createElement('canvas'); flat.width = 500; flat.height = 400;
  const context = flat.getContext('2d'); context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, 500, 400).data;
  let ink = 0;
  for (let i = 0; i < pixels.length; i += 4)
    if (pixels[i + 3] > 128 && pixels[i] < 200 && pixels[i + 2] > pixels[i] + 20) ink += 1;
  return canvas ? ink : -1;
})()"""


@pytest.mark.browser
@pytest.mark.parametrize("name", examples.EXAMPLES)
def test_opens_in_a_browser_without_a_request_or_a_complaint(name, browser, tmp_path):
    result = examples.EXAMPLES[name]()
    path = write(result, tmp_path)
    page = open_page(browser, path)
    charts_expected = 3 if result["massive"] else 2
    assert page.evaluate("document.querySelectorAll('.js-plotly-plot').length") == charts_expected
    assert page.evaluate("document.querySelectorAll('#top-magnitudes .lines path').length") >= 4
    assert page.evaluate("document.title") == f"Massive activations in {result['model']['name']}"
    # What goes beyond the window could not be read on a laptop.
    assert page.evaluate("document.body.scrollWidth <= window.innerWidth")
    assert page.evaluate("document.querySelectorAll('[data-title*=hare i]').length") == 0
    assert [url for url in page.requests if not url.startswith(("data:", "blob:"))] == [
        path.as_uri()
    ]
    assert page.complaints == []


@pytest.mark.browser
def test_surface_is_drawn_and_follows_the_slider(browser, tmp_path):
    page = open_page(browser, write(examples.strict_found(), tmp_path))
    assert page.evaluate(INK) > 5000
    tallest = "Math.max(...document.getElementById('activation-map').data[0].z.flat())"
    names = "document.getElementById('activation-map').data[1].text"
    assert page.evaluate(tallest) == pytest.approx(24926, rel=1e-3)
    assert page.evaluate(names) == ["dim 507"]
    move = """(() => { const s = document.getElementById('activation-map-layer'); s.value = %d;
      s.dispatchEvent(new Event('input')); return s.value; })()"""
    page.evaluate(move % 0)
    assert page.evaluate(tallest) < 10 and page.evaluate(names) == []
    assert page.evaluate("document.getElementById('activation-map-shown').value") == "0"
    page.evaluate(move % 20)
    assert sorted(page.evaluate(names)) == ["dim 308", "dim 507"]
    page.evaluate("document.getElementById('activation-map-log').click()")
    kind = "document.getElementById('activation-map')._fullLayout.scene.zaxis.type"
    page.wait_for(f"{kind} === 'log'")
    assert page.complaints == []


@pytest.mark.browser
def test_of_two_dimensions_in_one_bin_the_larger_is_named(browser, tmp_path):
    result = examples.strict_found()
    # Dim 505 shares the bin of dim 507 (dims 504 to 507); it stands alone at layers 5 to 10.
    beside = examples.massive(505, 300.0, 5, 20, 30)
    result["massive"].insert(0, beside)
    result["prompt"]["massive"].insert(0, (0, 505))
    page = open_page(browser, write(result, tmp_path))
    named = """((layer) => { const s = document.getElementById('activation-map-layer');
      s.value = layer; s.dispatchEvent(new Event('input'));
      return document.getElementById('activation-map').data[1].text; })"""
    assert page.evaluate(f"{named}(11)") == ["dim 507"]
    assert page.evaluate(f"{named}(7)") == ["dim 505"]
    assert page.complaints == []


@pytest.mark.browser
def test_a_marked_token_tells_its_dimension(browser, tmp_path):
    page = open_page(browser, write(examples.nasty(), tmp_path))
    page.evaluate("document.querySelector('.prompt mark').focus()")
    shown = page.evaluate("document.getElementById('tip').innerText")
    assert "dim 5: 3,000 at layer 1" in shown and "dim 9: 900" in shown
    assert page.evaluate("getComputedStyle(document.getElementById('tip')).display") == "block"


@pytest.mark.browser
def test_the_browser_itself_refuses_the_network(browser, tmp_path):
    page = open_page(browser, write(examples.none_found(), tmp_path))
    outcome = page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')")
    assert outcome == "refused"
    assert any("Content Security Policy" in c for c in page.complaints)
