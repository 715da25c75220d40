"""Trains the demo model that ships with gemlet: a Gemma 3 of 4.4 million parameters.

    python train_demo.py --corpus CORPUS

It needs torch, transformers 5.23, sentencepiece and a C++ compiler (for torch.compile), and takes 20 to 50
minutes on one or two CPU cores. CORPUS is a folder with three books in the public domain:
`tinyshakespeare.txt`, `frankenstein.txt` and `botchan.txt`.

It writes two things:
- to --out, a Hugging Face folder (config.json, generation_config.json, model.safetensors in bfloat16,
  tokenizer.model), README.md, and training.json with the perplexities;
- to --heldout, text of every book that was used neither to train the weights nor to pick the checkpoint.

How it trains, and why:
- It holds out whole chapters (of the plays, passages of about 18 kB). The first 40 % of each chapter pick the
  checkpoint. The reported perplexities are measured on the rest.
- Every sequence is <bos> and then text from the start of a paragraph, a sentence or a speech, like a prompt.
- The corpus has only 1.7 MB and is read many times, so regularisation matters most: dropout after every
  block, weight decay, and BPE-dropout, which splits the text into different pieces at every reading, until
  the last fifth of the training.
- It reads the prose more often than the plays, because the default prompt is prose.
- One sequence in twelve is a conversation made from the books, in Gemma's turn format, so that chat works.
- Muon trains the matrices, AdamW the embedding and the norms. The learning rate warms up, stays constant, and
  falls linearly to zero.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import time
from pathlib import Path

import sentencepiece as spm
import torch
import transformers
from demo_corpus import (
    BOS,
    END_OF_TURN,
    EOS,
    PAD,
    TITLES,
    VOCAB_SIZE,
    Book,
    Cutter,
    Stream,
    conversations,
    read_books,
    train_tokenizer,
    write_heldout,
)
from torch.nn import functional
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig

CONTEXT = 1024
SEQUENCE, MEASURED = 256, 512  # tokens of a sequence in training (at the end: CONTEXT) and in measurements
MIXTURE = {"shakespeare": 0.38, "frankenstein": 0.31, "botchan": 0.23, "chat": 0.08}


def make_config() -> Gemma3TextConfig:
    """A small Gemma 3: every dimension is a multiple of 32; five sliding layers and one global layer."""
    return Gemma3TextConfig(
        vocab_size=VOCAB_SIZE, hidden_size=256, intermediate_size=512, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=1, head_dim=64, query_pre_attn_scalar=64,
        layer_types=["sliding_attention"] * 5 + ["full_attention"], sliding_window=64,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True, attn_implementation="sdpa",
        pad_token_id=PAD, eos_token_id=[EOS, END_OF_TURN], bos_token_id=BOS,
    )  # fmt: skip


def add_dropout(model: Gemma3ForCausalLM, rate: float) -> None:
    """Adds dropout after the embedding and after every block, where transformers has none."""

    def drop(module: torch.nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
        return functional.dropout(output, rate, module.training)

    model.model.embed_tokens.register_forward_hook(drop)
    for layer in model.model.layers:
        layer.post_attention_layernorm.register_forward_hook(drop)
        layer.post_feedforward_layernorm.register_forward_hook(drop)


def make_optimizers(model: Gemma3ForCausalLM, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    norms = [p for p in model.parameters() if p.ndim == 1]
    tables = [p for n, p in model.named_parameters() if "embed" in n]
    decay = args.weight_decay
    groups = [{"params": tables, "weight_decay": decay}, {"params": norms, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98)),
    ]


def learning_rate(progress: float) -> float:
    """The share of the peak rate: 3 % warm-up, then constant, then over the last 60 % linearly to zero."""
    return min(progress / 0.03, 1.0, (1.0 - progress) / 0.6) + 1e-4


@torch.no_grad()
def measure(
    model: torch.nn.Module, tokenizer: spm.SentencePieceProcessor, texts: list[str], context: int
) -> dict[str, float]:
    """Perplexity per token and bits per byte, in chunks of `context` tokens that begin with <bos>."""
    nats, tokens = 0.0, 0
    model.eval()
    for text in texts:
        ids = tokenizer.encode(text)
        for at in range(0, len(ids), context - 1):
            piece = torch.tensor([[BOS, *ids[at : at + context - 1]]])
            logits = model(input_ids=piece, use_cache=False).logits[0, :-1].float()
            nats += functional.cross_entropy(logits, piece[0, 1:], reduction="sum").item()
            tokens += piece.shape[1] - 1
    size = sum(len(text.encode()) for text in texts)
    return {
        "perplexity": round(math.exp(nats / tokens), 3),
        "bits_per_byte": round(nats / math.log(2) / size, 4),
        "tokens": tokens,
        "bytes": size,
    }


def as_texts(chapters: list[list[str]]) -> list[str]:
    return ["\n\n".join(chapter) for chapter in chapters]


def train(
    args: argparse.Namespace, books: dict[str, Book], tokenizer: spm.SentencePieceProcessor
) -> dict[str, float]:
    """Trains and leaves the best weights in args.work/best.pt; returns what there is to say about the run."""
    rng, cutter = random.Random(args.seed), Cutter(tokenizer)
    model = Gemma3ForCausalLM(make_config()).float()
    add_dropout(model, args.dropout)

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())

    compiled = torch.compile(loss_of, dynamic=False) if args.compile else loss_of
    optimizers = make_optimizers(model, args)
    select = {name: as_texts(book.select) for name, book in books.items()}
    names, weights = list(MIXTURE), list(MIXTURE.values())
    streams: dict[str, Stream] = {}
    run: dict[str, float] = {}
    best, step, started, progress = math.inf, 0, time.monotonic(), 0.0
    while progress < 1.0:
        if step % 120 == 0:  # about once per reading of the corpus
            rate = args.bpe_dropout if progress < 0.8 else 0.0
            spm.set_random_generator_seed(args.seed + step)
            streams = {name: cutter.stream(book.train, rate) for name, book in books.items()}
            streams["chat"] = cutter.stream([[talk] for talk in conversations(books, rng)], rate)
        length = CONTEXT if progress > 0.8 else SEQUENCE  # the global layer learns long contexts at the end
        chosen = rng.choices(names, weights, k=args.batch_tokens // length)
        batch = torch.stack([cutter.row(streams[name], length, rng) for name in chosen])
        model.train()
        loss = compiled(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * learning_rate(progress)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        minutes = (time.monotonic() - started) / 60
        # The schedule follows the steps, or the clock on a slow machine, so it always completes.
        progress = max(step / args.steps, minutes / args.minutes)
        if step % args.eval_every == 0 or progress >= 1.0:
            held = {name: measure(model, tokenizer, texts, MEASURED) for name, texts in select.items()}
            score = sum(h["bits_per_byte"] for h in held.values()) / len(held)
            line = "  ".join(f"{n} {h['perplexity']:.1f} ({h['bits_per_byte']:.3f})" for n, h in held.items())
            mark = "*" if score < best else " "
            state = f"{minutes:5.1f} min  step {step:5d}  train {loss.item():.3f}  held out {score:.4f}{mark}"
            print(state, line, flush=True)
            if score < best:
                best = score
                torch.save(model.state_dict(), args.work / "best.pt")
                tokens = sum(len(cutter.stream(book.train, 0.0).ids) for book in books.values())
                run = {"best_step": step, "best_score": round(score, 4), "train_tokens": tokens}
            run |= {"steps": step, "minutes": round(minutes, 1), "tokens_seen": step * args.batch_tokens}
            (args.work / "run.json").write_text(json.dumps(run))
    return run


def write_folder(
    folder: Path, args: argparse.Namespace, books: dict[str, Book], run: dict[str, float]
) -> None:
    """Writes the best weights as a Hugging Face folder, measures them, and writes the two reports."""
    model = Gemma3ForCausalLM(make_config())
    model.load_state_dict(torch.load(args.work / "best.pt"))
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=[EOS, END_OF_TURN], pad_token_id=PAD,
        do_sample=True, temperature=0.8, top_k=64, top_p=0.95,
    )  # fmt: skip
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    shutil.copyfile(args.work / "tokenizer.model", folder / "tokenizer.model")
    stored = Gemma3ForCausalLM.from_pretrained(folder, dtype=torch.float32)  # bf16 weights, f32 arithmetic
    tokenizer = spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    report = {name: as_texts(book.report) for name, book in books.items()}
    report["all"] = [text for texts in report.values() for text in texts]
    heldout = {name: measure(stored, tokenizer, texts, MEASURED) for name, texts in report.items()}
    settings = {name: value for name, value in vars(args).items() if isinstance(value, int | float)}
    del settings["package_only"]
    options = " ".join(f"--{name} {settings[name]:g}" for name in ("seed", "steps", "minutes", "threads"))
    facts = {
        "command": f"python python/tools/train_demo.py --corpus CORPUS {options}",
        "settings": settings, **run, "parameters": model.num_parameters(),
        "torch": torch.__version__.split("+")[0], "transformers": transformers.__version__,
        "heldout_context": MEASURED, "heldout": heldout,
        "heldout_full_context": {name: measure(stored, tokenizer, t, CONTEXT) for name, t in report.items()},
    }  # fmt: skip
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    rows = "\n".join(
        f"| {name} | {h['bytes']:,} | {h['perplexity']:.1f} | {h['bits_per_byte']:.3f} |"
        for name, h in heldout.items()
    )
    facts |= {"rows": rows, "context": MEASURED, "full": CONTEXT, "titles": "\n- ".join(TITLES.values())}
    (folder / "README.md").write_text(README.format(**facts), encoding="utf-8")


README = """\
# The demo model

This is a Gemma 3 of {parameters:,} parameters, trained from scratch for gemlet. It has six layers: five with
a sliding window of 64 tokens, and one that sees the whole context of {full:,} tokens. The hidden size is 256.

With it, gemlet writes text before you download anything, and the tests have real text. It writes like its
three books and knows nothing else.

The folder is an ordinary Hugging Face folder (`Gemma3ForCausalLM`, bfloat16). The vocabulary is a
SentencePiece BPE of 4,096 pieces with byte fallback and Gemma 3's control tokens at Gemma 3's ids. One
training sequence in twelve was a conversation made from the books, so that the chat format works.

## Books

- {titles}

All three texts are in the public domain. The plays are the selection known as tinyshakespeare. The English
Botchan of 1919 is Project Gutenberg's eBook #8868 without its header and licence. In the training text, curly
quotes are straight, double hyphens are dashes, and wrapped lines of prose are joined. The weights and the
vocabulary come from these texts alone and from no other model. They are under gemlet's licence, Apache-2.0.

## Held-out text

Chapters 10 and 18 of Frankenstein, chapter IX of Botchan and three passages of the plays (18 kB each) were
not used for training. The first 40 % of each picked the checkpoint. The table is about the rest, measured
with the stored bfloat16 weights and float32 arithmetic, in chunks of {context} tokens, the first `<bos>`:

| book | bytes | perplexity per token | bits per byte |
|---|---|---|---|
{rows}

`training.json` has these numbers in full, and those for chunks of {full:,} tokens.
`tests/data/heldout.txt` is a part of the text of this table.

## Train it again

    {command}

This took {steps:,} steps and {minutes} minutes. Step {best_step:,} was the best. The training text has
{train_tokens:,} tokens; the model read {tokens_seen:,} tokens in all. Another machine or another
version of PyTorch gives a slightly different model.
"""


def main() -> None:
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="folder with the three books")
    parser.add_argument("--out", type=Path, default=root / "python/gemlet/demo")
    parser.add_argument("--heldout", type=Path, default=root / "tests/data/heldout.txt")
    parser.add_argument("--work", type=Path, default=root / "build/train_demo", help="best weights so far")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1700)
    parser.add_argument("--minutes", type=float, default=50, help="the schedule ends here, steps left or not")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.4)
    parser.add_argument("--dropout", type=float, default=0.15)
    parser.add_argument("--bpe-dropout", type=float, default=0.05)
    parser.add_argument("--eval-every", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="no torch.compile")
    parser.add_argument("--package-only", action="store_true", help="only write the folder, from --work")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    books = read_books(args.corpus)
    if args.package_only:
        run = json.loads((args.work / "run.json").read_text())
    else:
        tokenizer = train_tokenizer(books, args.work / "tokenizer.model")
        run = train(args, books, tokenizer)
    fresh = args.work / "demo"
    shutil.rmtree(fresh, ignore_errors=True)
    write_folder(fresh, args, books, run)
    write_heldout(args.heldout, books)
    if args.out.exists():
        args.out.rename(args.work / f"replaced-{time.time_ns()}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(fresh, args.out)


if __name__ == "__main__":
    main()
