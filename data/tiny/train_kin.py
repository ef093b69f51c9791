"""Train the tiny model's kin on the same world: a classifier and an encoder-decoder.

``python data/tiny/train_kin.py bert`` writes ``bert/``: a BERT that sorts a prompt about a person
into one of the world's 108 objects. ``python data/tiny/train_kin.py t5`` writes ``t5/``: a T5 that
answers prompts and questions. Both use the vocabulary of ``model/`` (train.py comes first); what
they put around a text is the end-of-text token: before and after it for the classifier, after it
for the encoder-decoder, which also opens every text with a blank so that an answer is the word
that stands inside a sentence. Minutes of CPU time each, on one core.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from asking import LABELS, ask, wordings
from tokenizers import pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from train import EOS, N_POSITIONS, common_options, common_values, descend, keep
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from world import World, build_world

__all__ = ["KIN", "train_kin"]

HERE = Path(__file__).resolve().parent


def tokenizer_for(kind: str, base: Path) -> PreTrainedTokenizerFast:
    """The tiny model's tokenizer with end-of-text tokens around a text."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    form = f"{EOS} $A {EOS}" if kind == "bert" else f"$A {EOS}"
    inner = tokenizer.backend_tokenizer
    inner.post_processor = processors.TemplateProcessing(
        single=form, special_tokens=[(EOS, tokenizer.eos_token_id)]
    )
    if kind == "t5":
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def new_bert(tokenizer: PreTrainedTokenizerFast, *, d_model: int, n_layer: int) -> PreTrainedModel:
    """A BERT with a class for every object, without dropout."""
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=d_model,
            num_hidden_layers=n_layer,
            num_attention_heads=4,
            intermediate_size=4 * d_model,
            max_position_embeddings=N_POSITIONS,
            type_vocab_size=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            id2label=dict(enumerate(LABELS)),
            label2id={name: i for i, name in enumerate(LABELS)},
        )
    )


def new_t5(tokenizer: PreTrainedTokenizerFast, *, d_model: int, n_layer: int) -> PreTrainedModel:
    """A T5 with one decoder block less than it has encoder blocks, without dropout."""
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=d_model,
            d_kv=d_model // 4,
            d_ff=4 * d_model,
            num_layers=n_layer,
            num_decoder_layers=n_layer - 1,
            num_heads=4,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
    )


KIN: dict[str, tuple[Callable[..., PreTrainedModel], int]] = {
    "bert": (new_bert, 4),
    "t5": (new_t5, 3),
}


def batches(
    kind: str, world: World, tokenizer: PreTrainedTokenizerFast, *, batch: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    """Endless model inputs with labels."""
    rng = random.Random(seed)
    while True:
        talk = float(rng.random() < 0.2)  # all of a batch or none: less padding
        asked = [ask(world, rng, talk=talk) for _ in range(batch)]
        inputs = tokenizer([prompt for prompt, _ in asked], padding=True, return_tensors="pt")
        found = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        objects = [fact.object for _, fact in asked]
        if kind == "bert":
            found["labels"] = torch.tensor([LABELS.index(name) for name in objects])
        else:
            targets = tokenizer(objects, padding=True, return_tensors="pt")
            real = targets["attention_mask"].bool()
            found["labels"] = targets["input_ids"].masked_fill(~real, -100)
        yield found


def optimizers(model: PreTrainedModel, *, lr: float, muon_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, heads, biases and norms."""
    inside = [
        p
        for name, p in model.named_parameters()
        if p.ndim == 2 and (".layer." in name or ".block." in name) and "bias" not in name
    ]
    chosen = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(inside, lr=muon_lr, weight_decay=0.1, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train_kin(
    kind: str,
    world: World,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    batch: int,
    d_model: int = 128,
    n_layer: int | None = None,
    lr: float = 3e-3,
    muon_lr: float = 0.02,
    seed: int = 0,
    report_every: int = 50,
) -> Iterator[tuple[int, float, PreTrainedModel]]:
    """Train from random weights; yields (steps done, mean loss in nats, the model)."""
    torch.manual_seed(seed)
    make, usual = KIN[kind]
    model = make(tokenizer, d_model=d_model, n_layer=n_layer or usual)
    parts = optimizers(model, lr=lr, muon_lr=muon_lr)
    data = batches(kind, world, tokenizer, batch=batch, seed=seed)

    def loss() -> Tensor:
        inputs = next(data)
        labels = inputs.pop("labels")
        return loss_of(model, inputs, labels)

    for done, mean in descend(parts, loss, steps=steps, report_every=report_every):
        yield done, mean, model


def loss_of(model: PreTrainedModel, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Mean cross-entropy over classes, or over the tokens of the answers."""
    if labels.ndim == 1:
        return F.cross_entropy(model(**inputs).logits, labels)
    return model(**inputs, labels=labels).loss


@torch.no_grad()
def knows(
    kind: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, world: World
) -> dict[str, float]:
    """Share of facts whose object is the best answer, by relation, over all wordings."""
    facts = list(world.all_facts())
    right: dict[str, list[bool]] = {}
    for begin in range(0, len(facts), 64):
        part = facts[begin : begin + 64]
        for turn in range(len(wordings(part[0].relation.name))):
            prompts = [wordings(f.relation.name)[turn].format(f.subject) for f in part]
            inputs = tokenizer(prompts, padding=True, return_tensors="pt")
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            if kind == "bert":
                best = model(input_ids=ids, attention_mask=mask).logits.argmax(-1)
                answers = [LABELS[i] for i in best.tolist()]
            else:
                out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8)
                answers = [t.strip() for t in tokenizer.batch_decode(out, skip_special_tokens=True)]
            for fact, said in zip(part, answers, strict=True):
                right.setdefault(fact.relation.name, []).append(said == fact.object)
    return {name: sum(got) / len(got) for name, got in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=list(KIN))
    common_options(parser)
    parser.add_argument("--batch", type=int, default=192, help="prompts")
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokenizer", type=Path, default=HERE / "model")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    world, kind = build_world(), arguments.kind
    tokenizer = tokenizer_for(kind, arguments.tokenizer)
    trained = train_kin(kind, world, tokenizer, **common_values(arguments))
    model = keep(trained, tokenizer, arguments.out or HERE / kind, arguments.steps)
    for relation, share in knows(kind, model.eval(), tokenizer, world).items():
        print(f"{relation:14} {share:6.1%}")


if __name__ == "__main__":
    main()
