"""Which facts a model knows, by its own greedy completion of each prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BATCH = 48


def mark(rows: list[dict[str, Any]], folder: Path) -> None:
    """Set ``known[folder name]``: does the greedy completion of the prompt open with the truth?"""
    prompts = [row["prompt"].replace("{}", row["subject"], 1) for row in rows]
    answers = [row["target_true"] for row in rows]
    for row, known in zip(rows, writes(folder, prompts, answers), strict=True):
        row["known"] = {**row["known"], folder.name: known}


def writes(folder: Path, prompts: list[str], answers: list[str]) -> list[bool]:
    """Whether greedy decoding after each prompt writes the answer and ends the word there.

    One forward pass: the answer is written if each of its tokens is the most likely one after
    those before, and it ends there ("He", not "Helium") if the next token starts no letter.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    asked = tokenizer(prompts).input_ids
    said = tokenizer([f" {answer}" for answer in answers]).input_ids
    found = [False] * len(prompts)
    for group in batches([len(a) + len(b) for a, b in zip(asked, said, strict=True)]):
        n_keep = max(len(said[i]) for i in group) + 1
        ids = torch.tensor([asked[i] + said[i] for i in group])
        with torch.no_grad():
            best = model(ids, logits_to_keep=n_keep).logits.argmax(-1).tolist()
        for i, row in zip(group, best, strict=True):
            *written, after = row[-len(said[i]) - 1 :]
            found[i] = written == said[i] and not str(tokenizer.decode([after]))[:1].isalnum()
    return found


def batches(lengths: list[int]) -> list[list[int]]:
    """Indices of texts of equal length, so that nothing is padded, at most ``BATCH`` together."""
    by_length: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        by_length.setdefault(length, []).append(i)
    return [g[k : k + BATCH] for g in by_length.values() for k in range(0, len(g), BATCH)]
