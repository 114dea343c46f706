"""docs/reliability.md names every fault test, and no test that is not there."""

import re

from tests.conftest import PROJECT

PAGE = (PROJECT / "docs" / "reliability.md").read_text(encoding="utf-8")
DEFINED = re.compile(r"^(?:def (test_\w+)|(Test\w+) = )", re.MULTILINE)


def _tests_in(path: str) -> set[str]:
    found = DEFINED.findall((PROJECT / path).read_text(encoding="utf-8"))
    return {name for names in found for name in names if name}


def test_every_promise_names_its_test_and_every_fault_test_its_promise() -> None:
    rows = re.findall(r"\| `(\w+)`(?: in `([\w/.]+)`)? \|$", PAGE, re.MULTILINE)
    tables = PAGE.partition("## Figures")[0]
    assert len(rows) == tables.count("\n|") - 2 * tables.count("\n|---"), "Each row names one test."
    for name, path in rows:
        assert not path or name in _tests_in(path)
    ours = {name for name, path in rows if not path}
    files = (PROJECT / "tests" / "faults").glob("test_*.py")
    there = {name for file in files for name in _tests_in(f"tests/faults/{file.name}")}
    assert ours == there - {"test_every_promise_names_its_test_and_every_fault_test_its_promise"}
