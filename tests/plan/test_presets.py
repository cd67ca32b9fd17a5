"""The table of settings in launch/README.md is what the plans say."""

import re
import shlex

import pytest

from benchmarks.plan_table import CONFIGS
from diffae_jax.cli.plan import checked, figures
from diffae_jax.cli.train import parse
from diffae_jax.plan.planning import needs_of
from diffae_jax.plan.targets import find_target
from tests.environment import ROOT

ROW = r"^\| [^|]*: `(\S+)`, `(\S+)` \| ([^|]*) \| ([\d.]+) GiB of ([\d.]+) \| ([\d,]+) \| ([\d,]+) \| ([^|]*) \|$"
ROWS = re.findall(ROW, (ROOT / "launch" / "README.md").read_text(), re.MULTILINE)
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION=0.92"


def numbers(text):
    return float(text.replace(",", ""))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row[:2]))
def test_settings_can_be_split_and_memory_is_that_of_the_machine(row):
    target, config, flags, memory, has, *_ = row
    chip = find_target(target).chip
    usable = chip.most_usable if FRACTION in flags else chip.usable
    assert float(has) == pytest.approx(usable / 2**30, abs=0.01)
    assert float(memory) < float(has)
    parse([f"--config={config}", *re.findall(r"--config\.[\w.]+=[\w.]+", flags)])


def test_there_are_rows():
    assert len(ROWS) >= 4


TABLES = re.findall(r"^## `--target=(\S+)`$(.*?)(?=^## |\Z)", (ROOT / "launch" / "plans.md").read_text(), re.M | re.S)
LINE = r"^\| `(\S+)`(?: in (\d+) parts)? \| ([\d.]+) GiB"
LINES = [(target, *line) for target, text in TABLES for line in re.findall(LINE, text, re.M)]


@pytest.mark.parametrize("line", LINES, ids=lambda line: "-".join(line[:2]))
def test_lines_of_the_table_of_plans_fit(line):
    target, config, parts, memory = line
    assert float(memory) <= find_target(target).chip.most_usable / 2**30
    flags = [f"--config={config}", f"--config.execution.num_microbatches={parts or 1}"]
    checked(parse(flags).config, target, ["train"])


def test_every_config_is_in_the_table_of_each_target():
    assert len(TABLES) >= 7
    for target, _ in TABLES:
        assert [line[1] for line in LINES if line[0] == target] == list(CONFIGS)


@pytest.mark.compilers
@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row[:2]))
def test_figures_are_those_of_the_plan(row):
    target, name, flags, memory, _, speed, hours, exchanged = row
    keys = [word for word in shlex.split(flags.replace("`", " ").replace(",", " ")) if word.startswith("--config.")]
    config = parse([f"--config={name}", *keys]).config
    (need,) = needs_of(config, find_target(target), ["train"])
    figure = figures(config, need)
    assert need.memory / 2**30 == pytest.approx(float(memory), rel=0.03)
    assert figure["images_per_second"] == pytest.approx(numbers(speed), rel=0.1)
    seconds = config.train.num_images / figure["images_per_second"]
    assert seconds / 3600 * need.num_devices == pytest.approx(numbers(hours), rel=0.1)
    count = sum(collective["times"] for collective in figure["collectives"])
    assert count == int(re.match(r"\d*", exchanged)[0] or 0)
    assert figure["host_transfers"] == 0
