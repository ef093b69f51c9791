"""Scores against the plain computation, protocols, references, summaries, texts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from workbench import datasets, metrics
from workbench.edits import Delta, WeightEdit
from workbench.errors import DataError, EditMismatchError, OptionError, RequestError
from workbench.facts import EditCase, EditRequest, Probe
from workbench.metrics import forward, scoring
from workbench.metrics.generation import starts_with, word_f1
from workbench.metrics.plan import Query, assemble, make_plan
from workbench.model import ModelView

GOLDEN = Path(__file__).parent / "golden" / "counterfact_metrics.json"


def case(case_id: int, subject: str, new: str, true: str, near: str = "Bo") -> EditCase:
    request = EditRequest(
        prompt="{} was born in", subject=subject, target_new=new, target_true=true
    )
    probes = [
        Probe(prompt=request.text, target=new, foil=true),
        Probe(prompt=f"The home of {subject} is", target=new, foil=true, kind="paraphrase"),
        Probe(prompt=f"{near} was born in", target=true, foil=new, kind="neighborhood"),
        Probe(prompt=f"{near} plays the", target="violin", kind="locality"),
    ]
    return EditCase(request=request, probes=tuple(probes), case_id=case_id)


CASES = [
    case(0, "Anna", "Oslo", "Vienna"),
    case(1, "Danielle Darrieux", "Sao Paulo in the south", "Rome", near="LeBron James"),
    case(2, "The old house", "Germany", "Italy and France"),
]


@torch.no_grad()
def plain_nll(view: ModelView, prompt: str, completion: str) -> tuple[float, list[bool]]:
    """One text at a time, no padding, all logits."""
    before = view.tokenizer(prompt)["input_ids"]
    ids = view.tokenizer(f"{prompt} {completion}")["input_ids"]
    assert ids[: len(before)] == before
    logits = view.model(input_ids=torch.tensor([ids]).to(view.device)).logits[0].double()
    log_probs = logits.log_softmax(-1)
    spans = range(len(before), len(ids))
    nll = -sum(float(log_probs[i - 1, ids[i]]) for i in spans) / len(spans)
    return nll, [int(logits[i - 1].argmax()) == ids[i] for i in spans]


def change(view: ModelView, scale: float = 0.3, parameter: str | None = None) -> WeightEdit:
    """A random rank-1 edit."""
    name = parameter or view.weight_name(1)
    rows, columns = view._weights.oriented(name).shape
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, 1, generator=generator) * scale
    right = torch.randn(columns, 1, generator=generator)
    return WeightEdit(
        base=view.fingerprint,
        editor="test",
        config={},
        requests=(CASES[0].request,),
        deltas=(Delta.low_rank(name, left, right),),
    )


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gemma2", "bloom"])
@pytest.mark.parametrize("batch_tokens", [1, 40, None])
def test_score_equals_the_plain_computation(
    make_view: Any, family: str, batch_tokens: int | None
) -> None:
    view = make_view(family)
    table = metrics.score(view, CASES, batch_tokens=batch_tokens)
    assert len(table) == 12
    for row in table.itertuples():
        nll, correct = plain_nll(view, row.prompt, row.target)
        assert row.nll_target == pytest.approx(nll, abs=2e-5)
        assert row.token_accuracy == sum(correct) / len(correct) and row.exact == all(correct)
        if row.foil is None or row.foil != row.foil:
            assert math.isnan(row.nll_foil) and row.success == row.exact
        else:
            foil, _ = plain_nll(view, row.prompt, row.foil)
            assert row.nll_foil == pytest.approx(foil, abs=2e-5)
            assert row.success == (nll < foil)


def test_full_logits_give_the_same_scores(make_view: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    view = make_view("llama")
    table = metrics.score(view, CASES)
    monkeypatch.setattr(forward, "READOUT_ELEMENTS", 1)
    pd.testing.assert_frame_equal(metrics.score(view, CASES), table, rtol=1e-5)
    view.capabilities = replace(view.capabilities, readout=False)
    pd.testing.assert_frame_equal(metrics.score(view, CASES), table, rtol=1e-5)


def test_rows_are_shared(make_view: Any) -> None:
    """One-token candidates of a prompt need its row alone, longer ones swallow it."""
    view = make_view("llama")
    short = [
        t for t in "abcdefghijklmnopqrstuvwxyz" if len(view.tokenizer(f" {t}")["input_ids"]) == 1
    ]
    letters = [("Anna was born in", t) for t in short[:6]]
    plan = make_plan(view, letters)
    assert len(plan.rows) == 1 and len(plan.spots) == 1 and len(plan.cell_label) == 6
    longer = make_plan(view, [*letters, ("Anna was born in", "a house that is old")])
    assert len(longer.rows) == 1
    assert longer.first_spots == [longer.first_spots[0]] * 7


def test_merging_finds_every_row_that_begins_another() -> None:
    rows = [(1,), (1, 2), (1, 2, 3), (1, 3), (2, 2), (2,), (1, 2, 3, 4), (12,)]
    queries = [Query((row,), (len(row) - 1,), (0,)) for row in rows]
    plan = assemble(queries, merge=True)
    assert {row[0] for row in plan.rows} == {(1, 2, 3, 4), (1, 3), (2, 2), (12,)}
    for query, spot in zip(queries, plan.first_spots, strict=True):
        row, position = plan.spots[spot].tolist()
        assert plan.rows[row][0][: position + 1] == query.row[0]
    assert len(assemble(queries).rows) == len(rows)


def test_equal_candidates_do_not_succeed(make_view: Any) -> None:
    """O23: with a uniform model every candidate ties, and success is strict."""
    view = make_view("gpt2")
    with torch.no_grad():
        view.model.get_output_embeddings().weight.zero_()
    table = metrics.score(view, CASES, kinds=["efficacy", "neighborhood"])
    np.testing.assert_allclose(table["nll_target"], math.log(len(view.tokenizer)), rtol=1e-6)
    np.testing.assert_allclose(table["nll_foil"], table["nll_target"], atol=1e-12)
    assert not table["success"].any()
    assert metrics.summary(table).loc["efficacy", "magnitude"] == pytest.approx(0, abs=1e-12)


def test_zsre_accuracy_equals_one_sequence_per_token(make_view: Any) -> None:
    """O23: a single teacher-forced pass equals MEMIT's one prompt per target token."""
    view = make_view("llama")
    table = metrics.score(view, CASES, protocol="zsre")
    for row in table.itertuples():
        start = len(view.tokenizer(row.prompt)["input_ids"])
        ids = view.tokenizer(f"{row.prompt} {row.target}")["input_ids"]
        hits = []
        for i in range(start, len(ids)):
            logits = view.model(input_ids=torch.tensor([ids[:i]])).logits[0, -1]
            hits.append(int(logits.argmax()) == ids[i])
        assert row.value == sum(hits) / len(hits) and row.measure == "token_accuracy"
    view.model.get_output_embeddings().weight.data[:] = 0
    assert (metrics.score(view, CASES, protocol="zsre")["value"] <= 1).all()


def test_a_reference_measures_agreement_and_kl(make_view: Any) -> None:
    view = make_view("llama")
    before = metrics.reference(view, CASES)
    same = metrics.score(view, CASES, reference=before)
    assert (same["agrees"] == 1).all()
    guarded = same["kind"].isin(["neighborhood", "locality"])
    assert same["kl"].isna().equals(~guarded) and (same.loc[guarded, "kl"] < 1e-6).all()
    pristine = {p: logits_of(view, p) for p in same["prompt"]}
    with view.applied(change(view)):
        after = metrics.score(view, CASES, reference=before)
        for row in after[guarded].itertuples():
            now, was = logits_of(view, row.prompt), pristine[row.prompt]
            kl = float((was.exp() * (was - now)).sum())
            assert kl > 1e-4 and row.kl == pytest.approx(kl, rel=1e-3)
        again = metrics.score(view, CASES, reference=before.scores)
        assert list(again["agrees"]) == list(after["agrees"])
    assert after["agrees"].min() < 1
    for now, was, share in zip(after["predicted"], same["predicted"], after["agrees"], strict=True):
        pairs = list(zip(now.split(), was.split(), strict=True))
        assert share == sum(a == b for a, b in pairs) / len(pairs)
    assert metrics.median_kl(after) == after[after["kind"] == "neighborhood"]["kl"].median()


@torch.no_grad()
def logits_of(view: ModelView, prompt: str) -> torch.Tensor:
    ids = torch.tensor([view.tokenizer(prompt)["input_ids"]])
    return view.model(input_ids=ids).logits[0, -1].double().log_softmax(-1)


def test_kl_uses_the_unedited_head(make_view: Any) -> None:
    view = make_view("llama")
    before = metrics.reference(view, CASES)
    was = logits_of(view, "Bo was born in")
    with view.applied(change(view, 0.05, "lm_head.weight")):
        after = metrics.score(view, CASES, reference=before)
        now = logits_of(view, "Bo was born in")
    kl = float((was.exp() * (was - now)).sum())
    found = after[(after["prompt"] == "Bo was born in") & (after["kind"] == "neighborhood")]["kl"]
    assert found.iloc[0] == pytest.approx(kl, rel=1e-3)


def test_reference_is_pristine_on_an_edited_view(make_view: Any) -> None:
    view = make_view("gpt2")
    clean = metrics.score(view, CASES)
    view.push(change(view))
    before = metrics.reference(view, CASES)
    pd.testing.assert_frame_equal(before.scores, clean[before.scores.columns])
    easy = metrics.score(view, CASES, protocol="easyedit")
    local = easy["kind"].isin(["locality", "neighborhood"])
    assert set(easy.loc[local, "measure"]) == {"agreement"}
    assert list(easy.loc[local, "value"]) == list(easy.loc[local, "agrees"])
    assert list(easy.loc[~local, "value"]) == list(easy.loc[~local, "token_accuracy"])
    assert len(view.stack) == 1


def test_references_of_others_are_refused(make_view: Any) -> None:
    view = make_view("gpt2")
    before = metrics.reference(view, CASES[:1])
    with pytest.raises(OptionError, match="lacks 7 of 12 probes"):
        metrics.score(view, CASES, reference=before)
    with pytest.raises(EditMismatchError):
        metrics.score(make_view("gpt2", seed=1), CASES[:1], reference=before)
    with pytest.raises(DataError, match="predicted"):
        metrics.score(view, CASES, reference=pd.DataFrame({"prompt": [], "target": []}))
    with pytest.raises(OptionError, match="dict"):
        metrics.score(view, CASES, reference={})  # type: ignore[arg-type]


def test_score_refuses_bad_arguments(make_view: Any) -> None:
    view = make_view("gpt2")
    with pytest.raises(OptionError, match="Did you mean 'zsre'"):
        metrics.score(view, CASES, protocol="zrse")
    with pytest.raises(OptionError, match="Did you mean 'efficacy'"):
        metrics.score(view, CASES, kinds=["eficacy"])
    with pytest.raises(OptionError, match="no probe"):
        metrics.score(view, CASES, kinds=["holdout"])
    with pytest.raises(OptionError, match="batch_tokens=0"):
        metrics.score(view, CASES, batch_tokens=0)
    with pytest.raises(RequestError, match="str"):
        metrics.score(view, ["text"])  # type: ignore[list-item]
    long = EditRequest(prompt="word " * 500, target_new="Oslo")
    with pytest.raises(RequestError, match="too long"):
        metrics.score(view, long)


def test_a_bare_request_is_judged_on_its_prompt(make_view: Any) -> None:
    table = metrics.score(make_view("gpt2"), CASES[0].request)
    assert list(table["kind"]) == ["efficacy"] and list(table["foil"]) == ["Vienna"]


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_decoder_scores_equal_the_models_own_loss(make_view: Any, family: str) -> None:
    view = make_view(family)
    table = metrics.score(view, CASES, reference=metrics.reference(view, CASES))
    for row in table.itertuples():
        prompt = torch.tensor([view.tokenizer(row.prompt)["input_ids"]])
        labels = torch.tensor([view.tokenizer(text_target=row.target)["input_ids"]])
        with torch.no_grad():
            out = view.model(input_ids=prompt, labels=labels)
        assert row.nll_target == pytest.approx(float(out.loss), rel=5e-5)
        assert row.exact == bool((out.logits.argmax(-1) == labels).all())
    assert (table["kl"].dropna() < 1e-6).all() and table["kl"].notna().sum() == 6


def test_classifier_scores_are_over_labels(make_view: Any) -> None:
    view = make_view("bert")
    probes = (
        Probe(prompt="Anna was born in Vienna.", target="yes", foil="no"),
        Probe(prompt="Bo lives in Oslo and plays the violin.", target="unknown", kind="upstream"),
    )
    request = EditRequest(prompt="Anna was born in Vienna.", target_new="yes")
    asked = EditCase(request=request, probes=probes)
    table = metrics.score(view, asked, reference=metrics.reference(view, asked), generate=True)
    for row in table.itertuples():
        ids = torch.tensor([view.tokenizer(row.prompt)["input_ids"]])
        with torch.no_grad():
            log_probs = view.model(input_ids=ids).logits[0].log_softmax(-1)
        best = view.labels[int(log_probs.argmax())]
        assert row.nll_target == pytest.approx(-float(log_probs[view.labels.index(row.target)]))
        assert row.exact == (best == row.target) and row.generated == best
    wrong = EditRequest(prompt="Anna.", target_new="yess")
    with pytest.raises(RequestError, match="Did you mean 'yes'"):
        metrics.score(view, wrong)
    assert list(metrics.next_tokens(view, "Anna.", top_k=3)["rank"]) == [1, 2, 3]
    with pytest.raises(OptionError, match="classifier"):
        metrics.generate_text(view, ["Anna"])


def table_of(values: dict[tuple[int, str], list[bool]], foil: str | None = "x") -> pd.DataFrame:
    rows = [
        {"case_id": c, "kind": k, "success": v, "exact": v, "foil": foil}
        for (c, k), found in values.items()
        for v in found
    ]
    return pd.DataFrame(rows)


def test_summary_averages_prompts_then_records() -> None:
    table = table_of(
        {
            (0, "efficacy"): [True],
            (1, "efficacy"): [True],
            (0, "paraphrase"): [True, False, False, False],
            (1, "paraphrase"): [True],
            (0, "neighborhood"): [True, True],
            (1, "neighborhood"): [False, True],
        }
    )
    found = metrics.summary(table)
    assert list(found.index) == ["efficacy", "paraphrase", "neighborhood", "score"]
    assert found.loc["paraphrase", "success"] == pytest.approx((0.25 + 1) / 2)
    assert found.loc["paraphrase", "n"] == 2 and found.loc["paraphrase", "probes"] == 5
    expected = 3 / (1 / 1 + 1 / 0.625 + 1 / 0.75)
    assert found.loc["score", "success"] == pytest.approx(expected)
    assert (found["low"] <= found["success"]).all() and (found["success"] <= found["high"]).all()
    assert found.loc["efficacy", ["low", "high"]].tolist() == [1, 1]
    pd.testing.assert_frame_equal(found, metrics.summary(table))


def test_bootstrap_interval_is_that_of_a_proportion() -> None:
    values = {(i, "efficacy"): [i % 4 == 0] for i in range(400)}
    row = metrics.summary(table_of(values), resamples=4000).loc["efficacy"]
    half = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert row["low"] == pytest.approx(0.25 - half, abs=0.006)
    assert row["high"] == pytest.approx(0.25 + half, abs=0.006)


def test_combined_score_with_zeros_and_gaps() -> None:
    assert metrics.harmonic_mean([100, 100, 0]) == 0
    assert metrics.harmonic_mean([1, 1, 1]) == 1
    assert math.isnan(metrics.harmonic_mean([])) and math.isnan(
        metrics.harmonic_mean([1, math.nan])
    )
    zero = {(0, k): [k != "paraphrase"] for k in ("efficacy", "paraphrase", "neighborhood")}
    assert metrics.summary(table_of(zero)).loc["score", ["success", "high"]].tolist() == [0, 0]
    gap = metrics.summary(table_of({(0, "efficacy"): [True]}))
    assert math.isnan(gap.loc["score", "success"])
    local = {(0, k): [True] for k in ("efficacy", "paraphrase", "locality")}
    assert metrics.summary(table_of(local)).loc["score", "success"] == 1


def test_two_way_success_is_never_averaged_with_exact_match() -> None:
    both = pd.concat(
        [
            table_of({(0, "attribute"): [True, True]}),
            table_of({(0, "attribute"): [False]}, foil=None),
        ]
    )
    found = metrics.summary(both).loc["attribute"].set_index("measure")["success"]
    assert found.to_dict() == {"exact": 0.0, "two-way": 1.0}


def test_summary_of_several_runs_and_moments(tmp_path: Path) -> None:
    good = table_of({(0, "efficacy"): [True]})
    bad = table_of({(0, "efficacy"): [False]})
    for name, table in {"good": good, "bad": bad}.items():
        (tmp_path / name).mkdir()
        table.to_csv(tmp_path / name / "scores.csv", index=False)
    found = metrics.summary([tmp_path / "good", str(tmp_path / "bad")])
    assert found.loc["efficacy"].set_index("run")["success"].to_dict() == {"good": 1, "bad": 0}
    assert set(metrics.summary([good, bad])["run"]) == {"run 0", "run 1"}
    steps = pd.concat([good.assign(step=1), bad.assign(step=2)])
    assert metrics.summary(steps).loc["efficacy"].set_index("step")["success"].tolist() == [1, 0]
    assert "step" not in metrics.summary(steps, by="foil").columns
    with pytest.raises(OptionError, match="Did you mean 'foil'"):
        metrics.summary(good, by="foi")
    with pytest.raises(DataError, match="no table of scores"):
        metrics.summary(tmp_path)
    with pytest.raises(DataError, match="no column"):
        metrics.summary(pd.DataFrame({"a": [1]}))
    with pytest.raises(DataError, match="reference"):
        metrics.median_kl(good)


def test_scores_survive_a_file(make_view: Any, tmp_path: Path) -> None:
    view = make_view("gpt2")
    before = metrics.score(view, CASES)
    before.to_csv(tmp_path / "scores.csv", index=False)
    read = pd.read_csv(tmp_path / "scores.csv")
    pd.testing.assert_frame_equal(metrics.summary(read), metrics.summary(before))
    assert (metrics.score(view, CASES, reference=read)["agrees"] == 1).all()


def test_next_tokens(make_view: Any) -> None:
    view = make_view("llama")
    table = metrics.next_tokens(view, "Anna was born in", top_k=5, pin=["Vienna", "Oslo"])
    log_probs = logits_of(view, "Anna was born in")
    assert list(table.columns) == ["token", "prob", "rank", "token_id", "pinned"]
    assert list(table["rank"])[:5] == [1, 2, 3, 4, 5]
    assert table["token_id"].iloc[0] == int(log_probs.argmax())
    for row in table.itertuples():
        assert row.prob == pytest.approx(float(log_probs[row.token_id].exp()), rel=1e-4)
        assert row.rank == 1 + int((log_probs > log_probs[row.token_id]).sum())
    first = view.tokenizer("Anna was born in Vienna")["input_ids"]
    expected = first[len(view.tokenizer("Anna was born in")["input_ids"])]
    assert expected in set(table.loc[table["pinned"], "token_id"])
    with pytest.raises(OptionError):
        metrics.next_tokens(view, "Anna", top_k=0)


PROMPTS = ["Anna", "The capital of France is", "In 1969 people walked on the moon; it took 8"]


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_greedy_text_equals_one_step_at_a_time(make_view: Any, family: str) -> None:
    view = make_view(family)
    texts = metrics.generate_text(view, PROMPTS, max_new_tokens=6)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        ids = view.tokenizer(prompt)["input_ids"]
        start = len(ids)
        for _ in range(6):
            with torch.no_grad():
                best = int(view.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if best == view.tokenizer.eos_token_id:
                break
            ids = [*ids, best]
        assert text == view.tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_sampling_is_seeded_and_independent_of_the_batch(make_view: Any) -> None:
    view = make_view("gpt2")
    state = torch.get_rng_state()
    one = metrics.generate_text(view, PROMPTS, top_k=5, seed=3)
    assert one == metrics.generate_text(view, PROMPTS, top_k=5, seed=3, batch_size=1)
    assert one != metrics.generate_text(view, PROMPTS, top_k=5, seed=4)
    assert torch.equal(state, torch.get_rng_state())
    greedy = metrics.generate_text(view, PROMPTS)
    assert metrics.generate_text(view, PROMPTS, top_k=1, seed=9) == greedy
    with pytest.raises(OptionError, match="top_k=0"):
        metrics.generate_text(view, PROMPTS, top_k=0)


def test_sampling_has_the_right_frequencies(make_view: Any) -> None:
    view = make_view("gpt2")
    with torch.no_grad():
        view.model.get_output_embeddings().weight.mul_(0.05)  # nearly flat, not quite
    n = 1500
    texts = metrics.generate_text(
        view, ["Anna was born in"] * n, max_new_tokens=1, top_k=3, batch_size=n
    )
    top = metrics.next_tokens(view, "Anna was born in", top_k=3)
    share = top["prob"] / top["prob"].sum()
    for token, p in zip(top["token"], share, strict=True):
        assert texts.count(token) / n == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n))


def test_generation_columns(make_view: Any) -> None:
    view = make_view("llama")
    said = metrics.generate_text(view, ["Anna was born in"], max_new_tokens=9)[0]
    target = "".join(said.split()[:1]) or "x"
    asked = EditRequest(prompt="Anna was born in", target_new=target)
    row = metrics.score(view, asked, generate=9).iloc[0]
    assert row["generated"] == said
    assert row["generated_match"] == starts_with(said, target)
    assert starts_with(" Rome, Italy", "Rome") and not starts_with(" Romeo", "Rome")
    assert word_f1("new york city", "New York") == 1 and word_f1("a b", "b c") == 0.5
    assert word_f1("", "Rome") == 0


def test_perplexity_counts_scored_tokens_alone(make_view: Any) -> None:
    view = make_view("llama")
    texts = ["Anna was born in Vienna and works as a painter.", "Bo lives in Oslo.", ""]
    total, n = 0.0, 0
    for text in texts[:2]:
        ids = view.tokenizer(text)["input_ids"]
        with torch.no_grad():
            log_probs = view.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        total -= sum(float(log_probs[i - 1, ids[i]]) for i in range(1, len(ids)))
        n += len(ids) - 1
    assert metrics.perplexity(view, texts) == pytest.approx(math.exp(total / n), rel=1e-5)
    table = metrics.text_likelihoods(view, texts, batch_tokens=1)
    assert table["tokens"].sum() == n and list(table["text"]) == [0, 1]
    assert metrics.text_likelihoods(view, texts, max_tokens=5)["tokens"].sum() == 5


def test_perplexity_windows_score_every_token_once(make_view: Any) -> None:
    view = make_view("gpt2")
    text = "Anna was born in Vienna and works as a painter. " * 20
    ids = view.tokenizer(text)["input_ids"]
    assert len(ids) > 128
    for stride in (None, 1, 7):
        table = metrics.text_likelihoods(view, [text], window=16, stride=stride)
        assert table["tokens"].tolist() == [len(ids) - 1]
    with torch.no_grad():  # stride 1: every token past the first window sees 15 before it
        rows = torch.tensor([ids[i - 15 : i] for i in range(15, len(ids))])
        log_probs = view.model(input_ids=rows).logits[:, -1].double().log_softmax(-1)
        head = view.model(input_ids=torch.tensor([ids[:15]])).logits[0].double().log_softmax(-1)
    nll = -sum(float(log_probs[i - 15, ids[i]]) for i in range(15, len(ids)))
    nll -= sum(float(head[i - 1, ids[i]]) for i in range(1, 15))
    found = metrics.perplexity(view, [text], window=16, stride=1)
    assert found == pytest.approx(math.exp(nll / (len(ids) - 1)), rel=1e-4)
    for bad in ({"stride": 16, "window": 16}, {"window": 1}, {"window": 999}):
        with pytest.raises(OptionError):
            metrics.perplexity(view, [text], **bad)
    with pytest.raises(OptionError, match="no token"):
        metrics.perplexity(view, ["", " "])


def test_fluency_of_constant_and_varied_text() -> None:
    assert metrics.fluency(["no " * 50]) == 0
    assert metrics.ngram_entropy("a b c d e", 2) == 2.0
    four = "a b c d e f"  # 5 pairs, 4 triples, all different
    assert metrics.fluency([four]) == pytest.approx((math.log2(5) * 2 / 3 + 2 * 4 / 3) / 2)
    assert metrics.fluency(["no no no", four]) == pytest.approx(metrics.fluency([four]) / 2)
    assert metrics.fluency(["word"]) == 0
    with pytest.raises(OptionError):
        metrics.fluency([])


def test_consistency() -> None:
    pytest.importorskip("sklearn")
    references = ["She speaks French at home.", "French is a language."]
    assert metrics.consistency(references, references) == pytest.approx(1)
    assert metrics.consistency(["A violin"], references, corpus=[*references, "A violin"]) < 0.2
    near = metrics.consistency(["He speaks French"], references)
    assert near > metrics.consistency(["He plays basketball"], references)


def test_counterfact_scores_equal_the_reference_evaluators(
    smollm2: ModelView, data_dir: Path
) -> None:
    """Numbers of kmeng01/memit's evaluator on the unedited model, first ten records."""
    records = json.loads(GOLDEN.read_text(encoding="utf-8"))["records"]
    ids = [record["case_id"] for record in records]
    cases = datasets.counterfact(data_dir / "counterfact.json", case_ids=ids)
    table = metrics.score(smollm2, cases)
    names = {"efficacy": "rewrite", "paraphrase": "paraphrase", "neighborhood": "neighborhood"}
    for record in records:
        for kind, name in names.items():
            part = table[(table["case_id"] == record["case_id"]) & (table["kind"] == kind)]
            gold = record[name]
            roles = ("target_true", "target_new")
            target, foil = roles if kind == "neighborhood" else roles[::-1]
            np.testing.assert_allclose(part["nll_target"], gold[target], atol=1e-3)
            np.testing.assert_allclose(part["nll_foil"], gold[foil], atol=1e-3)
            assert list(part["exact"]) == gold["correct"]


def test_probe_index_is_the_position_among_all_probes() -> None:
    asked = scoring.probes_of(CASES[:1], ["neighborhood", "efficacy"])
    assert [(c, i, p.kind) for c, i, p in asked] == [(0, 0, "efficacy"), (0, 2, "neighborhood")]
