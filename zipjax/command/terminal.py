"""What the command says: lines, progress and sizes."""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

_PAUSE = 5.0  # Seconds between two lines of progress where none can be overwritten.


def say(text: str = "") -> None:
    """Writes a line to the standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def tell(text: str) -> None:
    """Writes a line of progress, or an error, to the standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class Warnings(logging.Handler):
    """Shows the package's warnings, and keeps them for the manifest."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self._propagated = True

    def emit(self, record: logging.LogRecord) -> None:
        """Shows a warning, once."""
        message = record.getMessage()
        if message not in self.messages:
            self.messages.append(message)
            tell(f"warning: {message}")

    def __enter__(self) -> "Warnings":
        logger = logging.getLogger("zipjax")
        logger.addHandler(self)
        # Libraries that are imported on the way may add handlers above.
        self._propagated, logger.propagate = logger.propagate, False
        return self

    def __exit__(self, *_: Any) -> None:
        logger = logging.getLogger("zipjax")
        logger.removeHandler(self)
        logger.propagate = self._propagated


class Progress(Sequence[Any]):
    """Batches that tell how many of them were read."""

    def __init__(self, what: str, batches: Sequence[Any]) -> None:
        self._what, self._batches = what, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: Any) -> Any:
        return self._batches[number]

    def __iter__(self) -> Iterator[Any]:
        told, same_line = time.monotonic(), sys.stderr.isatty()
        for number, batch in enumerate(self._batches, 1):
            yield batch
            last, now = number == len(self), time.monotonic()
            if same_line or last or now - told > _PAUSE:
                told = now
                start, end = ("\r", "\n" if last else "") if same_line else ("", "\n")
                sys.stderr.write(
                    f"{start}{self._what}: batch {number} of {len(self)}{end}"
                )
                sys.stderr.flush()


def megabytes(size: float) -> str:
    """Returns a number of bytes for people.

    >>> megabytes(1_500_000), megabytes(7e9), megabytes(120)
    ('1.5 MB', '7.0 GB', '0.1 kB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"
