"""What a reader may write beside a job: its name, its tags and a note."""

from collections.abc import Iterable
from typing import Final

from backend.submission import MAX_NAME, clean_name

MAX_TAGS: Final = 50
MAX_TAG: Final = 50
MAX_NOTE: Final = 10_000
"""Characters."""


class LabelError(ValueError):
    """A text cannot be written beside a job; the message is a sentence.

    Attributes:
        field: which one, `name`, `tags` or `note`.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def name(text: str) -> str:
    """A name on one line. Raises LabelError."""
    cleaned = clean_name(text)
    if not cleaned:
        raise LabelError("name", "Must hold something that shows.")
    if len(cleaned) > MAX_NAME:
        raise LabelError("name", f"Must be at most {MAX_NAME} characters long.")
    return cleaned


def tags(texts: Iterable[str]) -> list[str]:
    """Tags as they were given, each once whatever its case. Raises LabelError."""
    found: dict[str, str] = {}
    for text in texts:
        tag = clean_name(text)
        if len(tag) > MAX_TAG:
            raise LabelError("tags", f"A tag must be at most {MAX_TAG} characters long.")
        if tag:
            found.setdefault(tag.casefold(), tag)
    if len(found) > MAX_TAGS:
        raise LabelError("tags", f"A job can have at most {MAX_TAGS} tags.")
    return list(found.values())


def note(text: str) -> str | None:
    """A note, lines and all; None for an empty one. Raises LabelError."""
    plain = text.encode("utf-8", "replace").decode().replace("\0", " ").strip()
    if len(plain) > MAX_NOTE:
        raise LabelError("note", f"Must be at most {MAX_NOTE:,} characters long.")
    return plain or None
