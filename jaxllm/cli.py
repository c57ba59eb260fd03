"""The command line: ``jaxllm train``, ``jaxllm predict``, ``jaxllm generate``, … (`COMMANDS`).

Exit status: 0 = done, 2 = a user's mistake (one message, no traceback), 130 or 143 = stopped by
Ctrl-C or SIGTERM.
"""

import argparse
import contextlib
import errno
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from jaxllm import __version__
from jaxllm.errors import InputError, shortened
from jaxllm.runtime import cpu_guard, huge_pages, no_torch, streams

logger = logging.getLogger("jaxllm")


def train(argv: list[str]) -> int | None:
    """fine-tune or train the model of a configuration"""
    from jaxllm.config.reading import load

    options = load(argv, "jaxllm train", train.__doc__)
    with _work_on(options.run.dir):
        from jaxllm import api

        return _stoppable(lambda: api.train(options))


def glue(argv: list[str]) -> int | None:
    """fine-tune on tasks of GLUE, one after the other"""
    from jaxllm.config.reading import load

    parser = _Parser("jaxllm glue", add_help=False)
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="rte, stsb, ... (default: all nine)"
    )
    own, others = parser.parse_known_args(argv)
    about = f"{glue.__doc__}; columns and labels come by task"
    options = load(others, "jaxllm glue", about, [parser])
    with _work_on(options.run.dir):
        from jaxllm.data.glue import TASKS
        from jaxllm.runtime import processes
        from jaxllm.tasks import glue as task

        tasks = (
            list(TASKS) if own.tasks is None else re.findall(r"[^\s\[\],]+", " ".join(own.tasks))
        )
        with processes.joined(options.mesh.processes):
            return _stoppable(lambda: task.run(options, tasks))


def evaluate(argv: list[str]) -> None:
    """evaluate a saved model (--model.path DIR) on the dev part of a configuration"""
    from jaxllm.config.reading import load

    options = load(argv, "jaxllm evaluate", evaluate.__doc__)
    with _work_on(options.run.dir):
        from jaxllm import api

        metrics = api.evaluate(options)
    print(json.dumps(metrics, indent=2))


def predict(argv: list[str]) -> int:
    """answer JSON lines with JSON lines: labels, entities, answers, vectors, masked words"""
    parser = _Parser("jaxllm predict", predict.__doc__)
    _add_model(parser)
    for option, stream in (("--input", "stdin"), ("--output", "stdout")):
        said = f"JSON lines; - = {stream}"
        parser.add_argument(
            option, required=True, metavar="FILE", type=os.path.expanduser, help=said
        )
    parser.add_argument("--batch_size", type=int, default=32, help="rows of a batch (default 32)")
    options = parser.parse_args(argv)
    if options.batch_size < 1:
        raise InputError(f"--batch_size: found {options.batch_size}, expected at least 1")
    if options.output == "-" and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # as JSON is, whatever the terminal has
    cpu_guard.announce()
    with _work_on(options.output):
        from jaxllm.prediction import predict as task
        from jaxllm.runtime import compile_cache
        from jaxllm.tasks.registry import TASKS

        compile_cache.enable()
        files = options.input, options.output
        counts = task.predict(options.model, *files, options.batch_size, kinds=TASKS)
    return _answered(options.input, counts)


def _answered(input: str, counts: dict[str, int]) -> int:
    """The exit status; InputError where there were lines and no answer to any."""
    if counts["rows"] == counts["errors"] > 0:
        raise InputError(
            f"--input {input}: not one of its {counts['rows']} lines could be answered. "
            "The output says of each what is wrong, the log of the first"
        )
    return 0


def generate(argv: list[str]) -> int | None:
    """continue texts with a model that writes"""
    from jaxllm.prediction import generation_arguments

    parser = _Parser("jaxllm generate", generate.__doc__)
    _add_model(parser)
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="may be given repeatedly")
    for option, said in (("--input", "JSON lines"), ("--output", "JSON lines (default -)")):
        parser.add_argument(option, metavar="FILE", type=os.path.expanduser, help=said)
    parser.add_argument("--batch_size", type=int, default=8, help="rows of a batch (default 8)")
    parser.add_argument("--stream", action="store_true", help="print tokens as they are written")
    generation_arguments.add_to(parser)
    options = parser.parse_args(argv)
    if (options.prompt is None) == (options.input is None):
        raise InputError("expected --prompt TEXT or --input FILE, one of the two")
    if options.prompt is not None and options.output is not None:
        raise InputError("--output: goes with --input FILE; continuations of --prompt are printed")
    if options.stream and options.input is not None:
        raise InputError("--stream: goes with one --prompt")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    cpu_guard.announce()
    with _work_on(options.output or "-"):
        from jaxllm.prediction import generate as task
        from jaxllm.runtime import compile_cache
        from jaxllm.tasks.registry import TASKS

        compile_cache.enable()
        given = generation_arguments.given_in(options)
        if options.prompt is not None:
            task.generate_texts(options.model, options.prompt, given, TASKS, stream=options.stream)
            return 0
        files = options.input, options.output or "-"
        counts = task.generate_lines(options.model, *files, options.batch_size, given, TASKS)
    return _answered(options.input, counts)


def chat(argv: list[str]) -> None:
    """talk with a model that has a chat template, a line a turn"""
    from jaxllm.prediction import generation_arguments

    parser = _Parser("jaxllm chat", chat.__doc__)
    _add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="what the conversation begins with")
    generation_arguments.add_to(parser)
    options = parser.parse_args(argv)
    if sys.stdin is None:
        raise InputError("standard input is closed; expected a terminal, or a file of turns")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    cpu_guard.announce()
    with _work_on("standard output"):
        from jaxllm.prediction import chat as task
        from jaxllm.runtime import compile_cache
        from jaxllm.tasks.registry import TASKS

        compile_cache.enable()
        given = generation_arguments.given_in(options)
        task.chat(options.model, given, TASKS, system=options.system)


def _add_model(parser: "_Parser") -> None:
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="directory, Hub id or package:NAME/sub/dir"
    )


def convert(argv: list[str]) -> None:
    """write a model's weights in another format, and verify them"""
    parser = _Parser("jaxllm convert", convert.__doc__)
    parser.add_argument("src", metavar="SRC", help="directory, Hub id or package:NAME/sub/dir")
    parser.add_argument("dst", metavar="DST", help="directory to write")
    parser.add_argument(
        "--weights",
        required=True,
        choices=["safetensors", "flax"],
        help="safetensors with PyTorch's names, or flax_model.msgpack",
    )
    options = parser.parse_args(argv)
    cpu_guard.announce()
    with _work_on(options.dst):
        from jaxllm.pretrained import hf

        hf.convert(options.src, options.dst, options.weights)


def train_tokenizer(argv: list[str]) -> None:
    """make a tokenizer from text"""
    from jaxllm.data.train_tokenizer import KINDS

    parser = _Parser("jaxllm train-tokenizer", train_tokenizer.__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--files", default=[], nargs="+", metavar="FILE", help="txt, jsonl, csv, tsv, also .gz"
    )
    source.add_argument("--corpus", choices=["stdlib"], help="the sources of Python's library")
    parser.add_argument("--output", required=True, metavar="DIR", help="directory to write")
    parser.add_argument("--kind", default="wordpiece", choices=KINDS)
    parser.add_argument("--vocab_size", type=int, default=30522, help="entries (default 30522)")
    parser.add_argument("--cased", action="store_true", help="keep capitals and accents")
    parser.add_argument("--text", default="text", help="column of the text, where there are any")
    options = parser.parse_args(argv)
    with _work_on(options.output):
        from jaxllm.data import train_tokenizer as trainer

        trainer.train_tokenizer(**vars(options))


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "train": train,
    "glue": glue,
    "evaluate": evaluate,
    "predict": predict,
    "generate": generate,
    "chat": chat,
    "convert": convert,
    "train-tokenizer": train_tokenizer,
}


def main(argv: list[str] | None = None) -> int:
    """Runs the command line `argv` (default: the process's own); returns the exit status."""
    if argv is None:
        huge_pages.restart()
        streams.secure()
    with _logging_to_stderr():
        try:
            with streams.flushed():
                options = _top_parser().parse_args(argv)
                if argv is None and not {"-h", "--help"} & set(options.arguments):
                    no_torch.hide()
                return COMMANDS[options.command](options.arguments) or 0
        except InputError as error:
            return _complain(str(error))
        except KeyboardInterrupt:
            _say("jaxllm: interrupted")
            return 130
        except BrokenPipeError:  # the reader of our output has left, as `| head` does
            streams.drop()
            return 1
        except OSError as error:
            if error.errno is None or isinstance(error, ConnectionError | TimeoutError):
                raise
            streams.drop()
            where = f"{error.filename}: " if error.filename else ""
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return _complain(f"{where}the disk is full; free some space and run again")
            return _complain(f"{where}{error.strerror}; give a path that can be used")


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are InputErrors and whose options cannot be abbreviated."""

    def __init__(self, prog: str, description: str | None = None, add_help: bool = True) -> None:
        super().__init__(prog, None, description, allow_abbrev=False, add_help=add_help)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def _top_parser() -> _Parser:
    parser = _Parser("jaxllm", "Train, evaluate and run Transformer language models in JAX.")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "jaxllm COMMAND [options]"
    parser.epilog = "commands:\n" + "\n".join(
        f"  {name:<16} {command.__doc__}" for name, command in COMMANDS.items()
    )
    parser.epilog += "\n\n`jaxllm COMMAND --help` shows the options of a command."
    parser.add_argument("--version", action="version", version=f"jaxllm {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="what to do")
    rest = parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    rest.required = False  # or a missing COMMAND is reported as a missing COMMAND and arguments
    return parser


def _stoppable(run: Callable[[], object]) -> int | None:
    """Runs it; the exit status, if it was stopped."""
    from jaxllm.runtime.interrupt import Interrupted

    try:
        run()
    except Interrupted as stop:  # saved; the message says how to go on
        _say(f"jaxllm: {stop}")
        return stop.exit_status
    return None


def _complain(message: str) -> int:
    _say(f"jaxllm: error: {shortened(message)}")
    return 2


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # whoever does not listen has the exit status
        print(line, file=sys.stderr, flush=True)


class _Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        text = super().formatMessage(record)
        return shortened(text) if record.levelno >= logging.WARNING else text  # not a report


@contextlib.contextmanager
def _work_on(target: str) -> Iterator[None]:
    """Names `target` in the system's error without a file, as a write to an open file raises it."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or target
        raise


@contextlib.contextmanager
def _logging_to_stderr() -> Iterator[None]:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("{asctime} {levelname} {message}", "%H:%M:%S", "{"))
    handler.addFilter(_from_first_process_or_warning)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a library that configures the root logger would say all twice
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagate
        logger.removeHandler(handler)


def _from_first_process_or_warning(record: logging.LogRecord) -> bool:
    """Of many processes only the first says what all do; before JAX has started, there is one."""
    if record.levelno >= logging.WARNING or not cpu_guard.backends_started():
        return True
    import jax

    return jax.process_index() == 0
