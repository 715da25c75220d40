"""Trains the demo model that ships inside gemlet: a 4.4-million-parameter Gemma 3 that writes like its books.

    python train_demo.py --corpus CORPUS --out python/gemlet/demo --heldout tests/data/heldout.txt

Needs torch, transformers 5.23 and sentencepiece (none of which gemlet itself needs at run time but the last), a
C++ compiler for torch.compile, and about 45 minutes on two CPU cores. CORPUS is a folder with three public-domain
books: `tinyshakespeare.txt`, `frankenstein.txt` and `botchan.txt`. Written to --out: a Hugging Face folder (config.json,
generation_config.json, model.safetensors in bfloat16, tokenizer.model), README.md and training.json with the
perplexities; to --heldout: text of every book that neither the weights nor the choice of the checkpoint have seen.

How it is trained, and why:
- Whole chapters (for the plays: stretches of about 18 kB) are held out. The first 40 % of each picks the checkpoint,
  the rest is what the reported perplexities are measured on.
- Every training sequence is <bos> and then text from the start of a paragraph, a sentence or a speech: what a prompt is.
- The corpus is 1.7 MB and is read some thirty times, so regularisation decides: dropout after every block, weight
  decay, and BPE-dropout (the same text cut into pieces differently at every reading) until the last fifth.
- One sequence in twelve is a conversation made from the books, in Gemma's turn format, so that `gemlet chat` works.
- Muon for the matrices, AdamW for the embedding and the norms; warm-up, a plateau, then a linear decay to zero.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import sentencepiece as spm
import torch
import transformers
from torch.nn import functional
from demo_corpus import TITLES, Book, conversations, read_books, write_heldout
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig

PAD, EOS, BOS, END_OF_TURN, BLANK_LINE = 0, 1, 2, 106, 108
VOCAB_SIZE, CONTEXT = 4096, 1024
SEQUENCE, MEASURED = 256, 512  # tokens of a training sequence (of CONTEXT at the end) and of a measured one
MIXTURE = {"shakespeare": 0.38, "frankenstein": 0.31, "botchan": 0.23, "chat": 0.08}


# ------------------------------------------------------------------------------------------------- the tokenizer
def train_tokenizer(books: dict[str, Book], path: Path) -> spm.SentencePieceProcessor:
    """A SentencePiece BPE vocabulary with Gemma 3's control tokens at Gemma 3's ids."""
    symbols = ["<mask>", "[multimodal]", *(f"<unused{i}>" for i in range(99)), "<start_of_turn>", "<end_of_turn>"]
    symbols += ["\n" * n for n in range(1, 9)] + ["▁" * n for n in range(2, 17)]
    paragraphs = [line for book in books.values() for c in book.train for p in c for line in p.split("\n")]
    model = io.BytesIO()  # written through memory: a file name would become part of the model
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(paragraphs), model_writer=model, model_type="bpe",
        vocab_size=VOCAB_SIZE, byte_fallback=True, character_coverage=1.0, normalization_rule_name="identity",
        add_dummy_prefix=False, remove_extra_whitespaces=False, split_digits=True, max_sentence_length=1 << 20,
        pad_id=PAD, eos_id=EOS, bos_id=BOS, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
        user_defined_symbols=symbols, num_threads=1, minloglevel=2,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    tokenizer = spm.SentencePieceProcessor(model_file=str(path))
    expected = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4, "<unused0>": 6, "<start_of_turn>": 105,
                "<end_of_turn>": END_OF_TURN, "\n": 107, "\n\n": BLANK_LINE, "▁▁": 115}  # fmt: skip
    actual = {piece: tokenizer.piece_to_id(piece) for piece in expected}
    if actual != expected or tokenizer.vocab_size() != VOCAB_SIZE:
        raise RuntimeError(f"the vocabulary is not laid out like Gemma's: {actual}")
    return tokenizer


@dataclass
class Stream:
    """A book as one row of token ids, and the places where a sequence may begin."""

    ids: torch.Tensor
    starts: list[int]


class Cutter:
    """Turns text into streams of tokens."""

    def __init__(self, tokenizer: spm.SentencePieceProcessor) -> None:
        self.tokenizer = tokenizer
        pieces = [tokenizer.id_to_piece(i) for i in range(VOCAB_SIZE)]
        known = {piece: i for i, piece in enumerate(pieces)}
        # bare[id]: the same piece without its leading space, as it is spelled at the start of a text; -1: none.
        self.bare = [known.get(p[1:], -1) if p[0] == "▁" else i for i, p in enumerate(pieces)]
        self.ends = [re.search(r"""[.!?]["']?$""", p) is not None for p in pieces]
        self.opens = [re.match(r"""▁["']?[A-Z]""", p) is not None for p in pieces]

    def stream(self, documents: list[list[str]], bpe_dropout: float) -> Stream:
        """Lists of paragraphs -> one row; a document ends in <eos>. Paragraphs and sentences are starts."""
        sampling = {"enable_sampling": True, "alpha": bpe_dropout, "nbest_size": -1} if bpe_dropout else {}
        ids: list[int] = []
        starts: list[int] = []
        for document in documents:
            for number, paragraph in enumerate(document):
                pieces = self.tokenizer.encode(paragraph, **sampling)
                starts.append(len(ids))
                for at in range(1, len(pieces)):
                    if self.opens[pieces[at]] and self.ends[pieces[at - 1]] and self.bare[pieces[at]] >= 0:
                        starts.append(len(ids) + at)
                ids += pieces
                ids.append(EOS if number == len(document) - 1 else BLANK_LINE)
            ids.append(BOS)
        return Stream(torch.tensor(ids), starts)

    def row(self, stream: Stream, length: int, rng: random.Random) -> torch.Tensor:
        """<bos> and `length` tokens from a random start on."""
        at = rng.choice(stream.starts)
        while at + length > len(stream.ids):
            at = rng.choice(stream.starts)
        first = torch.tensor([BOS, self.bare[int(stream.ids[at])]])
        return torch.cat((first, stream.ids[at + 1 : at + length]))


# ----------------------------------------------------------------------------------------------------- the model
def make_config() -> Gemma3TextConfig:
    return Gemma3TextConfig(
        vocab_size=VOCAB_SIZE, hidden_size=256, intermediate_size=512, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=1, head_dim=64, query_pre_attn_scalar=64, sliding_window=64,
        layer_types=["sliding_attention"] * 5 + ["full_attention"], max_position_embeddings=CONTEXT,
        pad_token_id=PAD, eos_token_id=[EOS, END_OF_TURN], bos_token_id=BOS, tie_word_embeddings=True,
        attn_implementation="sdpa",
    )  # fmt: skip


def add_dropout(model: Gemma3ForCausalLM, rate: float) -> None:
    """Dropout on the embedding and on what every block adds to the residual (transformers has none there)."""

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
    groups = [{"params": tables, "weight_decay": args.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=args.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98)),
    ]


def learning_rate(progress: float) -> float:
    """Share of the peak: 3 % warm-up, a plateau, the last 60 % a straight line to zero."""
    return min(progress / 0.03, 1.0, (1.0 - progress) / 0.6) + 1e-4


@torch.no_grad()
def measure(model: torch.nn.Module, tokenizer: spm.SentencePieceProcessor, texts: list[str], context: int) -> dict[str, float]:
    """Perplexity per token and bits per byte; every text is cut into pieces of `context` tokens, <bos> before each."""
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


# ------------------------------------------------------------------------------------------------------ training
def train(args: argparse.Namespace, books: dict[str, Book], tokenizer: spm.SentencePieceProcessor) -> dict[str, float]:
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
        length = CONTEXT if progress > 0.8 else SEQUENCE  # the global layer learns the whole context at the end
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
        # The schedule follows the steps; on a slower machine it follows the clock, so that it always completes.
        progress = max(step / args.steps, minutes / args.minutes)
        if step % args.eval_every == 0 or progress >= 1.0:
            held = {name: measure(model, tokenizer, texts, MEASURED) for name, texts in select.items()}
            score = sum(h["bits_per_byte"] for h in held.values()) / len(held)
            line = "  ".join(f"{n} {h['perplexity']:.1f} ({h['bits_per_byte']:.3f})" for n, h in held.items())
            mark = "*" if score < best else " "
            print(f"{minutes:5.1f} min  step {step:5d}  train {loss.item():.3f}  held out {score:.4f}{mark} {line}",
                  flush=True)  # fmt: skip
            if score < best:
                best = score
                torch.save(model.state_dict(), args.work / "best.pt")
                tokens = sum(len(cutter.stream(book.train, 0.0).ids) for book in books.values())
                run = {
                    "steps": step, "best_step": step, "minutes": round(minutes, 1), "tokens_seen": step * args.batch_tokens,
                    "train_tokens": tokens, "parameters": sum(p.numel() for p in model.parameters()),
                }  # fmt: skip
                (args.work / "run.json").write_text(json.dumps(run))
    run |= {"steps": step, "minutes": round(minutes, 1), "tokens_seen": step * args.batch_tokens}
    return run


def write_folder(folder: Path, args: argparse.Namespace, books: dict[str, Book], run: dict[str, float]) -> None:
    """The Hugging Face folder from args.work, measured as it is read back from disk; README.md, training.json."""
    model = Gemma3ForCausalLM(make_config())
    model.load_state_dict(torch.load(args.work / "best.pt"))
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=[EOS, END_OF_TURN], pad_token_id=PAD,
        do_sample=True, temperature=0.8, top_k=64, top_p=0.95,
    )  # fmt: skip
    model.save_pretrained(folder)
    shutil.copyfile(args.work / "tokenizer.model", folder / "tokenizer.model")
    stored = Gemma3ForCausalLM.from_pretrained(folder, dtype=torch.float32)  # bf16 weights, f32 arithmetic
    tokenizer = spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    report = {name: as_texts(book.report) for name, book in books.items()}
    report["all"] = [text for texts in report.values() for text in texts]
    heldout = {name: measure(stored, tokenizer, texts, MEASURED) for name, texts in report.items()}
    command = f"python python/tools/train_demo.py --corpus CORPUS --seed {args.seed} --steps {args.steps}"
    facts = {
        "command": command, "seed": args.seed, **run, "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__, "heldout_context": MEASURED, "heldout": heldout,
        "heldout_full_context": {name: measure(stored, tokenizer, t, CONTEXT) for name, t in report.items()},
    }  # fmt: skip
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    rows = "\n".join(
        f"| {TITLES.get(name, 'all three')} | {h['bytes']:,} | {h['perplexity']:.1f} | {h['bits_per_byte']:.3f} |"
        for name, h in heldout.items()
    )
    facts |= {"rows": rows, "context": MEASURED, "full": f"{CONTEXT:,}", "titles": "\n- ".join(TITLES.values())}
    (folder / "README.md").write_text(README.format(**facts), encoding="utf-8")


README = """\
# The demo model

A Gemma 3 of {parameters:,} parameters (six layers, five with a sliding window of 64 tokens and one that sees the
whole context of {full}; hidden size 256), trained from scratch for gemlet. It exists to show that everything works
with nothing downloaded, and to give the tests real text; it writes in the manner of its three books and knows
nothing else.

The folder is an ordinary Hugging Face folder (`Gemma3ForCausalLM`, bfloat16). The vocabulary is a SentencePiece BPE
of 4,096 pieces with byte fallback and Gemma 3's control tokens at Gemma 3's ids; one training sequence in twelve was
a conversation cut from the books, so that the chat format works.

## Books

- {titles}

All three texts are in the public domain. Shakespeare's plays are the selection known as tinyshakespeare; the English
Botchan of 1919 is Project Gutenberg's eBook #8868, used without its header and licence. Curly quotes were
straightened and double hyphens made into dashes. The weights and the vocabulary made from them are part of gemlet and
under its licence, Apache-2.0; nothing in them comes from Google's checkpoints.

## Held-out text

Chapters 10 and 18 of Frankenstein, chapter IX of Botchan and three stretches of the plays were never trained on. The
first 40 % of each picked the checkpoint; the rest was measured once, from the stored bfloat16 weights with float32
arithmetic, in pieces of {context} tokens, each after `<bos>`:

| book | bytes | perplexity per token | bits per byte |
|---|---|---|---|
{rows}

`training.json` has these numbers with all digits and for pieces of {full} tokens.

## Again

    {command}

Seed {seed}; {steps:,} steps in {minutes} minutes on two cores, best at step {best_step:,}; {tokens_seen:,} tokens seen
from {train_tokens:,} of training text. Another machine or another version of PyTorch gives a slightly different model.
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
    parser.add_argument("--minutes", type=float, default=50, help="the schedule ends here even with steps left")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.4)
    parser.add_argument("--dropout", type=float, default=0.15)
    parser.add_argument("--bpe-dropout", type=float, default=0.05)
    parser.add_argument("--eval-every", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="no torch.compile")
    parser.add_argument("--package-only", action="store_true", help="write the folder from the best weights in --work")
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
