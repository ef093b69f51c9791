"""The bench without a browser: set a control, press a button, look at what is drawn."""

from __future__ import annotations

import asyncio
import base64
import html
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ipywidgets")

import workbench as wb  # noqa: E402
from workbench.demo import weights_digest  # noqa: E402
from workbench.plots.theme import template  # noqa: E402
from workbench.widgets import EditBench  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_page")


@pytest.fixture
def bench(tiny: wb.ModelView, monkeypatch: Any, tmp_path: Path) -> Any:
    for module in ("resuming", "keeping"):
        monkeypatch.setattr(f"workbench.session.{module}.cache_dir", lambda name: tmp_path / name)
    yield EditBench(tiny, facts=wb.datasets.tiny(limit=1), autosave=True)
    tiny.reset()


def said(panel: Any) -> str:
    """A panel's message without markup."""
    return html.unescape(re.sub(r"<[^>]*>", "", panel.message.value))


def preview(bench: Any, *, accept: bool = False) -> None:
    bench.fact.preview.click()
    if accept:
        bench.fact.accept.click()


def bars(bench: Any) -> dict[str, dict[str, float]]:
    """Series → token → probability, as drawn."""
    figure = bench.answers.area.figure
    tokens = [re.sub(r" <b>.*", "", t) for t in figure.layout.yaxis.ticktext]
    return {t.name: dict(zip(tokens, t.x, strict=True)) for t in figure.data}


# -------------------------------------------------------------------- edit, see, undo


def test_it_opens_with_a_fact_and_the_models_answer(bench: Any) -> None:
    request = wb.datasets.tiny(limit=1)[0].request
    assert bench.fact.prompt.value == request.text
    assert "last token of the subject" in bench.fact.shown.value
    wanted = wb.next_tokens(bench.session.view, request.text, top_k=1)
    drawn = bars(bench)["before"]
    assert max(drawn, key=lambda t: drawn[t]) == wanted["token"][0].strip()
    assert drawn[wanted["token"][0].strip()] == pytest.approx(wanted["prob"][0])
    assert bench.where.value == "tiny · unedited"
    assert bench.fact.accept.disabled and bench.fact.discard.disabled


def test_a_preview_draws_both_sides_and_changes_nothing(bench: Any) -> None:
    view, request = bench.session.view, bench.session.request
    before = weights_digest(view)
    preview(bench)
    assert weights_digest(view) == before and "preview of ROME" in bench.where.value
    assert said(bench.fact).startswith("took: ")
    with view.applied(bench.session.preview):
        wanted = wb.next_tokens(view, request.text, pin=[request.target_new])
    drawn = bars(bench)["after"]
    for row in wanted.head(3).itertuples():
        assert drawn[row.token.strip()] == pytest.approx(row.prob)
    assert any("(target)" in t for t in bench.answers.area.figure.layout.yaxis.ticktext)
    bench.fact.discard.click()
    assert "unedited" in bench.where.value and set(bars(bench)) == {"before"}


def test_accept_undo_and_redo_move_the_model_and_the_page(bench: Any) -> None:
    view, before = bench.session.view, weights_digest(bench.session.view)
    preview(bench, accept=True)
    assert bench.where.value == "tiny · 1 edit" and weights_digest(view) != before
    timeline = bench.show("timeline")
    timeline.undo.click()
    assert weights_digest(view) == before and timeline.undo.disabled
    assert "Undone: ROME" in said(timeline)
    timeline.redo.click()
    assert bench.where.value == "tiny · 1 edit" and timeline.redo.disabled


def test_the_slider_scrubs_through_time(bench: Any) -> None:
    preview(bench, accept=True)
    timeline = bench.show("timeline")
    timeline.slider.value = 0
    assert "after 0" in bench.where.value and timeline.slider.max == 1
    drawn = bars(bench)
    assert drawn["before"] == pytest.approx(drawn["after"])
    timeline.slider.value = 1
    assert bench.where.value == "tiny · 1 edit"


def test_any_other_prompt_can_be_asked(bench: Any) -> None:
    bench.answers.other.value = "Klara Farnfeld works as a"
    assert "Klara Farnfeld" in bench.answers.area.figure.layout.title.subtitle.text
    wanted = wb.next_tokens(bench.session.view, "Klara Farnfeld works as a", top_k=1)
    assert bars(bench)["before"][wanted["token"][0].strip()] == pytest.approx(wanted["prob"][0])


# -------------------------------------------------------------------- what can go wrong


def test_mistakes_are_sentences_where_they_were_made(bench: Any) -> None:
    bench.fact.target_new.value = ""
    bench.fact.preview.click()
    assert "target_new" in said(bench.fact) and "role='alert'" in bench.fact.message.value
    bench.fact.target_new.value = "Beacon"
    bench.fact.subject.value = "Nobody"
    bench.fact.preview.click()
    assert "does not occur" in said(bench.fact)
    trace = bench.show("trace")
    trace.run()
    assert "does not occur" in said(trace) and trace.found is None, "another fact was traced"
    bench.fact.subject.value = "Milan Caldberg"
    files = bench.show("files")
    for press, words in ((files.save, "file name"), (files.load_file, "file name")):
        press()
        assert words in said(files)
    files.path.value = "/nowhere/edit.safetensors"
    files.load_file()
    assert said(files) and not bench.session.view.stack
    bench.show("compare").editors.value = ("ROME",)
    bench.panel("compare").run()
    assert "at least two" in said(bench.panel("compare"))


def test_an_unexpected_error_is_told_with_its_trace(bench: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(bench.session, "dry_run", lambda: 1 / 0)
    bench.fact.preview.click()
    assert "ZeroDivisionError" in said(bench.fact) and "<details>" in bench.fact.message.value
    assert not bench.fact.preview.disabled and bench.jobs.current is None


def test_a_panel_that_fails_leaves_the_others_alone(bench: Any, monkeypatch: Any) -> None:
    receipt = bench.show("receipt")
    monkeypatch.setattr(bench.looker, "receipt", lambda: 1 / 0)
    preview(bench)
    assert "ZeroDivisionError" in said(receipt) and "after" in bars(bench)


def test_a_drawing_that_fails_is_told_once_and_recovers(bench: Any, monkeypatch: Any) -> None:
    draw, tries = bench.answers.draw, []

    def broken(found: Any) -> None:
        tries.append(1)
        raise ValueError("ink")

    monkeypatch.setattr(bench.answers, "draw", broken)
    bench.redraw()
    assert len(tries) == 1 and "ink" in said(bench.answers)
    monkeypatch.setattr(bench.answers, "draw", draw)
    bench.redraw()
    assert not said(bench.answers), "what went wrong before is no longer so"


def test_markup_in_prompts_is_shown_not_obeyed(bench: Any) -> None:
    preview(bench, accept=True)
    bench.fact.prompt.value = "<img src=x onerror=alert(1)> Klara is " + "word " * 600
    moved = bench.show("moved")
    assert "&lt;img" in moved.words.value and "<img" not in moved.words.value


def test_warnings_reach_the_panel(bench: Any) -> None:
    preview(bench, accept=True)
    preview(bench, accept=True)
    assert "already" in said(bench.fact)


# -------------------------------------------------------------------- panels


def test_options_are_explained_and_changed(bench: Any) -> None:
    editor = bench.editor
    meanings = " ".join(r.children[1].value for r in editor.rows.children)
    assert "learning rate" in meanings and "<code>r-rome</code>" in meanings
    assert "`" not in meanings
    editor.fields["steps"].value = "3"
    editor.take.click()
    assert bench.session.editor.steps == 3 and type(bench.session.editor) is wb.ROME
    editor.fields["clamp"].value = "2.5"
    editor.take.click()
    assert (bench.session.editor.steps, bench.session.editor.clamp) == (3, 2.5)
    editor.fields["steps"].value = "many"
    editor.take.click()
    bench.fact.preview.click()
    assert "steps='many'" in said(bench.fact)
    editor.editor.value = "MEMIT"
    assert type(bench.session.editor) is wb.MEMIT and "clamp" in editor.fields
    assert "mlp" in editor.about.value


def test_typed_options_are_kept_and_used_by_a_preview(bench: Any) -> None:
    bench.editor.fields["steps"].value = "3"
    bench.show("moved")
    assert bench.editor.fields["steps"].value == "3", "a redraw wiped what was typed"
    preview(bench)
    assert bench.session.preview.config["steps"] == 3
    trace = bench.show("trace")
    trace.samples.value = 1
    trace.run()
    trace.edit_here()
    assert bench.session.editor.steps == 3, "the other options are gone"


def test_results_keep_the_label_of_the_state_they_speak_of(bench: Any) -> None:
    preview(bench, accept=True)
    trace = bench.show("trace")
    trace.samples.value = 1
    trace.run()
    receipt = bench.show("receipt")
    assert "entry 0 of the stack" in receipt.verdict.value and "trial" not in receipt.verdict.value
    bench.show("timeline").take_back()
    bench.show("trace")
    assert "tiny · 1 edit" in trace.area.figure.layout.title.subtitle.text
    assert receipt.area.figure not in bench.figures(), "the receipt of an undone edit is exported"
    assert trace.area.figure in bench.figures()


def test_side_effects_are_those_of_the_facts_on_the_desk(bench: Any) -> None:
    first, second = wb.datasets.tiny(limit=2)
    preview(bench, accept=True)
    effects = bench.show("effects")
    assert first.request.subject in effects.table.value
    bench.session.take(wb.EditCase(request=second.request, probes=second.probes, case_id=0))
    bench.redraw()
    assert second.request.subject in effects.table.value
    assert first.request.subject not in effects.table.value


def test_a_stack_shrunk_by_code_is_followed(bench: Any) -> None:
    preview(bench, accept=True)
    preview(bench, accept=True)
    bench.show("timeline").slider.value = 1
    bench.session.view.reset()
    bench.show("receipt")
    bench.redraw()
    assert "unedited" in bench.where.value and not said(bench.panel("receipt"))


def test_a_stream_writes_more_facts_and_not_those_it_has(bench: Any) -> None:
    bench.editor.editor.value = "FT"
    preview(bench, accept=True)
    stream = bench.show("stream")
    stream.count.value = 2
    stream.start.click()
    stream.start.click()
    subjects = [e.requests[0].subject for e in bench.session.view.stack]
    assert subjects == [c.request.subject for c in wb.datasets.tiny(limit=5)]


def test_a_stopped_stream_does_not_lock_itself_out(bench: Any) -> None:
    bench.editor.editor.value = "FT"
    stream = bench.show("stream")
    stream.count.value = 6
    stream._reader = lambda out: lambda step: stream.end() if step.batch == 2 else None
    stream.start.click()
    assert len(bench.session.view.stack) == 2
    del stream._reader
    bench.show("timeline").take_back()
    stream.start.click()
    assert len(bench.session.view.stack) == 7 and "6 facts written" in said(stream)


def test_every_tab_draws_an_edit(bench: Any) -> None:
    preview(bench, accept=True)
    for name, figures in (("receipt", 1), ("moved", 3), ("effects", 1)):
        panel = bench.show(name)
        drawn = panel.figures()
        assert len(drawn) == figures and not said(panel), name
        for figure in drawn:
            assert "tiny · 1 edit" in figure.layout.title.subtitle.text
            assert figure.layout.meta["alt"]
    assert "took" in bench.panel("receipt").verdict.value


def test_free_prompts_are_watched(bench: Any) -> None:
    preview(bench)
    effects = bench.show("effects")
    effects.prompts.value = "Klara Farnfeld works as a\n\nThe town of"
    bench.redraw()
    assert "The town of" in effects.table.value and "Klara Farnfeld" in effects.table.value


def test_the_threshold_slider_moves_the_gate(bench: Any) -> None:
    bench.editor.editor.value = "CoachHook"
    preview(bench, accept=True)
    hooks = bench.show("hooks")
    own = len(hooks.live.layout.shapes)
    assert 0 < own == int(hooks.table["open"].sum()) and "The edit is used at" in hooks.words.value
    hooks.alpha.value = -3.0
    assert len(hooks.live.layout.shapes) == int((hooks.table["z"] >= -3).sum()) > own
    assert "would be used" in hooks.words.value
    hooks.alpha.value = 8.0
    assert not hooks.live.layout.shapes and "none" in hooks.words.value


def test_the_memory_says_which_entry_answers(bench: Any) -> None:
    memory = bench.show("codebook")
    assert "GRACE makes one" in memory.table.value
    bench.editor.editor.value = "GRACE"
    bench.fact.limit.value = 3
    bench.fact.take_source()
    preview(bench, accept=True)
    memory.prompts.value = "Klara Farnfeld works as a"
    bench.redraw()
    wanted = wb.nearest_entries(bench.session.view, bench.session.request.text)
    assert wanted["fires"].all() and wanted["made_for"][0] in memory.table.value
    assert "Klara Farnfeld" in memory.table.value and len(memory.figures()) == 2
    assert "No hook layer" in bench.show("hooks").words.value
    bench.show("timeline").take_back()
    assert "GRACE makes one" in bench.show("codebook").table.value and not memory.figures()


def test_many_facts_are_pasted_or_loaded(bench: Any, tmp_path: Path) -> None:
    bench.fact.text.value = "The home of {Klara Farnfeld} is -> Rome\n{Bo Ek} plays the -> cello"
    bench.fact.take_lines()
    assert len(bench.session.cases) == 2 and bench.fact.prompt.value.startswith("The home of Klara")
    bench.fact.text.value = "what is this"
    bench.fact.take_lines()
    assert "line 1" in said(bench.fact) and len(bench.session.cases) == 2
    lines = tmp_path / "facts.txt"
    lines.write_text("The home of {Klara Farnfeld} is -> Rome\n{Bo Ek} plays the -> cello\n")
    bench.fact.source.value, bench.fact.path.value = "a file", str(lines)
    bench.fact.take_source()
    assert "2 facts" in said(bench.fact)
    bench.fact.source.value = "the shipped facts"
    bench.fact.limit.value = 4
    bench.fact.take_source()
    assert len(bench.session.cases) == 4 and "4 facts" in said(bench.fact)
    assert bench.fact.listed.value.count("<tr>") == 5


def test_a_typed_prompt_proposes_its_subject(bench: Any) -> None:
    bench.fact.prompt.value = "the sky is"
    assert bench.fact.subject.value == ""
    bench.fact.prompt.value = "The mother tongue of Danielle Darrieux is"
    assert bench.fact.subject.value == "Danielle Darrieux"
    assert bench.session.request.subject == "Danielle Darrieux"


def test_a_stream_grows_its_curve_stops_and_goes_on(bench: Any) -> None:
    stream = bench.show("stream")
    bench.editor.editor.value = "FT"
    stream.count.value = 8
    lengths: list[int] = []
    grow = stream._grow

    def watched() -> None:
        grow()
        if stream.live is not None:
            lengths.append(max(len(t.x) for t in stream.live.data if t.x is not None))
            if len(lengths) == 1:
                stream.end()

    stream._grow = watched
    stream.start.click()
    assert "stopped by hand" in said(stream) and 0 < len(bench.session.view.stack) < 8
    stream._grow = grow
    stream.start.click()
    assert len(bench.session.view.stack) == 8 and "8 facts written" in said(stream)
    assert stream.live.layout.xaxis.range == (0, 8)
    assert max(len(t.x) for t in stream.live.data if t.x is not None) >= max(lengths)
    assert stream.fates.figure is not None and not stream.start.disabled and stream.stop.disabled


def test_editors_are_compared_on_the_same_facts(bench: Any) -> None:
    compare = bench.show("compare")
    compare.run()
    assert [a.figure is not None for a in compare.areas] == [True, True]
    assert "ROME" in compare.table.value and not bench.session.view.stack


def test_a_trace_points_to_a_layer_and_the_editor_takes_it(bench: Any) -> None:
    trace = bench.show("trace")
    trace.samples.value = 2
    trace.run()
    figure = trace.area.figure
    assert np.asarray(figure.data[0].z).shape[1] == bench.session.view.n_layers
    trace.here.click()
    assert bench.session.editor.layers == (wb.edit_site(trace.found),)
    trace.kind.value = "MLPs"
    assert trace.area.figure is not figure


def test_edits_are_saved_loaded_and_reported(bench: Any, tmp_path: Path) -> None:
    preview(bench, accept=True)
    files, edit = bench.show("files"), bench.session.view.stack[0]
    files.path.value = str(tmp_path / "one.safetensors")
    files.save()
    bench.session.view.reset()
    files.show_file()
    assert "1 edit for tiny (fingerprint" in said(files) and edit.requests[0].text in said(files)
    assert not bench.session.view.stack
    files.load_file()
    assert bench.session.view.stack[0].id == edit.id and bench.where.value == "tiny · 1 edit"
    assert "Loaded 1 edit." in said(files) and "conflict" not in said(files)
    rival = replace(edit, requests=(replace(edit.requests[0], target_new="Lantern"),))
    rival.save(tmp_path / "one.safetensors")
    files.load_file()
    assert "1 × other target" in said(files) and len(bench.session.view.stack) == 2
    files.report.value = str(tmp_path / "report.html")
    files.export()
    assert edit.id in (tmp_path / "report.html").read_text()


# -------------------------------------------------------------------- the page


def test_figures_follow_the_theme(bench: Any) -> None:
    preview(bench)
    bench._probe.theme = "dark"
    paper = template("dark").layout.paper_bgcolor
    assert bench.answers.area.figure.layout.template.layout.paper_bgcolor == paper
    assert "after" in bars(bench), "only the look changes"


def test_another_model_begins_anew(bench: Any, tmp_path: Path) -> None:
    preview(bench, accept=True)
    view = bench.session.view
    bench.model.value = str(tmp_path / "nothing")
    assert said(bench.editor) and bench.session.view is view
    assert bench.model.value == "tiny", "the field says which model it is"
    view.save_pretrained(tmp_path / "other")
    bench.model.value = str(tmp_path / "other")
    assert bench.session.view is not view and not bench.session.view.stack
    assert "unedited" in bench.where.value


def test_without_a_page_it_is_words_a_table_and_a_picture(bench: Any, monkeypatch: Any) -> None:
    from workbench.plots import shown

    preview(bench, accept=True)
    monkeypatch.setenv("WORKBENCH_HEADLESS", "1")
    data = bench._repr_mimebundle_()
    assert data["text/plain"] == "EditBench: tiny · 1 edit" and "<table>" in data["text/html"]
    assert "application/vnd.jupyter.widget-view+json" not in data
    if shown.has_browser():
        assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    monkeypatch.setattr("workbench.widgets.bench.headless", lambda: False)
    live = bench._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in live and "text/html" in live


def test_the_page_stays_alive_while_an_edit_is_computed(tiny: wb.ModelView) -> None:
    async def page() -> None:
        bench = EditBench(tiny, facts=wb.datasets.tiny(limit=1))
        bench.fact.preview.click()
        assert bench.jobs.current is not None and not bench.halt.disabled
        bench.halt.click()
        await asyncio.wait_for(bench.jobs.finished(), 60)
        assert "was stopped" in said(bench.fact) and bench.session.preview is None
        assert bench.halt.disabled
        bench.fact.preview.click()
        await asyncio.wait_for(bench.jobs.finished(), 60)
        assert bench.session.preview is not None

    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, page()).result()


def test_a_session_that_ended_is_offered(bench: Any) -> None:
    """The model holds nothing, and something is kept: one click brings it back."""
    view, session = bench.session.view, bench.session
    assert bench.autosave and bench.earlier.offer.layout.display == "none"
    session.preview = session.editor.edit(view, session.cases)
    edit = session.accept()
    wanted = weights_digest(view)
    session._keeper.close()
    view.reset()
    again = EditBench(view, facts=wb.datasets.tiny(limit=2)[1], autosave=True)
    assert again.earlier.offer.layout.display == ""
    assert "1 edit, 20" in again.earlier.said.value
    again.earlier.restore()
    assert [e.id for e in view.stack] == [edit.id]
    assert weights_digest(view) == wanted and "Restored 1" in said(again.earlier)
    assert again.earlier.offer.layout.display == "none"
    assert again.fact.prompt.value == session.cases[0].request.text
    again.session._keeper.close()
    view.reset()
    third = EditBench(view, facts=wb.datasets.tiny(limit=1), autosave=True)
    third.earlier.forget_it()
    assert third.session.earlier() == [] and third.earlier.offer.layout.display == "none"
