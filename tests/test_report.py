"""Reports: one file, no requests to the outside, readable without scripts, nothing unescaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from browsers import rendered

from workbench import plots
from workbench.errors import StorageError
from workbench.report import MAX_ROWS, Report

TOKENS = pd.DataFrame({"token": [" French", "</script><b>"], "prob": [0.57, 0.1]})
NASTY = '<img src="https://example.org/x.png" onerror="alert(1)">'


class _Page(HTMLParser):
    """Tags and the addresses in their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "data", "action", "srcset")]


def _report() -> Report:
    return (
        Report(f"One fact {NASTY}")
        .heading(NASTY)
        .text(f"First.\n\n{NASTY}")
        .table(TOKENS.assign(note=[None, NASTY]), caption=NASTY)
        .figure(plots.plot_next_tokens(TOKENS, title="Tokens"))
        .figure(plots.plot_drift(pd.DataFrame({"layer": [0, 1], "relative": [0.0, 0.25]})))
        .code(NASTY)
    )


def test_a_page_asks_for_nothing_and_escapes_everything():
    text = _report().html()
    page = _Page(text)
    assert page.addresses == []
    assert "img" not in page.tags and "default-src 'none'" in text
    assert text.count("plotly.js v") == 1
    assert page.tags.count("figure") == 2 and page.tags.count("noscript") == 2
    assert len(text.encode()) < 6_000_000


def test_numbers_are_there_without_scripts():
    bare = re.sub(r"<script.*?</script>", "", _report().html(), flags=re.DOTALL)
    assert '<th scope="col" class="number">prob</th>' in bare
    assert "0.57" in bare and "0.25" in bare and "<td>–</td>" in bare
    assert "Change of the weights per layer: 1 of 2 layers moved" in bare
    assert bare.count("<caption>") == 3


def test_without_figures_no_script_is_carried():
    text = Report("Words").text("only").html()
    assert "script" not in _Page(text).tags and len(text) < 5000


def test_long_tables_are_cut_and_counted():
    text = Report("Long").table(pd.DataFrame({"n": range(MAX_ROWS + 7)}), caption="many").html()
    assert "and 7 more rows" in text and text.count("<tr>") == MAX_ROWS + 1


@pytest.mark.parametrize(("dark", "paper"), [(False, "255, 255, 255"), (True, "22, 24, 28")])
def test_a_browser_without_a_network_draws_the_figures(tmp_path, dark, paper):
    page = _report().save(tmp_path / "report.html")
    document = rendered(page, dark=dark)
    assert document.count('class="wb-figure js-plotly-plot"') == 2
    assert document.count("barlayer") >= 2 and "0.57" in document
    assert f"background: rgb({paper})" in document


def test_a_failed_write_is_a_storage_error_and_leaves_nothing(tmp_path):
    folder = tmp_path / "report.html"
    folder.mkdir()
    with pytest.raises(StorageError, match="report.html"):
        Report("x").save(folder)
    assert list(tmp_path.iterdir()) == [folder]
