"""How commands end, and files that are whole or named."""

import errno
import multiprocessing
import os

import pytest
from messages import says

from jaxreid import files
from jaxreid.errors import INTERRUPTED, USER_ERROR, MissingFileError, UserError, command, told


def _ends(error, capsys):
    @command("what was done stays")
    def main():
        raise error

    return main(), capsys.readouterr().err


def test_a_users_error_is_one_line_and_status_2(capsys):
    assert _ends(UserError("rows.csv, row 3: no camera; name one"), capsys) == (
        USER_ERROR,
        "error: rows.csv, row 3: no camera; name one\n",
    )
    status, text = _ends(MissingFileError("no weights at w.npz"), capsys)
    assert (status, text) == (USER_ERROR, "error: no weights at w.npz\n")
    assert isinstance(MissingFileError(""), FileNotFoundError)


def test_a_fault_of_the_program_keeps_its_traceback(capsys):
    with pytest.raises(ValueError, match="shapes"):
        _ends(ValueError("incompatible shapes"), capsys)
    assert told(OSError(errno.EIO, "Input/output error", "x")) is None


def test_a_full_disk_names_the_place(capsys):
    status, text = _ends(OSError(errno.ENOSPC, "No space left on device", "/data/a"), capsys)
    assert status == USER_ERROR and text.count("\n") == 1
    assert "/data/a" in text and "free" in text


def test_an_interrupt_is_one_line(capsys):
    status, text = _ends(KeyboardInterrupt(), capsys)
    assert status == INTERRUPTED and "what was done stays" in text and len(text.strip().splitlines()) == 1


def test_written_aside_leaves_the_old_file_after_an_exception(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(KeyError), files.written_aside(path) as aside:
        aside.write_text("half")
        raise KeyError
    assert files.read_json(path, "") == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_two_writers_of_a_file_do_not_meet(tmp_path):
    """Workers of a pipeline are threads of one process, or processes of several machines."""
    path = tmp_path / "a"
    with files.written_aside(path, synced=True) as first, files.written_aside(path) as second:
        first.write_text("first, longer")
        second.write_text("second")
    assert path.read_text() == "first, longer"  # the last to end
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("content", ["", " \n", '{"a": ', "\x00\x00"])
def test_a_damaged_json_file_is_named_with_its_remedy(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        files.read_json(path, "delete it")
    assert str(path) in str(error.value)
    says(str(error.value), "delete")


def test_a_home_that_is_not_known_is_told(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(UserError, match="HOME"):
        files.expand("~/runs")


def _hold(path, begun, end):
    with files.held(path):
        begun.set()
        end.wait(60)


def test_a_lock_names_its_holder_and_goes_with_its_process(tmp_path):
    context = multiprocessing.get_context("spawn")
    begun, end, path = context.Event(), context.Event(), tmp_path / "lock"
    other = context.Process(target=_hold, args=(path, begun, end))
    other.start()
    assert begun.wait(60)
    with pytest.raises(files.Held) as refused, files.held(path):
        pass
    assert f"process {other.pid}" in refused.value.holder
    other.kill()
    other.join()
    with files.held(path):
        pass
