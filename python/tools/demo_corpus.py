"""Reads the training text and the held-out text of the demo model, and makes its vocabulary. train_demo.py
uses it.

`read_books` splits three books in the public domain into training chapters and held-out chapters. The
checkpoint is chosen by the first 40 % of every held-out chapter; the reported perplexities are measured on
the rest. `train_tokenizer` makes the SentencePiece vocabulary from the training chapters. `Cutter` makes
sequences of token ids.
"""

from __future__ import annotations

import io
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece as spm
import torch

PAD, EOS, BOS, END_OF_TURN, BLANK_LINE = 0, 1, 2, 106, 108
VOCAB_SIZE = 4096
MORE = "more"  # one name for all further books together

TITLES = {
    "shakespeare": "Shakespeare, plays (the tinyshakespeare selection)",
    "frankenstein": "Mary Shelley, Frankenstein",
    "botchan": "Natsume Soseki, Botchan, translated by Yasotaro Morri, revised by J. R. Kennedy (1919)",
}


@dataclass
class Book:
    """The chapters of a book, each as a list of paragraphs. `train` is for training, `select` for choosing
    the checkpoint, and `report` for the reported perplexities."""

    train: list[list[str]]
    select: list[list[str]]
    report: list[list[str]]


def typography(text: str) -> str:
    """Gives all books the same quotes and dashes, because the vocabulary is small."""
    text = re.sub("[\u201c\u201d]", '"', text)
    text = re.sub("[\u2018\u2019]", "'", text)
    text = re.sub("[\r\ufeff_]", "", text)
    return re.sub("-{2,}", "—", text)


def read_shakespeare(text: str) -> list[list[str]]:
    """Passages of speeches of about 18 kB, which count as chapters, because the file does not mark scenes."""
    chapters: list[list[str]] = [[]]
    for speech in text.strip().split("\n\n"):
        if sum(map(len, chapters[-1])) > 18_000:
            chapters.append([])
        chapters[-1].append(speech.strip())
    return chapters


def read_frankenstein(text: str) -> list[list[str]]:
    """The four letters and the chapters. In the file, empty lines separate the paragraphs."""
    chapters = re.split(r"^(?:Letter|Chapter) \d+\n", text, flags=re.MULTILINE)[1:]
    return [[" ".join(p.split()) for p in chapter.split("\n\n") if p.strip()] for chapter in chapters]


def read_botchan(text: str) -> list[list[str]]:
    """The chapters, without the header and the licence of Project Gutenberg.

    The file has no empty lines between paragraphs. A line ends a paragraph if it ends a sentence and the
    first word of the next line would have fitted into it.
    """
    body = text.split("*** START OF", 1)[1].split("—(THE END)—", 1)[0]
    body = re.sub(r"\[Footnote[^\]]*\]\n", "", body)
    body = re.sub(r" ?(\(\[\w\]\)|\[\w\])", "", body)
    chapters = []
    for chapter in re.split(r"^CHAPTER [IVX]+\.?\n", body, flags=re.MULTILINE)[1:]:
        lines = [line.strip() for line in chapter.split("\n") if line.strip()]
        paragraphs, current = [], ""
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            current += (" " if current and not current.endswith("—") else "") + line
            fits = len(line) + 1 + len(following.partition(" ")[0]) <= 71
            if not following or (fits and re.search(r"""[.!?:—]["')\]]*$""", line)):
                paragraphs.append(current)
                current = ""
        chapters.append(paragraphs)
    return chapters


def read_more(folder: Path) -> tuple[list[list[str]], list[str]]:
    """The chapters and the titles of further books: plain text files, each with its title on the first line.

    An empty line ends a paragraph, and two or more end a chapter. Other line breaks are kept, for verse.
    """
    chapters, titles = [], []
    for path in sorted(folder.glob("*.txt")):
        title, _, body = typography(path.read_text(encoding="utf-8")).partition("\n")
        titles.append(title)
        for chapter in re.split(r"\n{3,}", body.strip()):
            chapters.append([p.strip() for p in chapter.split("\n\n") if p.strip()])
    return chapters, titles


def read_books(corpus: Path, more: Path | None = None) -> dict[str, Book]:
    """The books by name. The positions of the held-out chapters, counted from 0, are fixed here."""
    sources = {
        "shakespeare": ("tinyshakespeare.txt", read_shakespeare, (9, 27, 45)),
        "frankenstein": ("frankenstein.txt", read_frankenstein, (13, 21)),  # chapters 10, 18
        "botchan": ("botchan.txt", read_botchan, (8,)),  # chapter IX
    }
    books = {}
    for name, (file, reader, held_out) in sources.items():
        chapters = reader(typography((corpus / file).read_text(encoding="utf-8")))
        book = Book([c for i, c in enumerate(chapters) if i not in held_out], [], [])
        for chapter in (chapters[i] for i in held_out):
            sizes = [len(p) for p in chapter]
            cut = next(i for i in range(len(chapter)) if sum(sizes[:i]) >= 0.4 * sum(sizes))
            book.select.append(chapter[:cut])
            book.report.append(chapter[cut:])
        books[name] = book
    if more is not None:
        books[MORE] = Book(read_more(more)[0], [], [])
    return books


def spoken(paragraph: str, plays: bool) -> str:
    """The speech in a paragraph: everything in quotes, or a speech of a play; "" if there is none."""
    name, _, speech = paragraph.partition(":\n")
    if speech and len(name) < 30:
        return speech if plays else ""
    if not paragraph.startswith('"'):
        return ""
    text = ""
    for part in re.findall(r'"([^"]+)', paragraph)[::2]:
        if text.endswith(",") and part[0].isupper() and not part.startswith(("I ", "I'")):
            text = text[:-1] + "."
        text += " " * bool(text) + part.strip()
    return text[:-1] + "." if text.endswith((",", "—")) else text


def conversations(books: dict[str, Book], rng: random.Random) -> list[str]:
    """Conversations in which consecutive speeches of a book are the turns of user and model.

    Speeches of plays are used only if there are no further books, because the prose of the three books has
    too few speeches.
    """
    talks = []
    for book in books.values():
        for chapter in book.train:
            turns = [spoken(paragraph, MORE not in books) for paragraph in chapter]
            at = rng.randrange(2)
            while at + 2 <= len(turns):
                count = 2 * rng.randint(1, 3)
                group = turns[at : at + count]
                at += count
                if len(group) % 2 == 0 and all(0 < len(t) < 500 for t in group):
                    roles = ("user", "model") * (len(group) // 2)
                    pairs = zip(roles, group, strict=True)
                    talks.append("".join(f"<start_of_turn>{r}\n{t}<end_of_turn>\n" for r, t in pairs))
    rng.shuffle(talks)
    return talks


def write_heldout(path: Path, books: dict[str, Book], limit: int = 18_000) -> None:
    """Writes about 18 kB of held-out text of every book, in equal parts from the book's held-out chapters."""
    parts = []
    for book in books.values():
        for chapter in book.report:
            size = 0
            for paragraph in chapter:
                size += len(paragraph.encode()) + 2
                if size > limit / len(book.report):
                    break
                parts.append(paragraph)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def train_tokenizer(books: dict[str, Book], path: Path) -> spm.SentencePieceProcessor:
    """A SentencePiece BPE vocabulary with Gemma 3's control tokens at Gemma 3's ids."""
    symbols = ["<mask>", "[multimodal]", *(f"<unused{i}>" for i in range(99))]
    symbols += ["<start_of_turn>", "<end_of_turn>"]
    symbols += ["\n" * n for n in range(1, 9)] + ["▁" * n for n in range(2, 17)]
    own = [book for name, book in books.items() if name != MORE]
    paragraphs = [line for book in own for c in book.train for p in c for line in p.split("\n")]
    model = io.BytesIO()  # not a file, because SentencePiece would store the file's name in the model
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(paragraphs), max_sentence_length=1 << 20, model_writer=model, model_type="bpe",
        vocab_size=VOCAB_SIZE, byte_fallback=True, character_coverage=1.0, split_digits=True,
        normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
        pad_id=PAD, eos_id=EOS, bos_id=BOS, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
        user_defined_symbols=symbols, num_threads=1, minloglevel=2,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    tokenizer = spm.SentencePieceProcessor(model_file=str(path))
    expected = {
        "<pad>": PAD, "<eos>": EOS, "<bos>": BOS, "<unk>": 3, "<mask>": 4, "<unused0>": 6,
        "<start_of_turn>": 105, "<end_of_turn>": END_OF_TURN, "\n": 107, "\n\n": BLANK_LINE, "▁▁": 115,
    }  # fmt: skip
    actual = {piece: tokenizer.piece_to_id(piece) for piece in expected}
    if actual != expected or tokenizer.vocab_size() != VOCAB_SIZE:
        raise RuntimeError(f"the vocabulary is not laid out like Gemma's: {actual}")
    return tokenizer


@dataclass
class Stream:
    """A book as one row of token ids, and the positions where a sequence may begin."""

    ids: torch.Tensor
    starts: list[int]


class Cutter:
    """Turns text into streams of tokens."""

    def __init__(self, tokenizer: spm.SentencePieceProcessor) -> None:
        self.tokenizer = tokenizer
        pieces = [tokenizer.id_to_piece(i) for i in range(VOCAB_SIZE)]
        known = {piece: i for i, piece in enumerate(pieces)}
        # bare[id]: the id of the piece without its leading space, for the start of a text; -1 if there is no
        # such piece.
        self.bare = [known.get(p[1:], -1) if p[0] == "▁" else i for i, p in enumerate(pieces)]
        self.ends = [re.search(r"""[.!?]["']?$""", p) is not None for p in pieces]
        self.opens = [re.match(r"""▁["']?[A-Z]""", p) is not None for p in pieces]

    def stream(self, documents: list[list[str]], bpe_dropout: float) -> Stream:
        """Joins documents to one row of token ids, with <eos> after each. A sequence may begin at the start
        of each paragraph and sentence."""
        sampling: dict[str, Any] = (
            {"enable_sampling": True, "alpha": bpe_dropout, "nbest_size": -1} if bpe_dropout else {}
        )
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
        """<bos> and `length` tokens that begin at a random start."""
        at = rng.choice(stream.starts)
        while at + length > len(stream.ids):
            at = rng.choice(stream.starts)
        first = torch.tensor([BOS, self.bare[int(stream.ids[at])]])
        return torch.cat((first, stream.ids[at + 1 : at + length]))
