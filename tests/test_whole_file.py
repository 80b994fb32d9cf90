"""Files appear whole or not at all, whatever happens while they are written.

pytest tests/test_whole_file.py
"""

import json

import pytest

from files import whole_file, write_json, write_text


def test_a_file_is_replaced_at_the_end_and_not_before(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old" and partial.parent == tmp_path
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), SystemExit(143)])
@pytest.mark.parametrize("folder", [False, True])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error, folder):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)), whole_file(path) as partial:
        if folder:
            partial.mkdir()
            (partial / "b.txt").write_text("half")
        else:
            partial.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_error_before_anything_is_written_is_the_one_that_is_raised(tmp_path):
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "a.txt"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_folder_takes_the_place_of_an_empty_one_only(tmp_path):
    def write():
        with whole_file(tmp_path / "out") as partial:
            partial.mkdir()
            (partial / "b.txt").write_text("whole")

    (tmp_path / "out").mkdir()
    write()
    assert (tmp_path / "out" / "b.txt").read_text() == "whole"
    (tmp_path / "out" / "c.txt").write_text("somebody else's")
    with pytest.raises(OSError):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "c.txt").exists()


def test_texts_are_utf8_and_json_ends_with_a_line_break(tmp_path):
    write_text(tmp_path / "a.txt", "é")
    assert (tmp_path / "a.txt").read_bytes() == "é".encode()
    write_json(tmp_path / "a.json", {"k": [1]})
    assert (tmp_path / "a.json").read_text().endswith("}\n")
    assert json.loads((tmp_path / "a.json").read_text()) == {"k": [1]}
