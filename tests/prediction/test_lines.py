"""Lines that a thread reads ahead: windows, pauses, bounds, descriptors of all kinds."""

import io
import os
import subprocess
import sys
from itertools import chain, islice

import pytest

from jaxllm.errors import InputError
from jaxllm.prediction import inputs, lines
from jaxllm.prediction.inputs import RowError, read_line
from jaxllm.prediction.lines import LineReader


def read(source, size):
    with LineReader(io.BytesIO(source), "input", size) as windows:
        return list(windows)


def test_a_long_stream_comes_in_full_windows_and_in_order(monkeypatch):
    monkeypatch.setattr(lines, "PAUSE", 600)  # a window that is not full waits for the end
    content = [str(n).encode() for n in range(25)]
    windows = read(b"\n".join(content), 10)
    assert [len(window) for window in windows] == [10, 10, 5]
    assert list(chain(*windows)) == content


@pytest.mark.parametrize("blocking", [True, False])
def test_what_is_there_is_handed_over_when_the_input_pauses(blocking):
    end, pipe = os.pipe()
    os.set_blocking(end, blocking)
    source = open(end, "rb", buffering=0)  # noqa: SIM115  (the thread closes it)
    with LineReader(source, "input", 1000) as reader:
        windows = iter(reader)
        for count in (1, 3):
            os.write(pipe, b"a line\n" * count)
            found = []
            while len(found) < count:
                found += next(windows)
            assert found == [b"a line"] * count
        os.write(pipe, b"the end")
        os.close(pipe)
        assert list(windows) == [[b"the end"]]


def test_no_more_is_read_ahead_than_a_window(monkeypatch):
    class Endless:
        reads = 0

        def read(self, size):
            self.reads += 1
            return b"0123456789\n"

        def close(self):
            pass

    monkeypatch.setattr(lines, "PAUSE", 600)
    with LineReader(source := Endless(), "input", 3) as windows:
        assert list(islice(windows, 4)) == [[b"0123456789"] * 3] * 4
        assert source.reads <= 5 * 3 + 1
    monkeypatch.setattr(lines, "BYTES", 15)  # of two lines
    with LineReader(Endless(), "input", 1000) as windows:
        assert [len(window) for window in islice(windows, 3)] == [2, 2, 2]


def test_a_line_that_is_too_long_is_an_error_and_the_next_is_whole(monkeypatch):
    for module in (inputs, lines):
        monkeypatch.setattr(module, "LONGEST_LINE", 20)
    monkeypatch.setattr(lines, "_CHUNK", 7)
    source = b'"' + b"a" * 18 + b'"\n"' + b"a" * 19 + b'"\n' + b"a" * 1000 + b'\n"good"\n'
    [fits, longer, longest, good] = chain(*read(source, 9))
    assert read_line(fits) == "a" * 18
    assert good == b'"good"'
    for line in (longer, longest):
        assert len(line) == 21
        with pytest.raises(RowError, match="the line has more than 20 bytes"):
            read_line(line)


def test_what_cannot_be_read_is_told(tmp_path):
    end = os.open(tmp_path, os.O_RDONLY)

    class Directory:
        def read(self, size):
            return os.read(end, size)

        def close(self):
            os.close(end)

    with (
        LineReader(Directory(), "--input -", 3) as windows,
        pytest.raises(InputError, match=r"--input -: cannot be read: Is a directory"),
    ):
        list(windows)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(end)  # it was closed


def test_a_process_can_end_while_its_input_is_waited_for():
    program = (
        "import sys\n"
        "from jaxllm.prediction.lines import LineReader\n"
        "with LineReader(sys.stdin.buffer.raw, 'input', 9, keep_open=True) as windows:\n"
        "    sys.exit(f'read {next(iter(windows))}')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdin.write(b"good\n")
    process.stdin.flush()  # and stays open
    assert process.wait(timeout=300) == 1
    assert process.stderr.read().decode().splitlines()[-1] == "read [b'good']"
    process.stdin.close()
    process.stderr.close()
