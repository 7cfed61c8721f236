"""Commands that people copy from our texts mean the same in bash and in zsh, which globs brackets."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = ("python", "make", "hf", "wandb", "pip")
TEXTS = [
    "README.md",
    "CONTRIBUTING.md",
    "notebooks/README.md",
    "conf/**/*.yaml",
    "sweeps/*",
    "vdq/**/*.py",
    "results/**/*.md",
]


def blocks(text: str) -> list[str]:
    """Those without a language, or with that of a shell."""
    every = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [content.replace("\\\n", " ") for language, content in every if language in ("", "bash", "sh")]


def commands(text: str) -> list[str]:
    """In code spans and in blocks."""
    lines = [line for block in blocks(text) for line in block.splitlines()]
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    starts = tuple(f"{program} " for program in PROGRAMS)
    return [found.strip() for found in (*lines, *spans) if found.strip().startswith(starts)]


def found() -> list[str]:
    texts = [path.read_text(encoding="utf-8") for pattern in TEXTS for path in sorted(ROOT.glob(pattern))]
    return sorted(
        {command for text in texts for command in commands(text) if not re.search("[{*]", command)}
    )  # templates


def test_there_are_commands_to_test():
    assert len(found()) > 30 and "make run" in found()


@pytest.mark.parametrize("shell", ["bash --norc", "zsh -f"])
def test_every_command_has_its_arguments_as_they_stand_there(shell):
    program, option = shell.split()
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    stubs = "".join(f"{name}() {{ printf '%s\\0' {name} \"$@\"; }}\n" for name in PROGRAMS)
    wrong = []
    for command in found():
        done = subprocess.run(
            [program, option, "-c", stubs + command], capture_output=True, text=True, cwd="/", check=False
        )
        if done.stdout.split("\0")[:-1] != shlex.split(command):
            wrong.append((command, done.stderr))
    assert wrong == []


@pytest.mark.parametrize("path", ["README.md", "CONTRIBUTING.md", "notebooks/README.md"])
def test_no_comment_stands_in_a_block_of_commands(path):
    """An interactive zsh takes them for arguments."""
    lines = [line for block in blocks((ROOT / path).read_text()) for line in block.splitlines()]
    assert [line for line in lines if "#" in line] == []
