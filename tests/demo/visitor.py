"""A person in front of a browser, who looks at the page of `diffae demo`."""

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 380, "height": 800}
FIRST_PICTURE = {  # of each tab
    "Reconstruct": "#reconstruction img",
    "Interpolate": "#between img",
    "Edit": "#edited img",
    "Sample": "#samples img",
    "Explore": "#directions img",
    "Your folder": "#to-label img",
}


class Visitor:
    """What a person sees and does. `complaints` are errors of the page, `asked` its requests."""

    def __init__(self, browser, address, size=DESKTOP):
        self.context = browser.new_context(viewport=size, accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)  # something may be compiled
        self.complaints, self.asked = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else 0)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)
        self.page.wait_for_selector(FIRST_PICTURE["Reconstruct"])

    def open(self, tab):
        button = self.page.get_by_role("tab", name=tab, exact=True)
        if not button.is_visible():  # on a phone
            self.page.get_by_label("More tabs").click()
            button = self.page.locator(".overflow-dropdown").get_by_role("button", name=tab)
        button.click()
        self.page.wait_for_selector(FIRST_PICTURE[tab])

    def pictures(self, place):
        """Returns the addresses of the pictures in a place, which hold their content."""
        return self.page.locator(f"{place} img").evaluate_all("all => all.map(image => image.src)")

    def change(self, place, act):
        """Acts, waits until a place has other pictures, and returns these."""
        before = self.pictures(place)
        act()
        self.page.wait_for_function(
            "([place, before]) => { const now = [...document.querySelectorAll(place + ' img')].map(i => i.src);"
            " return now.length && now.join() !== before.join() }",
            arg=[place, before],
        )
        return self.pictures(place)

    def click(self, place, index):
        self.page.locator(f"{place} [data-index='{index}']").click()

    def upload(self, button, *paths):
        with self.page.expect_file_chooser() as chooser:
            self.page.locator(button).click()
        chooser.value.set_files(paths)

    def slide(self, place, value):
        """Moves a slider, as a person does who types its value."""
        field = self.page.locator(f"{place} input[type=number]")
        field.fill(str(value))
        field.press("Enter")

    def message(self):
        """Returns the message on the page, and closes it."""
        toast = self.page.locator(".toast-body").first
        toast.wait_for()
        text = toast.inner_text()
        self.page.locator(".toast-close").first.click()
        toast.wait_for(state="detached")
        return text

    def download(self, kind, folder):
        """Downloads the file of that kind in the open tab."""
        with self.page.expect_download() as started:
            self.page.locator(f".get-{kind}:visible").click()
        path = folder / started.value.suggested_filename
        started.value.save_as(path)
        return path

    def code(self):
        """Returns the code of the open tab."""
        button = self.page.get_by_role("button", name="Code", exact=False).locator("visible=true").first
        button.click()
        lines = self.page.locator(".cm-content:visible .cm-line")
        lines.first.wait_for()
        text = "\n".join(lines.all_inner_texts())
        button.click()
        return text
