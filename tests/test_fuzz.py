"""Short runs of the fuzzer and the soak, and that both find what they look for."""

import mmap

import pytest

from fuzz import __main__ as fuzzer
from fuzz import soak, watch
from fuzz.call import Call
from fuzz.child import run
from fuzz.draw import SHARES, draw

CALLS = 300
LAYER = (
    "theirs = nn.TransformerEncoderLayer(8, 2, 8, 0.0, 'gelu')",
    "encoder = bf.TransformerEncoderLayer(8, 2, 8, 0.0, 'gelu')",
    "encoder.load_state_dict(theirs.state_dict())",
    "x, grad_y = torch.randn(2, 5, 3, 8)",
    "x.requires_grad_()",
    "def plain(layer, z): return layer(z)",
)
BROKEN = {
    "y = encoder(x) + 1e-4; y.backward(grad_y)": "y: off by",
    "y = encoder(x); y.backward(grad_y * 1.0001)": "gradient of",
    "y = encoder(x); y.backward(grad_y); x.grad[0, 0, 0] = float('nan')": "gradient of x: not finite",
    "y = encoder(x); y.backward(grad_y); x.grad = None": "gradient of x: expected a gradient, got none",
    "y = encoder(x).double(); y.backward(grad_y.double())": "y: expected [5, 3, 8] torch.float32",
    "y = encoder(x); y.backward(grad_y); encoder.norm1.bias.grad *= 2": "gradient of norm1.bias: off by",
    "y = encoder(x); raise ValueError('never said so')": "ValueError: never said so",
}


def test_random_calls_go_as_they_should(capsys):
    assert fuzzer.main(["--calls", str(CALLS), "--seed", "1"]) == 0, capsys.readouterr().out
    assert f"{CALLS} calls, 0 findings" in capsys.readouterr().out


def test_a_number_names_the_same_call_whatever_ran_before_and_all_kinds_come():
    calls = [draw(1, number) for number in range(CALLS)]
    assert draw(1, 17) == calls[17]
    assert draw(2, 17) != calls[17]
    assert len({call.kind for call in calls}) > len(SHARES)


@pytest.mark.parametrize("statement", BROKEN)
def test_a_wrong_result_is_found_and_its_script_fails(statement, tmp_path):
    sentence, script = run(Call("layer", (*LAYER, statement), compared=True))
    assert BROKEN[statement] in sentence
    path = tmp_path / "script.py"
    path.write_text(script)
    with pytest.raises((AssertionError, ValueError)):
        exec(compile(path.read_text(), str(path), "exec"), {})


def test_a_right_result_passes():
    assert run(Call("layer", (*LAYER, "y = encoder(x); y.backward(grad_y)"), compared=True)) is None


ENDS = {
    "abort": ("os.abort()", "SIGABRT"),
    "crash": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    "exit": ("os._exit(3)", "exit status 3"),
    "hang": ("import time; time.sleep(60)", "no end within 0.5 seconds"),
    "last words": ("raise SystemError('of a loose wire')", "of a loose wire"),
}


def test_a_call_that_ends_or_stops_its_process_is_named_and_the_next_one_runs(monkeypatch):
    """In a child that speaks as the real one does, without torch, which takes seconds to import."""
    script = "\n".join(
        (
            "import os, sys",
            "pipe, _, first, end = map(int, sys.argv[1:])",
            "for number in range(first, end):",
            "    os.write(pipe, b'{\"start\": %d}\\n' % number)",
            f"    exec({[statement for statement, _ in ENDS.values()]!r}[number // 2] if number % 2 else '')",
            '    os.write(pipe, b\'{"end": %d, "kind": "none"}\\n\' % number)',
        )
    )
    monkeypatch.setattr(watch, "CHILD", ("-c", script))
    ended = list(watch.watch(0, 2 * len(ENDS) + 1, timeout=0.5))
    assert [each.number for each in ended] == list(range(2 * len(ENDS) + 1))
    assert not any(each.sentence for each in ended[::2])
    for each, (_, sentence) in zip(ended[1::2], ENDS.values(), strict=True):
        assert sentence in each.sentence
        assert each.script == draw(0, each.number).text


def test_a_crash_of_a_real_child_is_named(tmp_path, monkeypatch):
    """Its `draw` gives a call that aborts as number 1."""
    (tmp_path / "sitecustomize.py").write_text(
        "import fuzz.draw\nfrom fuzz.call import Call\n"
        "fuzz.draw.draw = lambda _, i: Call('given', ('import os; os.abort()' if i == 1 else '',))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ended = list(watch.watch(0, 2, timeout=60.0))
    assert [each.number for each in ended] == [0, 1]
    assert ended[0].sentence is None
    assert "SIGABRT" in ended[1].sentence
    assert '"<call>"' in ended[1].sentence, "the Python stack tells the line"


def test_memory_of_a_short_soak_is_flat(capsys):
    assert soak.main(["--steps", "3000", "--varied", "40"]) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert printed.count(": flat, ") == 2
    assert "3,000" in printed


def test_a_soak_that_leaks_says_so(capsys, monkeypatch):
    kept = []

    def leak():
        kept.append(
            mmap.mmap(-1, 2**20)
        )  # of the system: the heap of a long run may have room that was used before
        kept[-1].write(bytes(range(256)) * 4096)

    def leaks():
        while True:
            yield leak

    monkeypatch.setattr(soak, "small_steps", leaks)
    assert soak.main(["--steps", "40", "--varied", "20"]) == 1
    assert "small steps: NOT flat" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--calls=0", "--minutes=-1", "--findings=0"])
def test_a_bad_option_ends_it_with_a_sentence(option, capsys):
    with pytest.raises(SystemExit) as ended:
        fuzzer.main([option])
    assert ended.value.code == 2
    assert "expected a number above 0" in capsys.readouterr().err
