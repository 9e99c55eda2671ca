"""What the documentation shows is run, and what it lists is what there is."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compressor.pages import overview
from compressor.report import schema

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- run -->\n```(python)?\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "sample_models", tmp_path / "sample_models", ignore=shutil.ignore_patterns("*.py"))
    return tmp_path


@pytest.mark.parametrize(("language", "text"), BLOCKS, ids=[f"block {n + 1}" for n in range(len(BLOCKS))])
def test_readme_blocks_run_as_printed(language: str, text: str, workplace: Path) -> None:
    code = "from compressor.cli import main; main()"
    commands = (
        [[text]] if language else [[code, *shlex.split(line)[1:]] for line in text.strip().splitlines()]
    )
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-c", *command], cwd=workplace, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_readme_lists_every_pass_with_its_first_line() -> None:
    table = README.split("<!-- passes -->")[1].split("<!-- /passes -->")[0]
    rows = [f"| `{name}` | {line} |" for name, line in overview().items()]
    assert table.strip().splitlines()[2:] == rows


def test_the_published_schema_is_that_of_the_report() -> None:
    published = (ROOT / "compressor" / "report.schema.json").read_text(encoding="utf-8")
    assert published == schema(), (
        "run: python -c 'from compressor.report import schema; print(schema(), end=\"\")'"
    )
