"""A page as a browser sees it, where there is one."""

from pathlib import Path

import headless


def check_page(browser: headless.Browser | None, path: Path, *, charts: int) -> None:
    """Asserts that the page has so many charts, draws all of them, and asks the network nothing."""
    text = path.read_text(encoding="utf-8")
    assert text.count('class="chart"') == charts
    if browser is None:
        return
    page = browser.open(path)
    page.wait_for("document.documentElement.dataset.drawn === 'true'")
    drawn = page.evaluate("document.querySelectorAll('.chart.js-plotly-plot').length")
    assert drawn == charts
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
    browser.close_pages()
