"""Runs recipes, each in a process of its own, forked off this one, which has torch already.

An order is a line of JSON on stdin: the recipe, its parameters, the variables of its environment,
the file that takes its output, and Python to be run first, to which the names in here are known.
The answer, a line on stdout, is its exit code.
"""

import atexit
import json
import math
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import torch

from backend.recipes import RECIPES
from backend.training import signalbox
from backend.training.recipes import char_lm, checkpoints, digits

MODULES = {"digits": digits, "char_lm": char_lm}
FEW = 300
"""Of the images, as many are learned from and as many are held out."""


def main() -> None:
    torch.use_deterministic_algorithms(True)  # loads what would take each fork a second
    train, held_out = digits.load()
    few = train.take(torch.arange(FEW)), held_out.take(torch.arange(FEW))
    digits.load = lambda: few
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            be(order)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def be(order: dict[str, Any]) -> NoReturn:
    """What the order says, but for the end of the interpreter, which takes as long again."""
    code = 0
    try:
        obey(order)
    except SystemExit as error:
        print(error.code)
        code = 1
    except Exception:  # noqa: BLE001
        traceback.print_exc()
        code = 2
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def obey(order: dict[str, Any]) -> None:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(order["environment"])
    torch.set_num_threads(1)
    signalbox.STOP_LOOK_SECONDS = 0
    checkpoints.BEST_SHARE = math.inf
    exec(order["first"], globals())
    params = RECIPES[order["recipe"]].params.model_validate(order["params"])
    MODULES[order["recipe"]].main(params)


# What a test may have happen.


def before(owner: object, name: str, call: int, action: Any, having: str = "") -> None:
    """`action` just before the so-many-eth call of `owner.name` with `having` in an argument."""
    function = getattr(owner, name)
    calls = 0

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += having in repr(args)
        if calls == call and having in repr(args):
            action()
        return function(*args, **kwargs)

    setattr(owner, name, wrapper)


def after(owner: object, name: str, call: int, action: Any) -> None:
    """`action` just after the so-many-eth call of `owner.name`."""
    function = getattr(owner, name)
    calls = 0

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        result = function(*args, **kwargs)
        calls += 1
        if calls == call:
            action()
        return result

    setattr(owner, name, wrapper)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ask(pause: bool = True) -> None:
    """What the server writes to ask for a pause, or for the end."""
    text = {"asked_at": str(os.getpid()), "pause": pause, "ending": None if pause else {}}
    Path(os.environ["SIGNALBOX_RUN_DIR"], signalbox.STOP_FILE).write_text(json.dumps(text))


def withdraw() -> None:
    Path(os.environ["SIGNALBOX_RUN_DIR"], signalbox.STOP_FILE).unlink()


def ask_after_step(asked_step: int, pause: bool = True) -> None:
    """Ask once this step was logged; at its end the recipe looks."""
    log = signalbox.Run.log

    def wrapper(run: signalbox.Run, step: int, *args: Any, **numbers: Any) -> None:
        log(run, step, *args, **numbers)
        if step == asked_step:
            ask(pause)

    signalbox.Run.log = wrapper  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    main()
