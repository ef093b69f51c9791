"""Train the tiny model: tokenizer and weights, from nothing but the world.

``python data/tiny/train.py`` writes ``model/``, in about six minutes of CPU time.
``python data/tiny/train.py --steps 200 --out somewhere`` gives a half-taught model.

The model is a GPT-2: learned positions, GELU feed-forward layers four times as wide as the
residual, tied embeddings. Matrices inside the blocks are trained with Muon (Jordan et al. 2024),
which memorizes in fewer steps, everything else with AdamW.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from corpus import document
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast
from world import World, build_world

__all__ = ["rows", "train_model", "train_tokenizer"]

HERE = Path(__file__).resolve().parent
EOS, PAD = "<|endoftext|>", "<|pad|>"
N_POSITIONS = 128


def train_tokenizer(
    world: World, *, d_vocab: int = 1100, documents: int = 8000, seed: int = 0
) -> PreTrainedTokenizerFast:
    """Byte-level BPE over documents of the world. It adds no special token of its own accord."""
    rng = random.Random(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=d_vocab,
        special_tokens=[EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document(world, rng) for _ in range(documents)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=N_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def rows(
    world: World, tokenizer: PreTrainedTokenizerFast, *, batch: int, seed: int = 0
) -> Iterator[Tensor]:
    """Endless batches ``[batch, N_POSITIONS]`` of documents, each ended by the end-of-text token.

    A row begins with the beginning of a document, one in five behind an end-of-text token, so that
    a bare prompt at position 0 is nothing unusual.
    """
    rng = random.Random(seed)
    eos = tokenizer.eos_token_id
    while True:
        texts = iter([document(world, rng) for _ in range(batch * 8)])
        ids = iter(tokenizer([*texts])["input_ids"])
        block = []
        for _ in range(batch):
            row = [eos] if rng.random() < 0.2 else []
            while len(row) < N_POSITIONS:
                row += [*next(ids), eos]
            block.append(row[:N_POSITIONS])
        yield torch.tensor(block)


def new_model(
    tokenizer: PreTrainedTokenizerFast, *, d_model: int, n_layer: int, n_head: int, seed: int
) -> GPT2LMHeadModel:
    """A GPT-2 with random weights, without dropout."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=N_POSITIONS,
            n_embd=d_model,
            n_layer=n_layer,
            n_head=n_head,
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def optimizers(model: GPT2LMHeadModel, *, lr: float, muon_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, biases and norms."""
    matrices = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.1, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def schedule(step: int, steps: int, *, warmup: int = 50) -> float:
    """Share of the full learning rate: warm up, stay, and fall to zero over the second half."""
    return min((step + 1) / warmup, 1.0, 2.0 * (1.0 - step / steps))


def train_model(
    world: World,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    batch: int = 32,
    d_model: int = 128,
    n_layer: int = 5,
    n_head: int = 4,
    lr: float = 3e-3,
    muon_lr: float = 0.02,
    seed: int = 0,
    report_every: int = 50,
) -> Iterator[tuple[int, float, GPT2LMHeadModel]]:
    """Train from random weights; yields (steps done, mean loss in nats a token, the model)."""
    model = new_model(tokenizer, d_model=d_model, n_layer=n_layer, n_head=n_head, seed=seed)
    parts = optimizers(model, lr=lr, muon_lr=muon_lr)
    data = rows(world, tokenizer, batch=batch, seed=seed)

    def loss() -> Tensor:
        ids = next(data)
        logits = model(ids[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    for done, mean in descend(parts, loss, steps=steps, report_every=report_every):
        yield done, mean, model


def descend(
    parts: Sequence[torch.optim.Optimizer],
    loss_of: Callable[[], Tensor],
    *,
    steps: int,
    report_every: int,
) -> Iterator[tuple[int, float]]:
    """Take steps along the schedule; yields (steps done, mean loss since the last report)."""
    rates = [part.param_groups[0]["lr"] for part in parts]
    total = 0.0
    for step in range(steps):
        for part, rate in zip(parts, rates, strict=True):
            part.param_groups[0]["lr"] = rate * schedule(step, steps)
        loss = loss_of()
        loss.backward()
        for part in parts:
            part.step()
            part.zero_grad(set_to_none=True)
        total += loss.item()
        if (step + 1) % report_every == 0 or step + 1 == steps:
            yield step + 1, total / (step % report_every + 1)
            total = 0.0


def common_options(parser: argparse.ArgumentParser) -> None:
    """Options of every model of this world."""
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)


def common_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """What these options and ``--batch``, ``--layers`` say, as arguments of a training function."""
    return {
        "steps": arguments.steps,
        "batch": arguments.batch,
        "d_model": arguments.d_model,
        "n_layer": arguments.layers,
        "lr": arguments.lr,
        "muon_lr": arguments.muon_lr,
        "seed": arguments.seed,
    }


def keep(
    trained: Iterable[tuple[int, float, PreTrainedModel]],
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    steps: int,
) -> PreTrainedModel:
    """Follow a training, saving the model now and then and at the end."""
    began = time.monotonic()
    for done, loss, model in trained:
        print(f"step {done}  loss {loss:.4f}  {time.monotonic() - began:.0f} s", flush=True)
        if done % 250 == 0 or done == steps:
            tokenizer.save_pretrained(out)
            copy.deepcopy(model).to(torch.float16).save_pretrained(out)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    common_options(parser)
    parser.add_argument("--batch", type=int, default=16, help="rows of 128 tokens")
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=1100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "model")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    world = build_world()
    tokenizer = train_tokenizer(world, d_vocab=arguments.vocabulary, seed=arguments.seed)
    trained = train_model(world, tokenizer, **common_values(arguments))
    keep(trained, tokenizer, arguments.out, arguments.steps)


if __name__ == "__main__":
    main()
