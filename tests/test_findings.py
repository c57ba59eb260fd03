"""Scripts of findings/ have one form; what they find is found where there is a network."""

import re
import subprocess

import pytest
from pages import ROOT

SCRIPTS = sorted((ROOT / "findings").iterdir())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_finding_has_the_form(script):
    text = script.read_text(encoding="utf-8")
    assert script.suffix == ".sh"
    assert script.stat().st_mode & 0o100, "not a script that runs"
    subprocess.run(["bash", "-n", script], check=True)
    for part in ("#!/usr/bin/env bash\n# ", "\n# Guess: ", "\n# Found: ", "set -euo pipefail"):
        assert part in text
    assert 'work=$(mktemp -d)\ntrap \'rm -rf "$work"\' EXIT\ncd "$work"\n' in text
    (packages,) = re.findall(r"pip install -q (.*)", text)
    assert all("==" in package for package in packages.split()), "versions are pinned"
    assert "jaxllm" not in text
    assert "changed: " in text, "says which guess has become true"
