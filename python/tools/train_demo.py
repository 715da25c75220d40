"""Trains the demo model that ships with gemlet: a Gemma 3 of 4.4 million parameters.

    python train_demo.py --corpus CORPUS

It needs torch, transformers and sentencepiece (the dependency group `oracle` of pyproject.toml) and, without
--no-compile, a C++ compiler. A first run takes 20 to 50 minutes on one or two idle cores. CORPUS is a
folder with three books in the public domain: `tinyshakespeare.txt`, `frankenstein.txt` and `botchan.txt`.
--more names a folder with further books.

The training can be spread over several runs. With --state FILE, the script writes its state to FILE every few
minutes and at the end. When it starts again with the same options, it continues from FILE:

    python train_demo.py --corpus CORPUS --more MORE --state FILE --start python/gemlet/demo --minutes 60

- If a run was stopped, the next run continues the same schedule.
- If a run has ended, the next run starts a new schedule with the last weights: the learning rate rises, stays
  and falls to zero again. For this, half of the first run's --lr or less is enough.
- If FILE does not exist, the training starts from the model in the folder --start. Without --start, it starts
  from random weights.
- A schedule ends after --steps steps or after --minutes minutes of work, whichever comes first. On a busy
  machine there are fewer steps, but the learning rate still falls to zero.
- The best weights are replaced only by weights that are better on the held-out text. --package-only writes
  the best weights to --out without training.

It writes two things:
- to --out, a Hugging Face folder (config.json, generation_config.json, model.safetensors in bfloat16,
  tokenizer.model), README.md, and training.json with the perplexities;
- to --heldout, text of every book that was used neither to train the weights nor to pick the checkpoint.

How it trains, and why:
- Whole chapters are held out; for the plays, passages of about 18 kB. The checkpoint is chosen by the first
  40 % of each held-out chapter. The reported perplexities are measured on the rest.
- Every sequence is <bos> and then text from the start of a paragraph, a sentence or a speech, like a prompt.
- The three books have only 1.7 MB and are read many times, so regularisation matters most: dropout after
  every block, weight decay, and BPE-dropout, which splits the text into different pieces at every reading,
  until the last fifth of the training. With further books, --dropout 0 and less weight decay save time.
- Prose is sampled more often than plays, because the default prompt is prose.
- The vocabulary is made only from the three books, so that it does not depend on the further books.
- One sequence in eight is a conversation made from the books, in Gemma's turn format, so that chat works.
- Muon trains the matrices, AdamW the embedding and the norms. The learning rate warms up, stays constant, and
  falls linearly to zero.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import sentencepiece as spm
import torch
import transformers
from demo_corpus import (
    BOS,
    END_OF_TURN,
    EOS,
    MORE,
    PAD,
    TITLES,
    VOCAB_SIZE,
    Book,
    Cutter,
    Stream,
    conversations,
    read_books,
    read_more,
    train_tokenizer,
    write_heldout,
)
from torch.nn import functional
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig

CONTEXT = 1024
SEQUENCE = 256  # tokens of a training sequence; in the last tenth of the training, CONTEXT
MEASURED = 512  # tokens of a chunk in measurements
MIXTURE = {"shakespeare": 0.18, "frankenstein": 0.10, "botchan": 0.07, "chat": 0.12, MORE: 0.53}
RECUT = 250  # after this many steps, the books are tokenized again, with new BPE-dropout


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
    """Adds dropout after the embedding and after every block; transformers has none there."""
    if rate == 0.0:
        return

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


class Schedule:
    """The progress of a run, from 0 to 1: the share of the steps or of the minutes, whichever is larger. So a
    run on a slow machine also ends in time."""

    def __init__(self, args: argparse.Namespace, steps: int = 0, minutes: float = 0.0) -> None:
        self.last_step: int = args.steps
        self.last_minute: float = args.minutes
        self.peak: float = args.lr
        self.steps, self.minutes = steps, minutes
        self.started = time.monotonic() - 60 * minutes

    def advance(self) -> None:
        self.steps += 1
        self.minutes = (time.monotonic() - self.started) / 60

    @property
    def progress(self) -> float:
        return max(self.steps / self.last_step, self.minutes / self.last_minute)

    @property
    def learning_rate(self) -> float:
        """The learning rate. It rises for 3 % of the run, then stays, and falls linearly to zero in the last
        60 %."""
        progress = self.progress
        return self.peak * (min(progress / 0.03, 1.0, (1.0 - progress) / 0.6) + 1e-4)


class Batches:
    """Random sequences of the books, in the shares of MIXTURE."""

    def __init__(
        self, args: argparse.Namespace, books: dict[str, Book], cutter: Cutter, rng: random.Random
    ) -> None:
        self.args, self.books, self.cutter, self.rng = args, books, cutter, rng
        self.streams: dict[str, Stream] = {}
        self.weights = MIXTURE if MORE in books else {n: w for n, w in MIXTURE.items() if n != MORE}

    def cut(self, step: int, progress: float) -> None:
        """Tokenizes the books. The further books are used about once, so they need no BPE-dropout."""
        rate = self.args.bpe_dropout if progress < 0.8 else 0.0
        spm.set_random_generator_seed(self.args.seed + step)
        for name, book in self.books.items():
            if name != MORE:
                self.streams[name] = self.cutter.stream(book.train, rate)
            elif name not in self.streams:
                self.streams[name] = self.cutter.stream(book.train, 0.0)
        talks = conversations(self.books, self.rng)[:3000]  # more than are needed until the next call
        self.streams["chat"] = self.cutter.stream([[talk] for talk in talks], rate)

    def next(self, step: int, progress: float) -> torch.Tensor:
        if step % RECUT == 0 or not self.streams:
            self.cut(step, progress)
        length = CONTEXT if progress > 0.9 else SEQUENCE  # the global layer learns long contexts at the end
        count = self.args.batch_tokens // length
        chosen = self.rng.choices(list(self.weights), list(self.weights.values()), k=count)
        return torch.stack([self.cutter.row(self.streams[name], length, self.rng) for name in chosen])


class Run:
    """The state of the training: the model, the optimizers, the schedule, and the best weights so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.model = Gemma3ForCausalLM(make_config()).float()
        self.optimizers = make_optimizers(self.model, args)
        self.schedule = Schedule(args)
        self.earlier = {"steps": 0, "minutes": 0.0, "tokens_seen": 0}  # totals of the runs before this one
        self.commands: list[str] = []
        self.best: dict[str, Any] = {"score": math.inf, "step": 0, "weights": {}}
        if args.state is not None and args.state.exists():
            self.load(args.state)
        elif args.start is not None:
            start = Gemma3ForCausalLM.from_pretrained(args.start, dtype=torch.float32)
            self.model.load_state_dict(start.state_dict())
            known = json.loads((args.start / "training.json").read_text())
            self.earlier = {name: known[name] for name in self.earlier}
            self.commands = known["commands"]
        if self.schedule.steps == 0 and not args.package_only:
            self.commands.append(args.command)

    @property
    def facts(self) -> dict[str, Any]:
        """The work done in all runs, for the reports."""
        steps, minutes = self.schedule.steps, round(self.schedule.minutes, 1)
        done = {"steps": steps, "minutes": minutes, "tokens_seen": steps * self.args.batch_tokens}
        sums = {name: self.earlier[name] + value for name, value in done.items()}
        return (
            {"commands": self.commands}
            | sums
            | {"best_step": self.best["step"], "best_score": round(self.best["score"], 4)}
        )

    def load(self, path: Path) -> None:
        """Reads a state. If the run that wrote it had ended, a new schedule begins."""
        state = torch.load(path)
        self.model.load_state_dict(state["model"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            options = optimizer.state_dict()["param_groups"]  # the options of this run, not of the state
            optimizer.load_state_dict({"state": kept["state"], "param_groups": options})
        self.best, self.earlier, self.commands = state["best"], state["earlier"], state["commands"]
        self.schedule = Schedule(self.args, state["steps"], state["minutes"])
        if state["ended"]:
            self.earlier = state["total"]
            self.schedule = Schedule(self.args)

    def save(self, path: Path) -> None:
        """Writes the state to a temporary file and renames it, so that a killed run leaves the last good
        state."""
        state = {
            "model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers],
            "steps": self.schedule.steps, "minutes": self.schedule.minutes, "earlier": self.earlier,
            "total": {name: self.facts[name] for name in self.earlier},
            "commands": self.commands, "best": self.best, "ended": self.schedule.progress >= 1.0,
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def judge(self, tokenizer: spm.SentencePieceProcessor, select: dict[str, list[str]], loss: float) -> None:
        """Measures the model on the text that chooses the checkpoint, prints a line, and keeps the weights if
        they are the best so far."""
        held = {name: measure(self.model, tokenizer, texts, MEASURED) for name, texts in select.items()}
        score = sum(h["bits_per_byte"] for h in held.values()) / len(held)
        line = "  ".join(f"{n} {h['perplexity']:.1f} ({h['bits_per_byte']:.3f})" for n, h in held.items())
        mark, step = "*" if score < self.best["score"] else " ", self.facts["steps"]
        now = f"{self.schedule.minutes:5.1f} min  step {step:5d}  train {loss:.3f}"
        print(f"{now}  held out {score:.4f}{mark} {line}", flush=True)
        if score < self.best["score"]:
            weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            self.best = {"score": score, "step": step, "weights": weights}


def train(args: argparse.Namespace, books: dict[str, Book], tokenizer: spm.SentencePieceProcessor) -> Run:
    """Trains for one schedule, or for the rest of a schedule that was stopped."""
    run, cutter = Run(args), Cutter(tokenizer)
    add_dropout(run.model, args.dropout)

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = run.model(input_ids=batch[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())

    compiled = torch.compile(loss_of, dynamic=False) if args.compile else loss_of
    schedule, seed = run.schedule, args.seed + run.facts["steps"]
    torch.manual_seed(seed)
    batches = Batches(args, books, cutter, random.Random(seed))
    select = {name: as_texts(book.select) for name, book in books.items() if book.select}
    if run.facts["steps"] > 0 and not run.best["weights"]:
        run.judge(tokenizer, select, math.nan)  # so that only better weights replace the first ones
    saved = time.monotonic()
    while schedule.progress < 1.0:
        batch = batches.next(schedule.steps, schedule.progress)
        run.model.train()
        loss = compiled(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        for optimizer in run.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        schedule.advance()
        done = schedule.progress >= 1.0
        if schedule.steps % args.eval_every == 0 or done:
            run.judge(tokenizer, select, loss.item())
        if args.state is not None and (done or time.monotonic() - saved > 60 * args.save_every):
            run.save(args.state)
            saved = time.monotonic()
    return run


def write_folder(folder: Path, args: argparse.Namespace, books: dict[str, Book], run: Run) -> None:
    """Writes the best weights as a Hugging Face folder, measures them, and writes the two reports."""
    model = Gemma3ForCausalLM(make_config())
    model.load_state_dict(run.best["weights"])
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
    report = {name: as_texts(book.report) for name, book in books.items() if book.report}
    report["all"] = [text for texts in report.values() for text in texts]
    heldout = {name: measure(stored, tokenizer, texts, MEASURED) for name, texts in report.items()}
    settings = {name: value for name, value in vars(args).items() if isinstance(value, int | float)}
    del settings["package_only"]
    cutter = Cutter(tokenizer)
    facts = {
        **run.facts, "settings": settings,
        "train_tokens": sum(len(cutter.stream(book.train, 0.0).ids) for book in books.values()),
        "parameters": model.num_parameters(),
        "torch": torch.__version__.split("+")[0], "transformers": transformers.__version__,
        "heldout_context": MEASURED, "heldout": heldout,
        "heldout_full_context": {name: measure(stored, tokenizer, t, CONTEXT) for name, t in report.items()},
    }  # fmt: skip
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    rows = "\n".join(
        f"| {name} | {h['bytes']:,} | {h['perplexity']:.1f} | {h['bits_per_byte']:.3f} |"
        for name, h in heldout.items()
    )
    titles = [*TITLES.values(), *(read_more(args.more)[1] if args.more else ())]
    facts |= {"commands": "\n    ".join(run.commands)}
    facts |= {"rows": rows, "context": MEASURED, "full": CONTEXT, "titles": "\n- ".join(titles)}
    (folder / "README.md").write_text(README.format(**facts), encoding="utf-8")


README = """\
# The demo model

This is a Gemma 3 of {parameters:,} parameters, trained from scratch for gemlet. It has six layers: five with
a sliding window of 64 tokens, and one that sees the whole context of {full:,} tokens. The hidden size is 256.

With this model, gemlet can generate text before you download anything, and the tests can use real text. The
model writes like the books below and knows nothing else.

The folder is an ordinary Hugging Face folder (`Gemma3ForCausalLM`, bfloat16). The vocabulary is a
SentencePiece BPE of 4,096 pieces with byte fallback and Gemma 3's control tokens at Gemma 3's ids. One
training sequence in eight was a conversation made from the speeches in the books, so that chat works.

## Books

- {titles}

All these texts are in the public domain. The plays are the selection known as tinyshakespeare. The English
Botchan of 1919 is Project Gutenberg's eBook #8868 without its header and licence. The books after these three
are the texts of Standard Ebooks, without notes and without paragraphs that have slurs about a people.
In the training text, curly quotes are straight, double hyphens are dashes, and wrapped lines of prose are
joined. The vocabulary comes from the first three books, the weights from all, and nothing from another model.
Vocabulary and weights are under gemlet's licence, Apache-2.0.

## Held-out text

Chapters 10 and 18 of Frankenstein, chapter IX of Botchan and three passages of the plays (18 kB each) were
not used for training. The checkpoint was chosen by the first 40 % of each. The table was measured on the
rest, with the stored bfloat16 weights and float32 arithmetic, in chunks of {context} tokens that begin with
`<bos>`:

| book | bytes | perplexity per token | bits per byte |
|---|---|---|---|
{rows}

`training.json` has these numbers in full, and the numbers for chunks of {full:,} tokens.
`tests/data/heldout.txt` is a part of the text of this table.

## Train it again

    {commands}

This took {steps:,} steps and {minutes} minutes. Step {best_step:,} was the best. The training text has
{train_tokens:,} tokens; the model read {tokens_seen:,} tokens in all. Another machine or another
version of PyTorch gives a slightly different model.

## Train it further

    python python/tools/train_demo.py --corpus CORPUS --more MORE --state FILE --start python/gemlet/demo

This continues from the weights in this folder and keeps the state of the training in FILE. If the training
was stopped, the same command continues it. If it has ended, the same command starts another round. MORE is a
folder of books: plain
text files with the title on the first line, an empty line after each paragraph and two after each chapter.
`python python/tools/train_demo.py --help` lists the options.
"""


def command(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """The command line of this run for the reports, with the options that are not defaults, and without
    paths."""
    words = ["python python/tools/train_demo.py"]
    for name, value in vars(args).items():
        if name in ("corpus", "more", "start") and value is not None:
            words.append(f"--{name} {name.upper()}")
        elif isinstance(value, int | float) and value != parser.get_default(name):
            option = "--" + name.replace("_", "-")
            words.append("--no-compile" if name == "compile" else f"{option} {value:g}")
    return " ".join(words)


def main() -> None:
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="folder with the three books")
    parser.add_argument("--out", type=Path, default=root / "python/gemlet/demo")
    parser.add_argument("--heldout", type=Path, default=root / "tests/data/heldout.txt")
    parser.add_argument("--work", type=Path, default=root / "build/train_demo", help="temporary folder")
    parser.add_argument("--more", type=Path, help="folder with more books, one plain text file each")
    parser.add_argument("--start", type=Path, help="folder of a trained demo model to continue from")
    parser.add_argument("--state", type=Path, help="file for the state, to continue the training later")
    parser.add_argument("--save-every", type=float, default=3, help="minutes between two writes of --state")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1700)
    parser.add_argument("--minutes", type=float, default=50, help="the most minutes of the schedule")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.4)
    parser.add_argument("--dropout", type=float, default=0.15)
    parser.add_argument("--bpe-dropout", type=float, default=0.05)
    parser.add_argument("--eval-every", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="no torch.compile")
    parser.add_argument("--package-only", action="store_true", help="only write the folder, from --state")
    args = parser.parse_args()
    args.command = command(parser, args)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    books = read_books(args.corpus, args.more)
    tokenizer = train_tokenizer(books, args.work / "tokenizer.model")
    run = Run(args) if args.package_only else train(args, books, tokenizer)
    if not run.best["weights"]:
        parser.error("--package-only needs the --state of an earlier run")
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
