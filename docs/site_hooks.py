"""Hooks of mkdocs: pages from other folders, generated pages, and checks that fail the build."""

import argparse
import logging
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

import griffe
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ELSEWHERE = {  # page of the site: file of the repository
    "index.md": "README.md",
    "launch.md": "launch/README.md",
    "plans.md": "launch/plans.md",
    "notebooks.md": "notebooks/README.md",
    "benchmarks.md": "benchmarks/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
COMMAND_LINE = "reference/command_line.md"
LINK = re.compile(r"(\]\(|^\[[^\]]+\]: )(?!https?://|#)([^)\s#]+)(#[^)\s]*)?", re.MULTILINE)
DIRECTIVE = re.compile(r"^::: (\S+)$", re.MULTILINE)

log = logging.getLogger("mkdocs.site_hooks")  # its warnings fail a strict build
package: griffe.Module


def on_pre_build(config: MkDocsConfig) -> None:
    """Reads the package without importing it."""
    global package
    package = griffe.load("diffae_jax", search_paths=[str(ROOT)])


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the address of the repository, if CITATION.cff has one."""
    config.repo_url = repository() or None
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from other folders and the generated page."""
    for page, origin in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / origin).read_text()))
    files.append(File.generated(config, COMMAND_LINE, content=command_line()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files into links between pages, and checks docstrings."""
    for name in DIRECTIVE.findall(markdown):
        check_docstrings(name, page)
    origin = ELSEWHERE.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return LINK.sub(lambda link: relinked(link, origin, page), markdown)


def relinked(link: re.Match, origin: str, page: Page) -> str:
    """Converts a link between files of the repository to a link of the site."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link[2]))
    anchor = link[3] or ""
    pages = {file: name for name, file in ELSEWHERE.items()}
    here = posixpath.dirname(page.file.src_uri) or "."
    if target in pages or target.startswith("docs/"):
        return f"{link[1]}{posixpath.relpath(pages.get(target, target.removeprefix('docs/')), here)}{anchor}"
    if not (ROOT / target).exists():
        log.warning("%s links to %s, which does not exist.", origin, target)
    address = f"{repository()}/blob/main/{target}{anchor}" if repository() else posixpath.relpath("index.md", here)
    return f"{link[1]}{address}"


def repository() -> str:
    """Returns the address of the repository, or "" if CITATION.cff does not have it."""
    return yaml.safe_load((ROOT / "CITATION.cff").read_text()).get("repository-code", "").rstrip("/")


def check_docstrings(name: str, page: Page) -> None:
    """Warns about each public object of a reference page that has no docstring."""
    documented = package[name.removeprefix("diffae_jax.")]
    if documented.is_alias:
        documented = documented.final_target
    for item in [documented, *public_members(documented)]:
        if not item.has_docstring:
            log.warning("%s has no docstring, and %s documents it.", item.path, page.file.src_uri)


def public_members(item: Any) -> list[Any]:
    """Returns the public classes, functions and methods below an object."""
    members = [
        member
        for member in item.members.values()
        if not member.is_alias and not member.name.startswith("_") and (member.is_class or member.is_function)
    ]
    return [*members, *(inner for member in members if member.is_class for inner in public_members(member))]


def command_line() -> str:
    """Returns the page on the command line, generated from the parsers."""
    sys.path.insert(0, str(ROOT))
    from diffae_jax.cli import COMMANDS, parser, train

    lines = ["# Command line", ""]
    lines += ["This page is generated from the parsers. `diffae COMMAND --help` prints the same.", ""]
    lines += ["| command | what it does |", "|---|---|"]
    lines += [f"| [`diffae {name}`](#diffae-{name}) | {cell(command.HELP)} |" for name, command in COMMANDS.items()]
    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        usage = " ".join(command.format_usage().removeprefix("usage: ").split())
        usage = train.help_text(all_keys=False).rstrip() if name == "train" else usage  # it has no argument parser
        lines += ["", f"## diffae {name}", "", f"{command.description}", "", "```text", usage, "```", ""]
        arguments = [action for action in command._actions if action.dest != "help"]
        lines += ["| argument | meaning |", "|---|---|"] if arguments else []
        lines += [f"| `{argument_name(action)}` | {cell(action.help or '')} |" for action in arguments]
        lines += ["", "```bash", *(f"diffae {name} {example}" for example in COMMANDS[name].EXAMPLES), "```"]
    return "\n".join(lines) + "\n"


def argument_name(action: argparse.Action) -> str:
    """Returns how an argument is written on the command line."""
    value = action.metavar or ("" if action.nargs == 0 else action.dest.upper())
    return " ".join(filter(None, [", ".join(action.option_strings), str(value)])).replace("|", "\\|")


def cell(text: str) -> str:
    """Formats a text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("%%", "%")
