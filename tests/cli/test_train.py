"""diffae train and python -m diffae_jax.main: choice and changes of a config, help, mistakes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from diffae_jax import cli
from diffae_jax.cli import train
from diffae_jax.config import default, from_file, packaged_configs
from diffae_jax.config.keys import FLAT_KEYS
from diffae_jax.stages.chain import STAGES
from tests.environment import ROOT, environment

OWN = """
from diffae_jax.config import default, variant

def get_config(name=None):
    config = default()
    config.name = "own"
    return variant(config, name)
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A current folder without configs, and a home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def own(path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(OWN)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "digits"),
        (["--config=ffhq128"], "ffhq128"),
        (["--config", "ffhq128"], "ffhq128"),
        (["-config=ffhq128"], "ffhq128"),
        (["--config=ffhq128:ddim"], "ffhq128_ddim"),
        (["--config=configs/ffhq128.py"], "ffhq128"),
        (["--config", "configs/ffhq128.py:z64"], "ffhq128_z64"),
        ([f"--config={ROOT}/configs/ffhq128.py:ddim"], "ffhq128_ddim"),
        (["--config=own.py"], "own"),
        (["--config=below/own.py:ddim"], "own_ddim"),
        (["--config=~/own.py:z64"], "own_z64"),
        (["--config=a:b/own.py:ddim"], "own_ddim"),
        (["--config=ffhq64", "--config=own.py"], "own"),
    ],
    ids=lambda value: re.sub(r"=/.*/", "=/", " ".join(value)) if isinstance(value, list) else "",
)
def test_config_is_found_from_any_folder(arguments, name):
    for path in ("own.py", "below/own.py", "home/own.py", "a:b/own.py"):
        own(path)
    values = train.parse(["--config.seed=3", *arguments, "--config.train.batch_size", "64", "--workdir=there"])
    assert values.config.name == name
    assert (values.config.seed, values.config.train.batch_size) == (3, 64)
    assert (values.workdir, values.stages, values.process_id) == ("there", None, None)


def test_own_file_comes_before_a_packaged_config_of_that_name():
    own("configs/ffhq128.py")
    own("digits")
    assert train.parse(["--config=configs/ffhq128.py"]).config.name == "own"
    assert train.parse(["--config=digits"]).config.name == "own"
    assert train.parse(["--config=ffhq128"]).config.name == "ffhq128"
    Path("ffhq64").mkdir()  # a folder is no config
    assert train.parse(["--config=ffhq64"]).config.name == "ffhq64"


def test_every_packaged_config_is_known_by_its_name():
    assert set(packaged_configs()) == {path.stem for path in (ROOT / "configs").glob("[!_]*.py")}
    for name in packaged_configs():
        assert from_file(name).name == from_file(f"configs/{name}.py").name == name


def test_flags_change_any_key_of_a_config():
    flags = ['--config.image_shape="(32, 32, 1)"', "--config.data.flip=False", "--noconfig.data.skip_bad"]
    flags += ["--config.model.z_dim=64", "--config.train.learning_rate=3", "--config.train.num_images=1_000"]
    config = train.parse([flag.replace('"', "") for flag in flags]).config
    assert (config.image_shape, config.data.flip, config.model.z_dim) == ((32, 32, 1), False, 64)
    assert (config.train.learning_rate, config.train.num_images) == (3.0, 1000)


NAMES = "bedroom128, celeba64, digits, ffhq128, ffhq128_48m, ffhq256, ffhq64, horse128, images, photos32"
MISTAKES = {
    "unknown name": (["--config=ffhq12"], rf"ffhq12 is missing: .*\({NAMES}\)\."),
    "unknown name and variant": (["--config", "ffhq12:ddim"], rf"ffhq12 is missing: .*\({NAMES}\)\."),
    "unknown file": (["--config=configs/nowhere.py"], rf"configs/nowhere\.py is missing: .*\({NAMES}\)\."),
    "folder": (["--config=folder"], r"folder is not a file\. Check the path\."),
    "nothing": (["--config="], r"\. is not a file\. Check the path\."),
    "unknown variant": (["--config=ffhq128:dim"], r"There is no variant dim of ffhq128: use ddim \(the baseline .*"),
    "variant of none": (["--config=images:ddim"], r".*configs/images\.py has no variants: remove :ddim\."),
    "no config": (["--config=folder/text.py"], r"folder/text\.py is not a config: its get_config must return .*"),
    "lacking": (["--config=folder/lacking.py"], r"folder/lacking\.py is not a config: its get_config must return .*"),
    "broken": (["--config=folder/broken.py"], r"folder/broken\.py is not a config \(ZeroDivisionError: .*"),
    "unknown key": (["--config.train.batchsize=3"], r"The flags are invalid: .*batchsize.*\. Use --help for .*\."),
    "misspelled key": (["--config.data.lables=a.csv"], r".*no key data\.lables \(did you mean data\.labels\?\)\. .*"),
    "key without config": (["--data.path=a"], r".*flag 'data\.path' \(did you mean --config\.data\.path\?\)\. .*"),
    "value of another type": (["--config.train.batch_size=many"], "The flags are invalid: .*many.*"),
    "unknown flag": (["--stage=latents"], "The flags are invalid: .*Unknown command line flag 'stage'.*"),
    "no value": (["--workdir"], r"The flags are invalid: Missing value for flag --workdir\. Use --help .*"),
    "no flag": (["digits"], "'digits' is not a flag: .* such as --config=digits.*"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_reported_in_one_line(mistake, capsys):
    arguments, message = MISTAKES[mistake]
    Path("folder").mkdir()
    Path("folder/text.py").write_text("def get_config():\n    return {}")
    Path("folder/broken.py").write_text("1 / 0")
    Path("folder/lacking.py").write_text(
        OWN.replace('"own"', '"own"\n    with config.unlocked(): del config.train.schedule')
    )
    said = []
    for command in (train.run, lambda arguments: cli.run(["train", *arguments])):
        with pytest.raises(SystemExit) as stop:
            command(arguments)
        assert stop.value.code == 2
        said.append(capsys.readouterr())
    assert said[0] == said[1]
    assert said[0].out == ""
    assert re.fullmatch(f"\nError: {message}\n", said[0].err), said[0].err


def test_help_names_flags_configs_and_stages(capsys):
    train.run(["--help"])
    said = capsys.readouterr().out
    values = train.parse([])
    assert {f"--{name}" for name in values} <= set(re.findall(r"^  (--\w+)", said, re.M))
    assert f" of {','.join(STAGES)};" in said
    assert set(packaged_configs()) == set(re.findall(r"^  (\w+)  +", said.partition("configs:\n")[2], re.M))
    assert len(said.splitlines()) < 40
    for example in train.EXAMPLES:
        assert f"  diffae train {example}" in said.splitlines()
        assert train.parse(example.split()).config.name


def test_full_help_lists_every_key_with_its_default(capsys):
    cli.run(["train", "--helpfull"])
    said = capsys.readouterr().out
    flags = re.findall(r'^  --config\.([\w.]+)="?(.*?)"?$', said.partition("keys:\n")[2], re.M)
    defaults = {name: str(key.default) for name, key in FLAT_KEYS.items()}
    as_written = {name: value if value.startswith("(") else value.replace("_", "") for name, value in flags}
    assert as_written == {
        name: value if value.startswith("(") else value.replace("_", "") for name, value in defaults.items()
    }


def test_a_changed_config_is_another_object_each_time():
    first = train.parse(["--config.seed=5"]).config
    assert (first.seed, train.parse([]).config.seed, default().seed) == (5, 0, 0)


def test_both_commands_are_the_same_and_import_code_next_to_the_config(here):
    (here / "beside.py").write_text('NAME = "own"')
    (here / "mine.py").write_text(OWN.replace('"own"', "__import__('beside').NAME"))
    script = here / "bin" / "diffae"  # like the installed one: its own folder is searched, the current one is not
    script.parent.mkdir()
    script.write_text("from diffae_jax.cli import run\nrun()")
    arguments = ["--config", "mine.py:z64", "--config.train.batch_size=many"]
    for command in ([str(script), "train"], ["-m", "diffae_jax.main"]):
        done = subprocess.run(
            [sys.executable, *command, *arguments], cwd=here, env=environment(PYTHONPATH=str(ROOT)), text=True,
            capture_output=True,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch("\nError: The flags are invalid: [^\n]*batch_size=many[^\n]*\n", done.stderr)
