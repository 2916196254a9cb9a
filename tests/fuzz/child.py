"""The process in which calls run: `python -m fuzz.child FD SEED FIRST END`, watched by another.

Every call is announced on the pipe FD before it runs, so that a crash has a number; its end follows.
"""

import faulthandler
import json
import os
import sys
import traceback
import warnings

from fuzz.call import Call
from fuzz.draw import draw
from fuzz.judge import judge
from fuzz.script import reproduction
from fuzz.theirs import Theirs


def run(call: Call) -> tuple[str, str] | None:
    """What is wrong with the call, and the script that shows it."""
    names: dict[str, object] = {"__name__": "__fuzz__"}
    try:
        exec(compile(call.text, "<call>", "exec"), names)
    except BaseException as error:  # a Rust panic is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        documented = call.compared and isinstance(error, TypeError | ValueError | RuntimeError)
        if documented and (call.may_raise or _theirs_raises(call, names)):
            return None
        sentence = "".join(traceback.format_exception_only(error)).strip()
        return sentence, call.text
    if not call.compared:
        return None
    wrong = judge(call, names)
    return None if wrong is None else (wrong.sentence, reproduction(call, wrong))


def _theirs_raises(call: Call, names: dict[str, object]) -> bool:
    try:
        Theirs(call, names).own()
    except Exception:
        return True
    return False


def main(descriptor: int, seed: int, first: int, end: int) -> None:
    faulthandler.enable()
    warnings.simplefilter("ignore")
    with os.fdopen(descriptor, "w", buffering=1) as pipe:
        for number in range(first, end):
            pipe.write(json.dumps({"start": number}) + "\n")
            call = draw(seed, number)
            found = run(call)
            message = {"end": number, "kind": call.kind}
            if found is not None:
                message |= {"sentence": found[0], "script": found[1]}
            pipe.write(json.dumps(message) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
