"""Code counts by what it does: remarks and layout do not, everything else does."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twohop.errors import TwohopError
from twohop.lineage import code_digest, digest_of, step_code, step_codes, write_code_file
from twohop.lineage._code import CODE_FILE

PLAIN = """
class A:
    x: int = 1

    def f(self, y: int = 2) -> int:
        if y:
            return self.x + y
        return [1, 2.0, "z", None]
"""
REMARKED = '''"""A module."""
# a comment
class A:
    """A class."""

    x: int = 1
    """A field."""

    def f(self, y: int = 2) -> int:
        """A function."""

        if (y):  # why
            "a lone text"
            return (self.x
                    + y)
        return [1, 2.0, 'z', None]
'''


def _digest(folder: Path, text: str, name: str = "m.py") -> str:
    (folder / name).write_text(text)
    return code_digest(folder / name)


def test_remarks_and_layout_do_not_count(tmp_path: Path) -> None:
    assert _digest(tmp_path, PLAIN) == _digest(tmp_path, REMARKED)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("= 1", "= 3"),
        ("= 1", "= True"),
        ("2.0", "2"),
        ('"z"', '"Z"'),
        ("+ y", "- y"),
        ("x: int", "x: float"),
        ("if y", "if not y"),
        ("None]", "None, None]"),
        ("def f", "async def f"),
        ("[1, 2.0", "[2.0, 1"),
    ],
)
def test_everything_else_counts(tmp_path: Path, old: str, new: str) -> None:
    assert old in PLAIN
    assert _digest(tmp_path, PLAIN) != _digest(tmp_path, PLAIN.replace(old, new))


NO_LINE_ENDS = st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp"))


@given(st.text(alphabet=NO_LINE_ENDS))
def test_any_comment_on_any_line_changes_nothing(remark: str) -> None:
    from twohop.lineage._code import _python

    lines = PLAIN.splitlines()
    for i in range(len(lines)):
        text = "\n".join([*lines[:i], lines[i] + "  #" + remark, *lines[i + 1 :]])
        assert _python(text.encode(), "m.py") == _python(PLAIN.encode(), "m.py")


def test_unparsed_and_parsed_again_it_is_the_same_code() -> None:
    """On the project's own files, with `ast` as the judge of what a layout may change."""
    from twohop.lineage._code import _python

    for file in sorted((Path(__file__).parents[2] / "src").rglob("*.py")):
        again = ast.unparse(ast.parse(file.read_bytes()))
        assert _python(again.encode(), "again.py") == code_digest(file), file


def test_other_files_count_by_bytes(tmp_path: Path) -> None:
    assert _digest(tmp_path, "a", "a.css") != _digest(tmp_path, "a ", "a.css")


def test_code_that_does_not_parse_is_told(tmp_path: Path) -> None:
    with pytest.raises(TwohopError, match="does not parse") as caught:
        _digest(tmp_path, "def f(:\n")
    assert "line 1" in caught.value.where


def test_a05_digests_do_not_depend_on_process_order_or_folder() -> None:
    root = Path(__file__).parents[2]
    code = "import json, sys; from twohop.lineage import step_codes; from pathlib import Path\n"
    code += "print(json.dumps(step_codes(root=Path(sys.argv[1]))))"
    env = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(root / "src")}
    command = [sys.executable, "-c", code, str(root)]
    out = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True, env=env).stdout
    assert json.loads(out) == step_codes(root=root)
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})


@pytest.mark.parametrize("value", [lambda: 1, {1, 2}, object(), float("nan"), b"x"])
def test_a06_what_cannot_be_hashed_is_an_error(value: object) -> None:
    with pytest.raises(TwohopError, match="cannot be hashed"):
        digest_of({"key": value})


def test_the_tracked_file_is_up_to_date() -> None:
    root = Path(__file__).parents[2]
    assert json.loads((root / CODE_FILE).read_text()) == step_codes(root=root), (
        "run `twohop write_dvc` and commit workflow/code.json"
    )


def test_versions_count_for_the_steps_that_use_the_library() -> None:
    root = Path(__file__).parents[2]
    codes = step_codes(["torch", "matplotlib"], root)
    assert "torch" in codes["run_benchmark"]
    assert "torch" not in codes["curate_entities"]
    assert codes["plot_figures"]["matplotlib"][0].isdigit()
    assert {s: {"code": c["code"]} for s, c in codes.items()} == step_codes(root=root)


def test_the_file_is_written_only_when_it_says_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_code_file({"s": {"code": "1"}})
    before = CODE_FILE.stat().st_mtime_ns
    write_code_file({"s": {"code": "1"}})
    assert CODE_FILE.stat().st_mtime_ns == before
    write_code_file({"s": {"code": "2"}})
    assert json.loads(CODE_FILE.read_text()) == {"s": {"code": "2"}}


def test_step_code_names_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    found = step_code("curate_entities", Path(__file__).parents[2])
    assert "src/twohop/steps/curate_entities.py" in found
    assert all(len(digest) == 64 for digest in found.values())
