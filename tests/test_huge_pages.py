"""The main program asks for huge pages once, and never insists."""

import os
import subprocess
import sys

import pytest

from jaxreid.devices import huge_pages

PROGRAM = """
import os, sys
from pathlib import Path
from jaxreid.devices import huge_pages
huge_pages.OFFERED = Path(sys.argv[1])
huge_pages.ask_for_huge_pages()
print(os.environ.get("GLIBC_TUNABLES", "unset"), sys.argv[2:])
"""


def run(tmp_path, offered, **environment):
    program, kernel = tmp_path / "program.py", tmp_path / "enabled"
    program.write_text(PROGRAM)
    kernel.write_text(offered)
    inherited = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    line = [sys.executable, str(program), str(kernel), "one", "a word"]
    found = subprocess.run(line, env={**inherited, **environment}, capture_output=True, text=True, check=True)
    return found.stdout.strip()


def test_the_program_starts_again_with_its_arguments(tmp_path):
    assert run(tmp_path, "always [madvise] never\n") == "glibc.malloc.hugetlb=1 ['one', 'a word']"


@pytest.mark.parametrize("offered", ["[always] madvise never", "always madvise [never]"])
def test_nothing_happens_where_there_is_nothing_to_gain(tmp_path, offered):
    assert run(tmp_path, offered) == "unset ['one', 'a word']"


def test_a_setting_of_the_users_own_stays(tmp_path):
    found = run(tmp_path, "always [madvise] never", GLIBC_TUNABLES="glibc.malloc.check=0")
    assert found == "glibc.malloc.check=0 ['one', 'a word']"


def test_a_system_without_huge_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(huge_pages, "OFFERED", tmp_path / "absent")
    huge_pages.ask_for_huge_pages()  # starting again would end the tests
