"""Commands start again with huge pages, once, and only where that changes something."""

import subprocess
import sys

import pytest

from jaxllm.runtime import huge_pages

TUNABLE = "glibc.malloc.hugetlb=1"


@pytest.mark.parametrize(
    ("modes", "before", "after"),
    [
        ("always [madvise] never", None, TUNABLE),
        (
            "always [madvise] never",
            "glibc.malloc.arena_max=1",
            f"glibc.malloc.arena_max=1:{TUNABLE}",
        ),
        ("always [madvise] never", "glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
        ("[always] madvise never", None, None),
        ("always madvise [never]", None, None),
        (None, None, None),
    ],
)
def test_tunable(modes, before, after, tmp_path):
    file = tmp_path / "enabled"
    if modes is not None:
        file.write_text(modes + "\n")
    environ = {} if before is None else {"GLIBC_TUNABLES": before}
    assert huge_pages.add_tunable(environ, file) == (before != after)
    assert environ.get("GLIBC_TUNABLES") == after
    assert not huge_pages.add_tunable(environ, file)


SCRIPT = """
import os, sys
from jaxllm.runtime import huge_pages
if "FIRST" not in os.environ:
    os.environ["FIRST"] = str(os.getpid())
    huge_pages.add_tunable = lambda: True
    huge_pages.restart()
print(os.environ["FIRST"] == str(os.getpid()), huge_pages.add_tunable.__name__, sys.argv[1:])
"""


def test_a_restarted_command_keeps_its_arguments_and_its_process():
    command = [sys.executable, "-c", SCRIPT, "a b", "--c"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True add_tunable ['a b', '--c']"
