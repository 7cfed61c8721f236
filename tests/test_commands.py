"""Commands that people copy from our texts mean the same in bash and in zsh, which globs brackets, and are real."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from vdq.commands import without_effect
from vdq.stages.experiment import Experiment

ROOT = Path(__file__).parents[1]
PROGRAMS = ("python", "make", "hf", "wandb", "pip", "pytest", "vdq")
PAGES = ["README.md", "CONTRIBUTING.md", "docs/**/*.md", "notebooks/README.md"]
TEXTS = [*PAGES, "conf/**/*.yaml", "sweeps/*", "vdq/**/*.py", "results/**/*.md"]
RUN = ("python run.py ", "vdq ")
ELSEWHERE = re.compile(
    "opensora|ucf101|artefact|runs/shapes_weights|int8_cuda"
)  # needs files or a GPU that are not here
QUICK = [
    "python run.py --help",
    "python run.py --info searchpath",
    "python run.py quant=asq bits=w4a8 quant.alpha=0.3 --cfg job",
]


def blocks(text: str) -> list[str]:
    """Those without a language, or with that of a shell."""
    every = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [content.replace("\\\n", " ") for language, content in every if language in ("", "bash", "sh")]


def commands(text: str) -> list[str]:
    """In code spans and in blocks."""
    lines = [line for block in blocks(text) for line in block.splitlines()]
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    programs = "|".join(PROGRAMS)
    texts = [found.strip().removeprefix(".venv/bin/") for found in (*lines, *spans)]
    return [found for found in texts if re.match(rf"({programs}) ", found)]


def found(patterns: list[str]) -> list[str]:
    texts = [path.read_text(encoding="utf-8") for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    templates = "[{*]|NAME"
    return sorted({command for text in texts for command in commands(text) if not re.search(templates, command)})


def overrides(command: str) -> list[str]:
    """What a command gives to Hydra; of a sweep the first value of each list."""
    words = shlex.split(command.partition("run.py ")[2] or command.removeprefix("vdq "))
    kept = [word for word in words if "=" in word and not word.startswith("-")]
    if "-m" in words:
        kept = [word if "[" in word else word.split(",")[0] for word in kept]
    return [re.sub(r"\b(FILE|FOLDER)\b", "/x", word) for word in kept]


def test_there_are_commands_to_test():
    assert len(found(TEXTS)) > 60 and {"make run", *QUICK} <= set(found(PAGES))


@pytest.mark.parametrize("shell", ["bash --norc", "zsh -f"])
def test_every_command_has_its_arguments_as_they_stand_there(shell):
    program, option = shell.split()
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    stubs = "".join(f"{name}() {{ printf '%s\\0' {name} \"$@\"; }}\n" for name in PROGRAMS)
    wrong = []
    for command in found(TEXTS):
        done = subprocess.run(
            [program, option, "-c", stubs + command], capture_output=True, text=True, cwd="/", check=False
        )
        if done.stdout.split("\0")[:-1] != shlex.split(command):
            wrong.append((command, done.stderr))
    assert wrong == []


def said(path: Path) -> list[str]:
    """The texts that a file of code or of configuration holds."""
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        return [content]
    nodes = ast.walk(ast.parse(content))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


@pytest.mark.parametrize("pattern", ["conf/hydra/*.yaml", "vdq/**/*.py"])
def test_brackets_are_quoted_in_help_and_messages(pattern):
    """What is set to a list is copied from there into zsh."""
    texts = [text for path in ROOT.glob(pattern) for text in said(path)]
    bare = re.compile(r"(?<!['\w.])[\w.]+=\[\w[^]]*\]")
    assert texts and [word for text in texts for word in bare.findall(text)] == []


@pytest.mark.parametrize("pattern", PAGES)
def test_no_comment_stands_in_a_block_of_commands(pattern):
    """An interactive zsh takes them for arguments."""
    texts = [path.read_text(encoding="utf-8") for path in ROOT.glob(pattern)]
    lines = [line for text in texts for block in blocks(text) for line in block.splitlines()]
    assert [line for line in lines if "#" in line] == []


RUNS = [c for c in found(PAGES) if c.startswith(RUN) and "--config-dir" not in c]


@pytest.mark.parametrize("command", RUNS)
def test_every_run_composes(command):
    """Hydra itself refuses a group, an option or a field that is not there."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert compose("config", overrides(command)).stages


@pytest.mark.parametrize("command", [c for c in RUNS if "-m" not in c.split() and not ELSEWHERE.search(c)])
def test_no_option_of_a_run_is_without_effect(command):
    given = overrides(command)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", given)
    options, experiment = {text.lstrip("+~").partition("=")[0]: text for text in given}, Experiment(cfg)
    without_effect.check(experiment, options)
    without_effect.check_calibration(experiment, options)


@pytest.mark.parametrize("command", [c for c in found(TEXTS) if re.match(r"python -m vdq\b", c)])
def test_every_module_that_is_run_exists(command):
    assert find_spec(shlex.split(command)[2]) is not None


@pytest.mark.parametrize("command", [c for c in found(PAGES) if c.startswith("make ")])
def test_every_target_of_make_exists(command):
    done = subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert "No rule to make target" not in done.stderr


@pytest.mark.parametrize("command", QUICK)
def test_quick_commands_run(command):
    words = [sys.executable, *shlex.split(command)[1:]]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout and done.stderr == ""
