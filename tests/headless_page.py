"""A page as a browser sees it, where there is one."""

import tempfile
from pathlib import Path

import headless


def check_page(path: Path, *, charts: int) -> None:
    """Asserts that the page has so many charts, draws all of them, and asks the network nothing."""
    text = path.read_text(encoding="utf-8")
    assert text.count('class="chart"') == charts
    executable = headless.find()
    if executable is None:
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = headless.Browser(executable, Path(profile))
        try:
            page = browser.open(path)
            page.wait_for("document.documentElement.dataset.drawn === 'true'")
            drawn = page.evaluate("document.querySelectorAll('.chart.js-plotly-plot').length")
            assert drawn == charts
            assert page.complaints == []
            assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
        finally:
            browser.close()
