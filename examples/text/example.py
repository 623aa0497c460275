"""Text: the next character, one client for each book (King James Bible, Debian's bible-kjv-text).

Clients are natural ones: ten books of different kinds and lengths. The last tenth of each is for
testing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from featherfed.tasks.task import Input, Target, TargetKind, Task

LENGTH = 32
LETTERS = tuple(" abcdefghijklmnopqrstuvwxyz.,;:?!'()-")
NAMES = ("space", *LETTERS[1:])
BOOKS = (
    "ruth",
    "esther",
    "ecclesiastes",
    "hosea",
    "amos",
    "jonah",
    "mark",
    "romans",
    "james",
    "jude",
)
TASK = Task(
    (Input("text", "int32", (LENGTH,), vocabulary=len(LETTERS)),),
    Target(TargetKind.CLASS, (LENGTH,), NAMES),
    metrics=("accuracy", "perplexity"),
)
TRAINING = {"rounds": 15, "epochs": 1, "batch_size": 16, "learning_rate": 1.0}
TEST_SHARE = 0.1
Tokens = npt.NDArray[Any]


def build() -> Any:
    """Return the model: embedding, GRU, and a guess at every position."""
    import tf_keras

    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.InputLayer((LENGTH,), dtype="int32", name="text"),
            layers.Embedding(len(LETTERS), 16, name="letters"),
            layers.GRU(
                96, return_sequences=True, recurrent_initializer="glorot_uniform", name="read"
            ),
            layers.Dense(len(LETTERS), activation="softmax", name="next"),
        ]
    )


def clients() -> dict[str, tuple[Tokens, Tokens]]:
    """Return each book without its end."""
    return {book: _examples(text[: _kept(text)]) for book, text in _books().items()}


def test() -> tuple[Tokens, Tokens]:
    """Return the ends of all books."""
    found = [_examples(text[_kept(text) :]) for text in _books().values()]
    return np.concatenate([x for x, _ in found]), np.concatenate([y for _, y in found])


@cache
def _books() -> dict[str, Tokens]:
    return {book: _read(book) for book in BOOKS}


def _read(book: str) -> Tokens:
    """Return a book's letters as numbers."""
    if shutil.which("bible") is None:
        raise SystemExit("this example reads Debian's text: apt install bible-kjv bible-kjv-text")
    done = subprocess.run(
        ["bible", "-f", f"{book}1:1-200:200"], capture_output=True, text=True, check=True
    )
    verses = [re.sub(r"^\S+ ", "", line) for line in done.stdout.splitlines()]
    letters = [c for c in " ".join(verses).lower() if c in LETTERS]
    return np.array([LETTERS.index(letter) for letter in letters], np.int32)


def _kept(text: Tokens) -> int:
    return round(len(text) * (1 - TEST_SHARE))


def _examples(text: Tokens) -> tuple[Tokens, Tokens]:
    """Return pieces of the text, and the same pieces one letter later."""
    count = (len(text) - 1) // LENGTH
    x = text[: count * LENGTH].reshape(count, LENGTH)
    y = text[1 : count * LENGTH + 1].reshape(count, LENGTH).astype(np.int64)
    return x, y


def main() -> None:
    """Train the federation in this process, and print how it went."""
    import featherfed

    history = featherfed.simulate(build(), TASK, clients=clients(), test=test(), **TRAINING)
    print(history)


if __name__ == "__main__":
    main()
