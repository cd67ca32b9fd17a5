"""Models on the Hub: the real client, a server on this machine, a sentence for each fault."""

import contextlib
import dataclasses
import json
import logging
import sys
from pathlib import Path

import pytest

from diffae_jax import DiffAE, cli
from diffae_jax.cli import arguments
from diffae_jax.config import from_file
from diffae_jax.inference.card import Card, CardPicture
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.hub import parse_address
from diffae_jax.stages.origin import check_origin
from tests.hub_server import TOKEN, Repository, serve
from tests.messages import assert_is_one_sentence
from tests.processes import Forked
from tests.random_models import random_model
from tests.stages.test_storage_faults import disk

constants = pytest.importorskip("huggingface_hub.constants")

NAME, ADDRESS = "someone/digits", "hf://someone/digits"
PNG = b"\x89PNG\r\n\x1a\nshort"


@pytest.fixture(scope="module")
def model(one_device):
    return random_model(one_device, card=Card(data=("Images: noise.",)))


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    """The files of the model's bundle, by name."""
    path = tmp_path_factory.mktemp("model") / "bundle"
    model.save(path)
    return contents(path)


@pytest.fixture(scope="module")
def server():
    with serve() as served:
        yield served


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    """A Hub without repositories, an empty cache, and the user logged in.

    The library reads its environment variables when it is imported, hence the constants.
    """
    hub, address = server
    hub.__init__()
    settings = {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,  # the server stores large files as Git LFS does
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def put(hub, files, **settings):
    hub.repositories[NAME] = Repository(files=files, **settings)
    return hub.repositories[NAME]


def is_refused(call, *texts):
    with pytest.raises(UserError) as caught:
        call()
    assert_is_one_sentence(caught.value)
    for text in (*texts, NAME):
        assert text in str(caught.value)
    assert TOKEN not in str(caught.value)


def load(address=ADDRESS):
    return DiffAE.load(address)


def test_pushed_model_has_equal_bytes_and_loads_as_the_same_model(hub, model, bundle, tmp_path, one_device):
    commit = model.push_to_hub(NAME)
    repository = hub.repositories[NAME]
    assert commit.endswith(f"/{NAME}/commit/{repository.branches['main']}")
    assert not repository.private
    files = dict(repository.files())
    assert files.pop(".gitattributes")
    card, manifest = files.pop("README.md").decode(), json.loads(files.pop("manifest.json"))
    assert f'DiffAE.load("{ADDRESS}")' in card
    assert "Images: noise." in card
    expected = {name: content for name, content in bundle.items() if name not in ("README.md", "manifest.json")}
    assert files == expected
    assert manifest["files"] == json.loads(bundle["manifest.json"])["files"]
    assert len(hub.large) == 1, "the weights are not stored as a large file"

    loaded = DiffAE.load(ADDRESS, one_device)
    assert loaded.digest() == model.digest()
    assert loaded.card == model.card
    assert loaded.probes.keys() == model.probes.keys()
    loaded.save(tmp_path / "again")
    assert contents(tmp_path / "again")["weights.safetensors"] == bundle["weights.safetensors"]


def test_branch_and_commit_are_revisions(hub, model):
    model.push_to_hub(NAME)
    first = hub.repositories[NAME].branches["main"]
    changed = random_model(model.mesh, seed=1)
    changed.push_to_hub(NAME, branch="v2", message="Trained for longer")
    assert hub.repositories[NAME].messages[-1] == "Trained for longer"
    assert hub.repositories[NAME].branches["main"] == first
    assert load(f"{ADDRESS}@v2").digest() == changed.digest() != model.digest()
    assert load().digest() == load(f"{ADDRESS}@{first}").digest() == model.digest()
    is_refused(lambda: load(f"{ADDRESS}@v3"), "has no revision v3")


def test_only_files_of_a_bundle_are_copied_and_nothing_twice(hub, bundle, tmp_path):
    put(hub, bundle | {"evil.py": b"", "weights.bin": b"", "probes/evil.txt": b"", "pictures/other.png": PNG})
    load()
    load()
    (snapshot,) = (tmp_path / "cache").glob("models--*/snapshots/*")
    assert contents(snapshot) == bundle
    for name in ("evil.py", "weights.bin", "probes/evil.txt", "pictures/other.png"):
        assert not hub.requested(name)
    assert len([method for method, path in hub.requests if method == "GET" and path.endswith("safetensors")]) == 1


def test_private_repository_is_for_its_user(hub, model, monkeypatch):
    model.push_to_hub(NAME, private=True)
    assert hub.repositories[NAME].private
    assert load().digest() == model.digest()
    is_refused(lambda: model.push_to_hub(NAME, private=False), "exists and is private, not public")
    hub.repositories[NAME].private = False
    is_refused(lambda: model.push_to_hub(NAME, private=True), "exists and is public, not private")
    hub.repositories[NAME].private = True
    monkeypatch.setattr(constants, "HF_HUB_CACHE", f"{constants.HF_HUB_CACHE}-empty")
    monkeypatch.delenv("HF_TOKEN")
    is_refused(load, "does not exist, or you may not read it", "hf auth login")


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors", "latents.npz", "manifest.json"])
def test_damaged_and_missing_files_are_named(hub, bundle, name):
    content = bundle[name]
    if name != "manifest.json":
        put(hub, bundle | {name: content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]})
        is_refused(load, f"{ADDRESS}: {name} does not match the manifest (SHA-256 differs)")
        put(hub, bundle | {name: content[:-1]})
        is_refused(load, f"{ADDRESS}: {name} has")
    without = {other: bundle[other] for other in bundle if other != name}
    put(hub, without)
    is_refused(load, f"has no {name}" if name == "manifest.json" else f"{ADDRESS}: {name} is missing")
    put(hub, bundle)
    load()


def test_copy_that_was_damaged_on_this_machine_is_named(hub, bundle, tmp_path):
    put(hub, bundle)
    load()
    (weights,) = (tmp_path / "cache").rglob("weights.safetensors")
    damaged = bytearray(weights.read_bytes())
    damaged[-2] ^= 1
    weights.write_bytes(damaged)
    is_refused(load, "SHA-256 differs", f"delete {next((tmp_path / 'cache').glob('models--*'))}")


@pytest.mark.parametrize(
    "text",
    ["hf://", "hf://digits", "hf://a/b/c", "hf://a/b@", "hf://a/b@v 2", "hf://datasets/a", "hf://../a", "hf://a b/c"],
)
def test_malformed_address_is_refused_before_any_request(hub, text):
    with pytest.raises(UserError, match=r"is not the address of a model.*Write hf://USER/NAME") as caught:
        load(text)
    assert_is_one_sentence(caught.value)
    assert not hub.requests


def test_address_survives_a_path():
    assert str(parse_address(Path(f"{ADDRESS}@v2"))) == f"{ADDRESS}@v2"
    assert arguments.as_model(ADDRESS) == ADDRESS


def test_malformed_address_in_a_command_is_named(capsys):
    with pytest.raises(SystemExit):
        cli.run(["info", "hf://digits"])
    assert "argument MODEL: hf://digits is not the address of a model. Write hf://USER/NAME" in capsys.readouterr().err


def manifest_with(bundle, *names):
    manifest = json.loads(bundle["manifest.json"])
    manifest["files"] |= {name: {"bytes": 1, "sha256": ""} for name in names}
    return {"manifest.json": json.dumps(manifest).encode()}


def test_repository_that_is_no_bundle_is_refused(hub, bundle, tmp_path, monkeypatch):
    is_refused(load, "does not exist")
    put(hub, {"config.json": b"{}", "pytorch_model.bin": b""})
    is_refused(load, "is not a bundle: it has no manifest.json")
    put(hub, bundle | {"manifest.json": b'{"version": 3}'})
    is_refused(load, "is not a bundle: it has another manifest.json")
    put(hub, bundle | {"manifest.json": b"{"})
    is_refused(load, "is not a bundle")
    for name in ("evil.py", "../evil.json", "probes/../../evil.json", "pictures/evil.svg"):
        put(hub, bundle | manifest_with(bundle, name))
        is_refused(load, "which no bundle has")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    put(hub, bundle).gated = True
    is_refused(load, "asks for consent")
    assert not list((tmp_path / "cache").rglob("*.bin"))


def disconnect(monkeypatch):
    """Sends requests to a port of this machine that is closed."""
    port = constants.ENDPOINT.rpartition(":")[2]
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
        monkeypatch.setattr(constants, name, getattr(constants, name).replace(port, "9"))


def test_without_network_the_copy_is_used(hub, bundle, monkeypatch):
    put(hub, bundle)
    load()
    disconnect(monkeypatch)
    load()


@pytest.mark.long  # the library tries for 23 seconds
def test_without_network_and_copy_the_server_is_named(hub, bundle, monkeypatch):
    put(hub, bundle)
    disconnect(monkeypatch)
    is_refused(load, "is not in the cache, and http://127.0.0.1:9 does not answer")


def test_no_network_and_no_login_end_a_push(hub, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    is_refused(lambda: model.push_to_hub(NAME), "You may not write", "hf auth login")
    monkeypatch.delenv("HF_TOKEN")
    is_refused(lambda: model.push_to_hub(NAME), "hf auth login")
    disconnect(monkeypatch)
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9 does not answer") as caught:
        model.push_to_hub(NAME)
    assert_is_one_sentence(caught.value)
    assert NAME not in hub.repositories


def test_offline_mode_is_honored(hub, model, bundle, monkeypatch):
    put(hub, bundle)
    load()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    load()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", f"{constants.HF_HUB_CACHE}-empty")
    is_refused(load, "is not in the cache", "HF_HUB_OFFLINE")
    is_refused(lambda: model.push_to_hub(NAME), "cannot be written", "HF_HUB_OFFLINE")
    assert not hub.requests


def test_full_disk_is_named_and_with_space_the_model_loads(hub, bundle, monkeypatch, tmp_path):
    put(hub, bundle)
    with disk(tmp_path / "disk", 4) as folder:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
        with (folder / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            filler.write(bytes(2**22 - 2**16))
        is_refused(load, "No space left on device", str(folder), "HF_HOME")
        (folder / "filler").unlink()
        load()


def test_missing_library_is_named(hub, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (load, lambda: model.push_to_hub(NAME)):
        with pytest.raises(UserError, match=r'pip install "diffae_jax\[hub\]"'):
            call()


def test_push_refuses_repositories_of_other_things(hub, model, bundle):
    for other in ({}, {"manifest.json": b"{}", "config.json": b"{}"}):
        repository = put(hub, {".gitattributes": b"", "README.md": b"# Mine", "model.pt": b"weights"} | other)
        before = dict(repository.commits), dict(repository.branches)
        for branch in (None, "v2"):
            is_refused(lambda branch=branch: model.push_to_hub(NAME, branch=branch), "holds model.pt")
        assert (repository.commits, repository.branches) == before
    with pytest.raises(UserError, match="use push_to_hub or diffae push"):
        model.save(ADDRESS)


@pytest.mark.parametrize("status", [400, 403, 412])
def test_refused_commit_changes_nothing_and_the_next_push_succeeds(hub, model, status):
    hub.refused_commits = iter([status, None])
    is_refused(lambda: model.push_to_hub(NAME), f"{status}" if status != 403 else "You may not write")
    assert list(hub.repositories[NAME].files()) == [".gitattributes"]
    model.push_to_hub(NAME)
    assert load().digest() == model.digest()


def test_license_that_the_hub_does_not_know_is_refused_before_the_commit(hub, model):
    odd = DiffAE(**model.__getstate__(), mesh=model.mesh)
    odd.config = model.config.copy_and_resolve_references()
    odd.config.export.license = "my-own"
    is_refused(lambda: odd.push_to_hub(NAME), '"license" must be one of the list')
    odd.config.export.license = "CC BY"
    with pytest.raises(UserError, match="The license must be an identifier"):
        odd.push_to_hub(NAME)
    odd.config.export.license = "cc-by-4.0"
    odd.push_to_hub(NAME)
    assert 'license: "cc-by-4.0"' in hub.repositories[NAME].files()["README.md"].decode()


def test_push_replaces_a_bundle_and_keeps_the_files_and_the_card_of_its_owner(hub, model, caplog):
    picture = CardPicture("pictures/samples.png", "Samples.", PNG)
    with_picture = DiffAE(**model.__getstate__(), mesh=model.mesh)
    with_picture.card = dataclasses.replace(model.card, pictures=(picture,))
    with_picture.push_to_hub(NAME)
    repository = hub.repositories[NAME]
    assert repository.files()["pictures/samples.png"] == PNG
    assert load().card.pictures == (picture,)
    by_hand = {"README.md": b"# By hand", "video.mp4": b"film", "pictures/diagram.png": PNG + b"er"}
    repository.commit("main", repository.files() | by_hand, "Edit")
    assert load().card.text == "# By hand"

    other = random_model(model.mesh, seed=1, probes={})
    other.push_to_hub(NAME)
    files = repository.files()
    assert files["README.md"] == b"# By hand"
    assert files["video.mp4"] == b"film"
    assert "was edited, so it is kept with its license and its pictures" in caplog.text
    assert not [name for name in files if name.startswith("probes/")]
    assert {name for name in files if name.startswith("pictures/")} == {"pictures/samples.png", "pictures/diagram.png"}
    assert load().digest() == other.digest()
    own = CardPicture("pictures/own.png", "", PNG)
    other.card = Card(text="# Edited here", pictures=(own,))
    other.push_to_hub(NAME)
    files = repository.files()
    assert files["README.md"] == b"# Edited here"
    assert {"pictures/samples.png", "pictures/diagram.png", "pictures/own.png"} <= files.keys()
    assert load().card.pictures == (own,)


def test_license_of_a_push_replaces_that_of_an_edited_card(hub, model, tmp_path, caplog, capsys):
    card = CardPicture("pictures/samples.png", "Samples.", PNG)
    edited = DiffAE(**model.__getstate__(), mesh=model.mesh)
    edited.card = Card(
        text="---\nlicense: unknown\ntags: [a]\n---\n# Mine\n![](pictures/samples.png)", pictures=(card,)
    )
    edited.save(tmp_path / "bundle")
    assert not caplog.messages
    cli.run(["push", str(tmp_path / "bundle"), NAME, "--license", "mit", "--no-pictures"])
    text = hub.repositories[NAME].files()["README.md"].decode()
    assert text == edited.card.text.replace("unknown", '"mit"')
    warning = "The edited README.md shows pictures/samples.png, but there is no such file. Remove it from the text.\n"
    assert capsys.readouterr().err == warning


def test_other_license_of_an_edited_card_is_reported(model, tmp_path, caplog):
    edited = DiffAE(**model.__getstate__(), mesh=model.mesh)
    edited.card = Card(text="# Mine")
    edited.config = model.config.copy_and_resolve_references()
    edited.config.export.license = "mit"
    edited.save(tmp_path / "bundle")
    message = "The edited README.md does not state the license mit. Write `license: mit` in its first lines."
    assert caplog.messages == [message]


def test_empty_card_of_a_new_repository_is_replaced(hub, model):
    put(hub, {"README.md": b"---\nlicense: mit\n---\n", ".gitattributes": b""})
    model.push_to_hub(NAME)
    assert "# tiny" in hub.repositories[NAME].files()["README.md"].decode()


def test_token_is_never_logged(hub, model, caplog):
    with caplog.at_level(logging.DEBUG):
        model.push_to_hub(NAME)
        load()
    assert TOKEN not in caplog.text


def test_commands_take_addresses_and_obey_the_environment(hub, model, tmp_path):
    model.save(tmp_path / "bundle")
    settings = {
        "HF_ENDPOINT": constants.ENDPOINT,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }

    def diffae(*words, code=0):
        process = Forked("diffae_jax.cli:run", words, settings=settings)
        assert process.wait() == code, process.output
        return process.output

    words = (tmp_path / "bundle", NAME, "--private", "--license", "mit", "--message", "First")
    output = diffae("push", *words)
    (commit,) = hub.repositories[NAME].branches.values()
    assert output == f"Commit: {constants.ENDPOINT}/{NAME}/commit/{commit}\nLoad it with DiffAE.load('{ADDRESS}').\n"
    assert hub.repositories[NAME].messages[-1] == "First"
    output = diffae("info", ADDRESS, "--html", tmp_path / "card.html")
    assert "license: mit" in output
    assert "Images: noise." in (tmp_path / "card.html").read_text()
    assert (tmp_path / "home" / "hub").is_dir()
    output = diffae("sample", f"{ADDRESS}@v9", "--num", 1, "--out", tmp_path / "x.png", code=2)
    assert output == f"Error: {ADDRESS} has no revision v9. Use the name of a branch, a tag or a commit.\n"
    output = diffae("push", tmp_path / "bundle", "digits", code=2)
    assert "is not the address of a model" in output


def test_config_of_a_model_that_does_not_fit_is_named(hub, bundle, tiny_config, tmp_path, one_device):
    put(hub, bundle)
    tiny_config.model.update(base_channels=64, embed_dim=96, z_dim=7)
    tiny_config.image_shape = (8, 8, 2)
    with pytest.raises(UserError, match=f"No weights of {ADDRESS} fit") as refusal:
        check_origin(tiny_config, tmp_path / "run", ADDRESS, None, one_device)
    assert_is_one_sentence(refusal.value)
    config = from_file(str(refusal.value).partition("--config=")[2].removesuffix("."))
    assert config.to_dict() == DiffAE.load(ADDRESS, one_device).config.to_dict()
