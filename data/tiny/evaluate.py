"""How much of its world a tiny model knows.

``python data/tiny/evaluate.py`` prints the share of facts whose object is the model's greedy
completion: a row a relation, a column a wording, bare and behind a broken sentence.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from world import RELATIONS, build_world

__all__ = ["knows"]

HERE = Path(__file__).resolve().parent


@torch.no_grad()
def knows(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    targets: Sequence[str],
    *,
    batch: int = 512,
) -> list[bool]:
    """Whether the greedy completion of each prompt begins with its target."""
    verdicts = []
    for start in range(0, len(prompts), batch):
        asked = list(zip(prompts, targets, strict=True))[start : start + batch]
        both = tokenizer([f"{p} {t}" for p, t in asked], padding=True, return_tensors="pt")
        lengths = [len(ids) for ids in tokenizer([p for p, _ in asked])["input_ids"]]
        position = torch.arange(both["input_ids"].shape[1] - 1)
        scored = both["attention_mask"][:, 1:].bool() & (
            position >= torch.tensor(lengths)[:, None] - 1
        )
        best = model(**both).logits[:, :-1].argmax(-1)
        verdicts += ((best == both["input_ids"][:, 1:]) | ~scored).all(1).tolist()
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    facts = list(build_world().all_facts())
    for prefix in ("", "The weather was. "):
        everything = []
        for relation in RELATIONS:
            chosen = [fact for fact in facts if fact.relation is relation]
            targets = [fact.object for fact in chosen]
            shares = []
            for template in relation.templates:
                prompts = [prefix + template.format(fact.subject) for fact in chosen]
                verdicts = knows(model, tokenizer, prompts, targets)
                everything += verdicts
                shares.append(sum(verdicts) / len(verdicts))
            shown = "  ".join(f"{share:6.1%}" for share in shares)
            print(f"{prefix!r:20} {relation.name:14} {shown}")
        print(f"{prefix!r:20} {'all':14} {sum(everything) / len(everything):6.1%}")


if __name__ == "__main__":
    main()
