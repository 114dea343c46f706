"""How the benchmarks tell what they have found."""


def line(what: str, figure: str, baseline: str, goal: str) -> None:
    """Print one row of the report."""
    print(f"{what:<44} {figure:>14}   baseline {baseline:>12}   goal {goal}", flush=True)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
