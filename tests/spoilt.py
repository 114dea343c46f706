"""What a stranger's program may leave where a file is expected."""

import threading
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.just(10**400)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
"""Whatever JSON can hold, and more."""


def make_folder(path: Path) -> None:
    path.mkdir()


def make_link(path: Path) -> None:
    target = path.with_name("elsewhere.json")
    target.write_text('{"step": 99}', encoding="utf-8")
    path.symlink_to(target)


def make_empty(path: Path) -> None:
    path.touch()


def in_time(ask: Callable[[], bool]) -> bool:
    """The answer, or a failed test where it blocks."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
    thread.start()
    thread.join(20)
    assert answers, "It blocks."
    return answers[0]
