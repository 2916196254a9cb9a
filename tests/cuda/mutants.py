"""Breaks the kernels in every place where a rule fits, and asks the tests whether they see it.

    python tests/cuda/mutants.py              what becomes of every mutant, a line each
    python tests/cuda/mutants.py norm.cu      of those in files whose path has this in it

A mutant that nobody sees either shows that a test is missing, or changes nothing that can be seen: then it
stands in CHANGES_NOTHING, with the reason.
"""

import collections
import dataclasses
import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
SECONDS = 60  # of a mutant, which may run for ever; of a worker to begin, ten times that
FILES = (
    "tiles.cu",
    "norm.cu",
    "activation.cu",
    "reduce.cu",
    "attention_small.cu",
    "attention_long.cu",
    "softmax.cu",
)

_NAME = r"[a-z][\w.]*(?:\[\w+\])?"
_BOUND = rf"{_NAME}(?: \+ \w+)? (?:<|>=) {_NAME}(?: \* \w+)?"
RULES = {
    "no barrier": (r"\b(?:__syncthreads|__syncwarp|meet)\(\);", ";"),
    "no wait": (r"\bcopy_wait<\d>\(\);", ";"),
    "no commit": (r"\bcopy_commit\(\);", ";"),
    "no bound": (rf" (?:&&|\|\|) {_BOUND}(?=[);?]| [&|?])", ""),
    "no first bound": (rf"(?<=[(= ]){_BOUND} (?:&&|\|\|) ", ""),
    "one too far": (rf"(?<=[\w.\])]) < (?={_NAME}(?: \* \w+)?[;) ?])", " <= "),
    "no guard": (r"\bif \([a-z_]\w*(?: && [^()]*)?\) (?!return|continue)", ""),
    "axes exchanged": (r"\.by_position \?", ".by_position == 0 ?"),
    "a row off": (r"\b8 \* (STRIDE|stride|half)\b", r"7 * \1"),
    "a half off": (r"lane / 16 \* 8\b", "lane / 16 * 7"),
    "a word off": (r">> 2\b(?!;)", ">> 1"),
    "a lane off": (r"(sync\([\w, ?:\[\]()]*), (1|2)\)", r"\1, 4)"),
}


KEEPS_ALL = "a threshold of 0 keeps all, scale 1: only time is saved"
LOOKED_AT_AGAIN = "rows are looked at once more inside: only time is saved"
ONE_PIECE_MORE = (
    "a piece behind the row has no weight; it lies behind a lane's own array, and g++ minds two only"
)
ZEROS = "keys that do not count are copied as zeros, and so are their gradients"
# (file, rule, beginning of the line, which of them if not all): the reason why nobody can see the mutant.
CHANGES_NOTHING = {
    ("norm.cu", "no guard", "if (threshold) drop<N>", None): KEEPS_ALL,
    ("activation.cu", "no guard", "if (threshold) drop<N>", None): KEEPS_ALL,
    ("softmax.cu", "no guard", "if (threshold) drop<PIECE>", None): KEEPS_ALL,
    ("attention_small.cu", "no guard", "if (threshold && shared) {", None): KEEPS_ALL,
    ("attention_long.cu", "no guard", "if (threshold) draw(", None): KEEPS_ALL,
    ("attention_long.cu", "no guard", "if (dropout) draw(", None): KEEPS_ALL,
    ("norm.cu", "one too far", "for (int top", None): LOOKED_AT_AGAIN,
    ("activation.cu", "one too far", "for (int top", None): LOOKED_AT_AGAIN,
    ("attention_long.cu", "one too far", "for (int i = 0; i < steps; i++) {", 0): LOOKED_AT_AGAIN,
    ("attention_long.cu", "one too far", "int steps = first < s.counted", None): ZEROS,
    ("softmax.cu", "one too far", "for (int c = 0; c < p.chunks; c++) {", 0): ONE_PIECE_MORE,
    ("softmax.cu", "one too far", "for (int c = 0; c < p.chunks; c++) {", 2): ONE_PIECE_MORE,
    ("softmax.cu", "one too far", "for (int c = 0; c < p.chunks; c++) {", 4): ONE_PIECE_MORE,
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    rule: str
    start: int
    end: int
    to: str
    code: str  # the line, before
    nth: int  # of its rule and line in the file

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line}:{self.start}: {self.rule}: {self.code}"

    def __call__(self, file: str, text: str) -> str:
        return text[: self.start] + self.to + text[self.end :] if file == self.file else text


def changes_nothing(mutant: Mutant) -> bool:
    return any(
        (mutant.file, mutant.rule) == (file, rule)
        and mutant.code.startswith(code)
        and nth in (None, mutant.nth)
        for file, rule, code, nth in CHANGES_NOTHING
    )


def mutants(files: Iterable[str] = FILES) -> Iterator[Mutant]:
    from harness import KERNELS

    for file in files:
        if not (KERNELS / file).exists():
            continue
        text, count = (KERNELS / file).read_text(), collections.Counter()
        for rule, (pattern, to) in RULES.items():
            for found in re.finditer(pattern, text):
                before = text[: found.start()]
                begin = before.rfind("\n") + 1
                line, code = before.count("\n") + 1, text[begin:].split("\n")[0].strip()
                if not code.startswith(("//", "#")) and "//" not in before[begin:]:
                    yield Mutant(file, line, rule, *found.span(), found.expand(to), code, count[rule, code])
                    count[rule, code] += 1


def verdict(mutant: Mutant, tests: Iterable[Callable[[], None]]) -> str | None:
    """What a test has to say of the mutant."""
    import torch
    from harness import KernelError, SourceError, changed

    with changed(mutant):
        for test in tests:
            torch.manual_seed(0)
            try:
                test()
            except SourceError:
                raise  # a rule that makes nonsense shows nothing
            except (KernelError, AssertionError) as error:
                return repr(error)[:200]
    return None


def work(names: list[str]) -> None:
    """In a process of its own: a line of JSON for each of these mutants."""
    import torch
    from trials import trials

    torch.set_num_threads(1)
    of_file, all_of_them = trials(), {mutant.name: mutant for mutant in mutants()}
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for name in names:
        mutant = all_of_them[name]
        sys.stdout.write(json.dumps([name, verdict(mutant, of_file[mutant.file])]) + "\n")
        sys.stdout.flush()


def outcomes(names: list[str]) -> Iterator[tuple[str, str | None]]:
    """Each mutant's name and what was said of it. One that crashes or never ends is seen, too."""
    from emulated import objects

    left = list(names)
    command = [sys.executable, str(HERE / "mutants.py"), "--work"]
    environment = {**os.environ, "BATCHFORMER_EMULATOR_OBJECTS": str(objects())}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}  # as `select` sees no buffer
    while left:
        with subprocess.Popen(command, env=environment, **pipes) as worker:
            worker.stdin.write(json.dumps(left).encode())
            worker.stdin.close()
            if _line(worker, 10 * SECONDS) != b"ready\n":
                worker.kill()
                raise RuntimeError("the tests of the kernels cannot be imported")
            while left:
                line = _line(worker, SECONDS)
                if not line:
                    worker.kill()
                    if worker.wait() > 0:
                        raise RuntimeError(f"no test could be made of {left[0]}")
                    yield left.pop(0), "runs for ever" if line is None else "ends the process"
                    break
                name, said = json.loads(line)
                left.pop(0)
                yield name, said


def _line(worker: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """The next line, empty if the worker has ended; None: it took too long."""
    return worker.stdout.readline() if select.select([worker.stdout], [], [], seconds)[0] else None


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    if sys.argv[1:] == ["--work"]:
        work(json.load(sys.stdin))
    else:
        wanted = [each.name for each in mutants() if all(part in each.name for part in sys.argv[1:])]
        for name, said in outcomes(wanted):
            sys.stdout.write(f"{'seen' if said else 'NOT SEEN'}  {name}\n          {said or ''}\n")
            sys.stdout.flush()
