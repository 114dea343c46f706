"""What is said of jobs side by side."""

import pytest

from backend.comparison import (
    MAX_JOBS,
    asked,
    best_of,
    differences,
    groups,
    higher_is_better,
    metrics_in_order,
    parameters_of,
)


def test_the_address_is_read_and_what_is_no_number_is_kept_to_be_said() -> None:
    found = asked(" 14, 12,x,12,,-3,0,²,99999999999999999999999")
    assert found.ids == [14, 12]
    assert found.wrong == ["x", "-3", "0", "²", "99999999999999999999999"]
    assert asked("").ids == []
    many = asked(",".join(map(str, range(1, MAX_JOBS + 3))))
    assert (len(many.ids), many.left_out) == (MAX_JOBS, 2)


def test_the_arguments_of_a_script_are_parameters_of_their_own() -> None:
    found = parameters_of(
        "script",
        {
            "script": "/home/me/train.py",
            "args": [
                "data",
                "--lr",
                "3e-4",
                "--depth=12",
                "-v",
                "--bias",
                "-0.5",
                "model.dim=64",
                "--layers",
                "1",
                "2",
                "--fp16",
                "--script",
                "x",
            ],
            "python": None,
        },
    )
    assert found == {
        "recipe": "script",
        "script": "/home/me/train.py",
        "argument 1": "data",
        "lr": 3e-4,
        "depth": 12,
        "v": True,
        "bias": -0.5,
        "model.dim": 64,
        "layers": "1 2",
        "fp16": True,
        "--script": "x",
        "python": None,
    }


def test_an_argument_that_is_not_finite_stays_a_text() -> None:
    assert parameters_of("script", {"args": ["--a", "nan", "--b", "1e999"]}) == {
        "recipe": "script",
        "a": "nan",
        "b": "1e999",
    }


def test_only_parameters_that_differ_are_told_apart_from_those_that_do_not() -> None:
    found = differences(
        {1: {"lr": 0.1, "seed": 1, "on": True}, 2: {"lr": 0.1, "seed": 2, "on": 1, "new": "x"}}
    )
    assert found.same == {"lr": 0.1}
    assert found.differing == {
        "seed": {1: 1, 2: 2},
        "on": {1: True, 2: 1},
        "new": {1: None, 2: "x"},
    }
    assert differences({}).differing == {}
    assert differences({1: {"lr": 1}}).same == {"lr": 1}


def test_jobs_are_grouped_by_a_value_numbers_in_their_order() -> None:
    found = groups({1: 0.1, 2: "big", 3: 0.01, 4: 0.1, 5: None, 6: True, 7: 1, 8: 1.0})
    assert [(group.value, group.job_ids) for group in found] == [
        (0.01, [3]),
        (0.1, [1, 4]),
        (1, [7, 8]),
        (True, [6]),
        ("big", [2]),
        (None, [5]),
    ]


@pytest.mark.parametrize("name", ["val_accuracy", "F1", "eval_auc", "steps_per_second", "top5_acc"])
def test_of_some_metrics_more_is_better(name: str) -> None:
    assert higher_is_better(name)


@pytest.mark.parametrize("name", ["train_loss", "perplexity", "grad_norm", "vacc", "mapping_error"])
def test_of_others_less_is(name: str) -> None:
    assert not higher_is_better(name)


def test_the_best_are_those_with_the_best_value_and_one_alone_is_not_best() -> None:
    assert best_of({1: 2.0, 2: 1.0, 3: None, 4: 1.0}, higher=False) == [2, 4]
    assert best_of({1: 2.0, 2: 1.0}, higher=True) == [1]
    assert best_of({1: 2.0, 2: None}, higher=True) == []


def test_the_losses_come_first() -> None:
    assert metrics_in_order({"b", "eval_loss", "A", "train_loss"}) == [
        "train_loss",
        "eval_loss",
        "A",
        "b",
    ]
