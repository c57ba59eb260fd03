"""The command line: what each command is given, what it prints, and how it leaves."""

import errno
import io
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import jaxllm
from jaxllm import cli
from jaxllm.config import reading
from jaxllm.config.fields import Config, DataConfig, ModelConfig, RunConfig
from jaxllm.errors import InputError
from jaxllm.prediction import predict
from jaxllm.pretrained import hf
from jaxllm.runs import loop
from jaxllm.runtime import cpu_guard
from jaxllm.tasks import evaluate
from jaxllm.tasks.build import build

CONFIG = "model: {path: weights}\ndata: {train: [a.csv]}\nrun: {dir: runs/a}\n"
TRAIN = Config(
    model=ModelConfig(path="weights"), data=DataConfig(train=["a.csv"]), run=RunConfig(dir="runs/a")
)
PREDICT = ["predict", "--model", "m", "--input", "-", "--output", "out.jsonl"]

LIBRARY = str(Path(jaxllm.__file__).parents[1])
CONVERT = ["convert", "a", "b", "--weights", "flax"]


@pytest.fixture
def calls(monkeypatch):
    """The arguments of the functions behind the commands, which do nothing but `calls.effect()`."""

    class Calls(list):
        effect = staticmethod(lambda: {"rows": 2, "errors": 1})

        def record(self, *arguments, **_):
            self.append(arguments)
            return self.effect()

    result = Calls()
    monkeypatch.setattr(loop, "train", result.record)
    monkeypatch.setattr(evaluate, "evaluate", result.record)
    monkeypatch.setattr(predict, "predict", result.record)
    monkeypatch.setattr(hf, "convert", result.record)
    return result


@pytest.fixture
def file(tmp_path):
    (tmp_path / "c.yaml").write_text(CONFIG)
    return str(tmp_path / "c.yaml")


def raising(error):
    def effect():
        raise error

    return staticmethod(effect)


def test_train_gets_the_configuration(calls, file):
    assert cli.main(["train", "--config", file]) == 0
    assert calls == [(TRAIN, build)]


def test_evaluate_prints_json(calls, file, capsys):
    calls.effect = lambda: {"accuracy": 0.5}
    assert cli.main(["evaluate", "--config", file, "--run.dir", "runs/a"]) == 0
    assert calls == [(TRAIN,)]
    assert json.loads(capsys.readouterr().out) == {"accuracy": 0.5}


def test_a_file_of_which_no_line_can_be_answered_is_a_mistake(calls, capsys):
    calls.effect = lambda: {"rows": 3, "errors": 3}
    assert cli.main(PREDICT) == 2
    assert "not one of its 3 lines could be answered" in capsys.readouterr().err
    calls.effect = lambda: {"rows": 0, "errors": 0}
    assert cli.main(PREDICT) == 0


def test_predict_and_convert_get_their_arguments(calls):
    assert cli.main(PREDICT) == 0
    assert cli.main([*PREDICT, "--batch_size", "7"]) == 0
    assert cli.main(CONVERT) == 0
    assert calls == [("m", "-", "out.jsonl", 32), ("m", "-", "out.jsonl", 7), ("a", "b", "flax")]


def test_predict_knows_the_home_directory(calls, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert cli.main(["predict", "--model", "m", "--input=~/i", "--output=~/o"]) == 0
    assert calls == [("m", "/home/me/i", "/home/me/o", 32)]


def test_evaluation_needs_no_training_files_but_training_does(calls, file, capsys):
    options = ["--config", file, "--data.train", "[]", "--data.dev", "[dev.csv]"]
    assert cli.main(["evaluate", *options]) == 0
    assert cli.main(["train", *options]) == 2
    assert len(calls) == 1
    assert "data.train: found no file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ([], "COMMAND; see jaxllm --help"),
        (["trian"], "invalid choice: 'trian'"),
        (["--vers"], "COMMAND"),
        (["train", "--config", "absent.yaml"], "absent.yaml: cannot read"),
        (["train", "--optimizer.learning_rte", "1"], "did you mean --optimizer.learning_rate?"),
        (["predict", "--model", "m"], "--input, --output; see jaxllm predict --help"),
        (["predict", "--mod", *PREDICT[2:]], "required: --model"),
        ([*PREDICT, "--batch_size", "0"], "--batch_size: found 0, expected at least 1"),
        ([*PREDICT, "--batch_size", "x"], "--batch_size: invalid int value: 'x'"),
        (["convert", "a", "b", "--weights", "x"], "invalid choice: 'x'"),
    ],
    ids=str,
)
def test_mistake(calls, argv, part, capsys):
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("jaxllm: error: ")
    assert captured.err.count("\n") == 1
    assert part in captured.err
    assert captured.out == ""
    assert calls == []


def test_input_error_is_one_message(calls, file, capsys):
    calls.effect = raising(InputError("a.csv, row 3: found no label"))
    assert cli.main(["train", "--config", file]) == 2
    assert capsys.readouterr().err.endswith("jaxllm: error: a.csv, row 3: found no label\n")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(("name", "named"), [("big.bin", "big.bin"), (None, "runs/a")])
def test_full_disk_names_what_was_written(calls, file, capsys, code, name, named):
    calls.effect = raising(OSError(code, os.strerror(code), name))
    assert cli.main(["train", "--config", file]) == 2
    assert f"jaxllm: error: {named}: the disk is full" in capsys.readouterr().err


def test_our_own_faults_keep_their_traceback(calls, file):
    for error in (RuntimeError("ours"), ConnectionResetError(errno.ECONNRESET, "reset")):
        calls.effect = raising(error)
        with pytest.raises(type(error)):
            cli.main(["train", "--config", file])


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENAMETOOLONG, errno.EIO])
def test_what_the_system_refuses_is_one_message(calls, file, capsys, code):
    calls.effect = raising(OSError(code, os.strerror(code), "x" * 5000))
    assert cli.main(["train", "--config", file]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxllm: error: xxx")
    assert error.endswith(f"xxx: {os.strerror(code)}; give a path that can be used\n")
    assert error.count("\n") == 1
    assert len(error) < 2100


def test_a_long_message_keeps_both_ends(calls, file, capsys):
    calls.effect = raising(InputError("head, " + "x" * 10**6 + ", tail"))
    assert cli.main(["train", "--config", file]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxllm: error: head, xxx")
    assert error.endswith("xxx, tail\n")
    assert "xxx ... (998,052 more) ... xxx" in error
    assert len(error) < 2100


def test_a_long_warning_is_cut_but_a_report_is_not(calls, capsys):
    calls.effect = lambda: (cli.logger.warning("w" * 10**5), cli.logger.info("r" * 10**5))
    cli.main(CONVERT)
    error = capsys.readouterr().err
    assert 1000 < error.count("w") < 2000
    assert error.count("r") >= 10**5


ASCII = {"PYTHONIOENCODING": "ascii"}


def as_process(*argv, redirect="", **environ):
    """(status, output, errors) of a command line that a shell starts with `redirect`."""
    command = shlex.join([sys.executable, "-m", "jaxllm", *argv])
    done = subprocess.run(
        ["sh", "-c", f"{command} {redirect}"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": LIBRARY, **environ},
    )
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize(
    ("argv", "redirect", "status", "says"),
    [
        (["train", "--nope"], ">&- <&-", 2, "jaxllm: error: unknown option --nope"),
        (["train", "--nope"], "2>&- >&- <&-", 2, ""),
        ([*PREDICT[:-1], "-"], "<&-", 2, "--input -: standard input is closed"),
        (["train", "--print_config"], ">/dev/full", 2, "the disk is full; free some space"),
    ],
)
def test_closed_and_full_streams(argv, redirect, status, says):
    found, _, errors = as_process(*argv, redirect=redirect)
    assert found == status
    assert says in errors
    assert errors.count("\n") == bool(says)


def test_a_closed_stream_is_not_the_next_file_that_is_opened(tmp_path):
    program = (
        "import os, sys; from jaxllm.runtime import streams; streams.secure(); "
        "f = open(sys.argv[1], 'w'); os.write(1, b'x'); os.write(2, b'x'); f.close()"
    )
    command = f"{shlex.join([sys.executable, '-c', program, str(tmp_path / 'data')])} <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=LIBRARY).returncode == 0
    assert (tmp_path / "data").read_text() == ""


def test_an_ascii_terminal_gets_yaml_that_is_read_back(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(CONFIG.replace("a.csv", "电影.csv"), encoding="utf-8")
    status, output, errors = as_process("train", "--config", str(file), "--print_config", **ASCII)
    assert (status, errors) == (0, "")
    printed = tmp_path / "printed.yaml"
    printed.write_bytes(output)
    assert output.isascii()
    assert reading.from_yaml(printed).data.train == ["电影.csv"]


def test_predict_writes_utf_8_to_any_terminal(calls, monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    calls.effect = lambda: (stdout.write("电影"), {"rows": 1, "errors": 0})[1]
    assert cli.main([*PREDICT[:-1], "-"]) == 0
    stdout.flush()
    assert stdout.buffer.getvalue() == "电影".encode()


def test_interrupts(calls, file, capsys):
    calls.effect = raising(KeyboardInterrupt())
    assert cli.main(PREDICT) == 130
    calls.effect = raising(loop.Interrupted(signal.SIGTERM, "stopped; go on with this"))
    assert cli.main(["train", "--config", file]) == 143
    assert "jaxllm: stopped; go on with this\n" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], *([c, "--help"] for c in cli.COMMANDS)], ids=str)
def test_help(argv, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(argv)
    assert exit.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: jaxllm")
    if argv == ["--help"]:
        assert all(command in out for command in cli.COMMANDS)


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"jaxllm {jaxllm.__version__}\n"


def test_log_goes_to_stderr_while_a_command_runs(calls, capsys):
    log = logging.getLogger("jaxllm.runs.loop")
    calls.effect = lambda: (log.info("step 1"), log.debug("detail"))
    handlers, level = cli.logger.handlers[:], cli.logger.level
    cli.main(CONVERT)
    captured = capsys.readouterr()
    assert "INFO step 1" in captured.err
    assert "detail" not in captured.err
    assert captured.out == ""
    assert (cli.logger.handlers, cli.logger.level) == (handlers, level)


def test_of_many_processes_the_first_logs_and_all_warn(calls, capsys, monkeypatch):
    monkeypatch.setattr(cpu_guard, "backends_started", lambda: True)
    monkeypatch.setattr("jax.process_index", lambda: 1)
    calls.effect = lambda: (cli.logger.info("all is well"), cli.logger.warning("something"))
    cli.main(CONVERT)
    err = capsys.readouterr().err
    assert "all is well" not in err
    assert "WARNING something" in err


def test_logging_starts_no_backend(monkeypatch, capsys):
    monkeypatch.setattr(cpu_guard, "backends_started", lambda: False)
    monkeypatch.setattr("jax.process_index", lambda: pytest.fail("asks for a backend"))
    record = logging.LogRecord("jaxllm", logging.INFO, "", 0, "m", None, None)
    assert cli._from_first_process_or_warning(record) is True


def test_as_a_process(tmp_path):
    """Status 2, no traceback; and output to a reader that has left is no error message."""
    run = [sys.executable, "-m", "jaxllm"]
    result = subprocess.run(
        [*run, "train", "--config", str(tmp_path / "absent.yaml")], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("jaxllm: error: ")
    assert result.stderr.count("\n") == 1


def test_evaluate_to_a_full_stream_does_not_blame_the_run(calls, file, monkeypatch, capsys):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    calls.effect = lambda: {"accuracy": 0.5}
    monkeypatch.setattr(sys, "stdout", Full())
    assert cli.main(["evaluate", "--config", file]) == 2
    assert "jaxllm: error: the disk is full; free some space" in capsys.readouterr().err
