"""What the live chart is given to draw, and what is said of it."""

import json

from backend.curve import Point
from pages.parts import chart


def points(*values: dict[str, float | None]) -> list[Point]:
    return [Point(step, values=given) for step, given in enumerate(values, 1)]


def test_the_losses_share_a_panel_and_other_numbers_have_their_own() -> None:
    drawn = chart.panels(
        points(
            {"train_loss": 2.0, "grad_norm": 0.5, "learning_rate": 1e-3},
            {"train_loss": 1.0, "eval_loss": 1.5, "val_accuracy": 0.5},
        )
    )
    assert [panel["title"] for panel in drawn] == [
        "Loss",
        "Learning rate",
        "Gradient norm",
        "Val accuracy",
    ]
    assert [series["name"] for series in drawn[0]["series"]] == ["Train loss", "Held-out loss"]


def test_a_loss_that_is_no_number_is_a_gap_and_one_not_logged_is_none() -> None:
    drawn = chart.panels(points({"train_loss": 2.0}, {"train_loss": None}, {"eval_loss": 1.0}))
    train, held_out = drawn[0]["series"]
    assert (train["x"], train["y"]) == ([1, 2], [2.0, None])
    assert (held_out["x"], held_out["y"]) == ([3], [1.0])
    json.dumps(drawn, allow_nan=False)


def test_the_best_held_out_point_is_the_first_lowest() -> None:
    drawn = chart.panels(points({"eval_loss": 3.0}, {"eval_loss": 1.0}, {"eval_loss": 1.0}))
    assert drawn[0]["best"] == {"x": 2, "y": 1.0}


def test_the_curve_is_said_in_words() -> None:
    words = chart.summary(points({"train_loss": 2.0}, {"train_loss": 0.5, "eval_loss": 0.75}))
    assert words == (
        "Train loss went from 2 to 0.5, held-out loss went from 0.75 to 0.75, "
        "best held-out 0.75 at step 2. Last step 2."
    )


def test_an_empty_curve_says_what_will_come() -> None:
    assert chart.panels([]) == []
    assert "first point" in chart.summary([])


def test_a_job_that_logs_a_hundred_numbers_gets_a_bounded_page() -> None:
    many = {f"number_{n:03d}": 1.0 for n in range(100)}
    assert len(chart.panels(points(dict(many)))) == chart.MAX_PANELS
