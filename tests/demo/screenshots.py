"""Writes the pictures of docs/demo.md: python -m tests.demo.screenshots."""

from pathlib import Path

from diffae_jax import DiffAE
from diffae_jax.demo.images import images_at
from diffae_jax.demo.serving import served
from tests.browser import launched
from tests.demo.visitor import PHONE, Visitor
from tests.environment import ROOT
from tests.runs import free_address

WINDOW = {"width": 1280, "height": 640}


def edit(person: Visitor) -> None:
    person.change("#reconstruction", lambda: person.click("#images", 7))
    person.open("Edit")
    person.page.locator("#probes input").click()
    person.page.get_by_role("option", name="digit=8", exact=True).click()
    person.change("#edited", lambda: person.slide("#strength-2", 0.9))
    person.change("#edited", lambda: person.page.locator("#edit-film").click())


def explore(person: Visitor) -> None:
    person.open("Explore")


def save(person: Visitor, name: str) -> None:
    person.page.mouse.move(0, 0)
    person.page.wait_for_timeout(500)
    person.page.screenshot(path=ROOT / "docs" / f"{name}.png", full_page=True)
    person.context.close()


def main() -> None:
    model = DiffAE.load("digits")
    port = int(free_address().rpartition(":")[2])
    with served(model, "digits", images_at(model, Path("digits")), port) as address, launched() as browser:
        for act, name, size in (
            (edit, "demo_edit", WINDOW),
            (explore, "demo_explore", WINDOW),
            (edit, "demo_phone", PHONE),
        ):
            person = Visitor(browser, address, size)
            act(person)
            save(person, name)


if __name__ == "__main__":
    main()
