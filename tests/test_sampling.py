"""Sampling: cached and padded batches against one row at a time without a cache."""

from __future__ import annotations

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from workbench.editors.locate.contexts import contexts
from workbench.errors import NumericalError, OptionError, RequestError
from workbench.layouts import DECODER, LAYOUTS
from workbench.model import ModelView
from workbench.opening import open_view
from workbench.progress import Bar, progress_to
from workbench.sampling import draw, sample

transformers.logging.set_verbosity_error()

VOCAB = 97
CONTEXT = 48
GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT, "n_inner": 64}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "head_dim": 8,
}
#: what differs from the Llama-like sizes
SIZES: dict[str, dict[str, object]] = {
    "gpt2": GPT,
    "gptj": GPT | {"rotary_dim": 4},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": CONTEXT,
        "window_size": 6,
        "attention_types": [[["global", "local"], 1]],
    },
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
    },
    "mistral": LLAMA | {"sliding_window": 6},
    "gemma2": LLAMA | {"sliding_window": 6, "query_pre_attn_scalar": 8},
    "gemma3_text": LLAMA | {"sliding_window": 6, "query_pre_attn_scalar": 8},
}
FAMILIES = sorted(name for name, row in LAYOUTS.items() if row.kind == DECODER)


def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(VOCAB)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0", eos_token="w1")


def tiny(family: str) -> ModelView:
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    sizes = SIZES.get(family, LLAMA)
    config = AutoConfig.for_model(family, vocab_size=VOCAB, **special | sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0, 0.3)  # sharp enough that no two tokens tie
    return open_view(model, tokenizer(), name=f"tiny-{family}")


@torch.no_grad()
def greedy(view: ModelView, row: list[int], length: int) -> list[int]:
    row = list(row)
    while len(row) < length:
        logits = view.model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1]
        row.append(int(logits.argmax()))
    return row


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(2, VOCAB, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_padded_greedy_equals_uncached_rows(family: str) -> None:
    view = tiny(family)
    rows = prompts(9, 1, 4, 4, 14)
    expected = [greedy(view, r, 20) for r in rows]
    assert len({tuple(r[-5:]) for r in expected}) > 1  # the model does not answer all alike
    assert sample(view, rows, max_length=20, top_k=1, batch_size=8) == expected
    assert sample(view, rows, max_length=20, top_k=1, batch_size=2) == expected


@pytest.mark.parametrize("family", ["gpt2", "opt", "bloom", "llama"])
def test_text_of_a_row_does_not_depend_on_its_neighbors(family: str) -> None:
    view = tiny(family)
    rows = prompts(3, 8, 1, 12)
    together = sample(view, rows, max_length=24, top_k=None, seed=5, batch_size=4)
    alone = sample(view, rows, max_length=24, top_k=None, seed=5, batch_size=1)
    assert together == alone
    assert sample(view, rows[:1], max_length=24, top_k=None, seed=5) == together[:1]
    assert [r[: len(p)] for r, p in zip(together, rows, strict=True)] == rows
    assert all(len(r) == 24 for r in together)


def test_seed_decides() -> None:
    view = tiny("llama")
    rows = prompts(2, 2)
    first = sample(view, rows, max_length=20, seed=1)
    torch.manual_seed(99)
    assert sample(view, rows, max_length=20, seed=1) == first
    assert sample(view, rows, max_length=20, seed=2) != first


def test_every_context_position_can_be_filled() -> None:
    view = tiny("gpt2")
    rows = sample(view, prompts(CONTEXT, 1, 7), max_length=CONTEXT)
    assert [len(r) for r in rows] == [CONTEXT] * 3


def test_rows_stop_at_the_end_of_sequence() -> None:
    view = tiny("llama")
    free = sample(view, prompts(*[2] * 40), max_length=40, top_k=None, temperature=3.0)
    held = sample(
        view, prompts(*[2] * 40), max_length=40, top_k=None, temperature=3.0, stop_at_eos=True
    )
    cut = [r[: r.index(1, 2) + 1] if 1 in r[2:] else r for r in free]
    assert held == cut
    assert any(len(r) < 40 for r in held)


def test_draw_follows_the_distribution() -> None:
    logits = torch.tensor([0.5, -1.0, 2.0, -torch.inf, 1.0])
    n = 200_000
    u = torch.rand(n, generator=torch.Generator().manual_seed(0))
    for top_k, temperature in ((None, 1.0), (2, 1.0), (None, 2.0), (1, 1.0)):
        got = draw(logits.expand(n, -1), u, top_k=top_k, temperature=temperature)
        want = logits / temperature
        if top_k:
            want = want.masked_fill(want < want.topk(top_k).values[-1], -torch.inf)
        frequency = got.bincount(minlength=5) / n
        assert torch.allclose(frequency, want.softmax(0), atol=4e-3), (top_k, temperature)


def test_draw_at_the_borders() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    below_one = torch.tensor([1 - 2**-24])
    assert draw(logits, torch.zeros(1)).tolist() == [1]
    assert draw(logits, below_one).tolist() == [3]


def test_progress_counts_generated_tokens() -> None:
    view = tiny("gpt2")
    seen: list[int] = []
    with progress_to(lambda phase, done, total: seen.append(done)), Bar("text", 26) as bar:
        sample(view, prompts(3, 5, 6), max_length=10, bar=bar)
    assert seen[-1] == 7 + 5 + 4


@pytest.mark.parametrize("recipe", ["rome", "memit"])
def test_sampling_of_contexts_reports_every_token(recipe: str) -> None:
    seen: list[tuple[str, int, int | None]] = []
    with progress_to(lambda *event: seen.append(event)):
        contexts(tiny("gpt2"), recipe, seed=0)
    assert {phase for phase, _, _ in seen} == {"sampling contexts"}
    (first, total), (last, _) = seen[0][1:], seen[-1][1:]
    assert first == 0 < last == total


def test_refusals_say_what_to_do() -> None:
    view = tiny("gpt2")
    with pytest.raises(OptionError, match="context of tiny-gpt2 is 48"):
        sample(view, prompts(2), max_length=49)
    with pytest.raises(RequestError, match="prompt 1 has 0 tokens"):
        sample(view, [[1], []], max_length=5)
    with pytest.raises(RequestError, match="prompt 0 has 7 tokens"):
        sample(view, prompts(7), max_length=5)
    with pytest.raises(OptionError, match="top_k=0"):
        sample(view, prompts(2), max_length=5, top_k=0)
    with pytest.raises(OptionError, match="temperature=0"):
        sample(view, prompts(2), max_length=5, temperature=0.0)
    assert sample(view, [], max_length=5) == []
    view.model.transformer.h[1].mlp.c_fc.bias.data[0] = torch.nan
    with pytest.raises(NumericalError, match="NaN"):
        sample(view, prompts(2), max_length=5)
