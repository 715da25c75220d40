"""The text the demo model is trained and judged on: three public-domain books, cut into chapters and paragraphs.

`read_books` gives every book as training chapters and held-out chapters; the first 40 % of every held-out chapter picks
the checkpoint, the rest is what the reported perplexities are measured on.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

TITLES = {
    "shakespeare": "Shakespeare, plays (the tinyshakespeare selection)",
    "frankenstein": "Mary Shelley, Frankenstein",
    "botchan": "Natsume Soseki, Botchan, translated by Yasotaro Morri, revised by J. R. Kennedy (1919)",
}


@dataclass
class Book:
    """Chapters are lists of paragraphs; `select` picks the checkpoint, `report` is measured once at the end."""

    train: list[list[str]]
    select: list[list[str]]
    report: list[list[str]]


def typography(text: str) -> str:
    """One spelling of quotes and dashes for all books: the vocabulary is small."""
    for old, new in (("“", '"'), ("”", '"'), ("‘", "'"), ("’", "'"), ("\r", ""), ("\ufeff", ""), ("_", "")):
        text = text.replace(old, new)
    return re.sub(r"-{2,}", "—", text)


def read_shakespeare(text: str) -> list[list[str]]:
    """Speeches, in stretches of about 18 kB (the file has no marks between scenes)."""
    chapters: list[list[str]] = [[]]
    for speech in text.strip().split("\n\n"):
        if sum(map(len, chapters[-1])) > 18_000:
            chapters.append([])
        chapters[-1].append(speech.strip())
    return chapters


def read_frankenstein(text: str) -> list[list[str]]:
    chapters = re.split(r"^(?:Letter|Chapter) \d+\n", text, flags=re.MULTILINE)[1:]
    return [[" ".join(p.split()) for p in chapter.split("\n\n") if p.strip()] for chapter in chapters]


def read_botchan(text: str) -> list[list[str]]:
    """Without the Project Gutenberg header and licence; lines rewrapped into paragraphs.

    The file has lost its blank lines. A paragraph ends where a line ends in a full stop although the first word
    of the next line would still have fitted.
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


def read_books(corpus: Path) -> dict[str, Book]:
    sources = {
        "shakespeare": ("tinyshakespeare.txt", read_shakespeare, (9, 27, 45)),
        "frankenstein": ("frankenstein.txt", read_frankenstein, (13, 21)),  # chapters 10 and 18, after 4 letters
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
    return books


def conversations(books: dict[str, Book], rng: random.Random) -> list[str]:
    """Consecutive speeches, and consecutive short paragraphs of prose, as turns of user and model."""
    talks = []
    for name, book in books.items():
        for chapter in book.train:
            turns = [p.partition(":\n")[2] if name == "shakespeare" else p for p in chapter]
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
    """About 18 kB of every book's unseen text, the same share from each of its chapters."""
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
