"""Airflow's pages, as a person uses them: the words on the screen, the widgets, the buttons."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from playwright.sync_api import Locator, Page, expect, sync_playwright

from tests.ui.forms import JSON, STANDARD, Field, Value

Role = Literal["combobox", "checkbox", "spinbutton", "textbox"]

_PATIENCE = 120_000  # milliseconds; a shared machine can stall a page
DETAILS_FROM = 150  # pixels from the left; what is beside them is hardly seen

_WIDGETS: dict[Role, str] = {"combobox": "choice", "checkbox": "switch", "spinbutton": "number", "textbox": "text"}


@contextmanager
def browser_page(height: int = 900, width: int = 1280) -> Iterator[Page]:
    """Open a page in the system's Chromium; no other can be used, so that nothing is downloaded."""
    chromium = shutil.which("chromium")
    assert chromium is not None, "there is no program `chromium`: `make test-ui` installs Debian's"
    expect.set_options(timeout=_PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(_PATIENCE)
        yield page
        browser.close()


class Form:
    """The dialog in which a connection is entered."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.dialog = page.get_by_role("dialog")

    def sections(self) -> list[str]:
        """The titles of the sections."""
        return self.dialog.locator("button[data-scope=accordion][aria-expanded]").all_inner_texts()

    def open(self, section: str) -> Locator:
        """Open a section, which closes the others."""
        title = self._page.get_by_role("button", name=section, exact=True)
        item = self.dialog.locator("[data-part=item]").filter(has=title)
        if title.get_attribute("aria-expanded") == "false":
            title.click()
        opened = item.locator("[data-part=item-content]")
        expect(opened).to_be_visible()
        return opened

    def labels(self, section: str) -> list[str]:
        """What stands before the fields of a section, the asterisk of a required one included."""
        shown = self.open(section).locator("[data-scope=field][data-part=label]")
        return [label.inner_text().strip() for label in shown.all() if label.is_visible()]

    def widget(self, name: str) -> str:
        """What a field is entered with."""
        field = self._field(name)
        if field.locator("[type=password]").count():
            return "password"
        return next((widget for role, widget in _WIDGETS.items() if field.get_by_role(role).count()), "none")

    def choices(self, name: str) -> tuple[str, ...]:
        """What a drop-down offers."""
        box = self._field(name).get_by_role("combobox")
        box.click()
        offered = self._page.get_by_role("option").all_inner_texts()
        box.click()  # Escape would close the whole form
        return tuple(offered)

    def help(self, name: str) -> str:
        """What stands below a field, or in it while it is empty."""
        below = self._field(name).locator("[data-part=helper-text]")
        return below.inner_text() if below.count() else self._input(name).get_attribute("placeholder") or ""

    def fill(self, sections: Mapping[str, Mapping[str, Field]]) -> None:
        """Enter the value of each field."""
        for section, fields in sections.items():
            self.open(section)
            for name, field in fields.items():
                self.enter(name, field.value)

    def enter(self, name: str, value: Value) -> None:
        """Enter a value into a field of the open section; an empty string empties it."""
        widget = self.widget(name)
        if widget == "switch":
            self._switch(self._field(name), bool(value))
        elif widget == "choice":
            self._choose(name, str(value))
        else:
            self._input(name).fill(str(value))

    def value(self, name: str) -> str:
        """What a field of text shows, or would show if it were not hidden."""
        return self._input(name).input_value()

    def save(self) -> None:
        """Press the button, and wait until the dialog is gone."""
        self.dialog.get_by_role("button", name="Save").click()
        self._page.mouse.move(0, 0)  # below the pointer a notice would stay, and cover what is pressed next
        expect(self.dialog).to_be_hidden()

    def picture(self) -> bytes:
        """Return a PNG of the whole form. Airflow opens one section at a time; here all are seen, but for the JSON."""
        self._page.add_style_tag(
            content="""
            [role=dialog] { width: 1240px !important; max-width: none !important }
            [data-scope=accordion][data-part=root] { columns: 2; border: none !important }
            [data-scope=accordion][data-part=item] { break-inside: avoid }
            [data-scope=accordion][data-part=item-content] { animation: none !important; height: auto !important }
            """
        )
        contents = self.dialog.locator("[data-part=item-content]")
        contents.evaluate_all("contents => contents.slice(0, -1).forEach(content => { content.hidden = false })")
        assert self.sections()[-1] == JSON
        return self.dialog.screenshot(animations="disabled")

    def _switch(self, field: Locator, on: bool) -> None:
        switch = field.get_by_role("checkbox")  # hidden behind what is drawn
        if switch.is_checked() != on:
            field.locator("[data-scope=switch][data-part=control]").click()
        expect(switch).to_be_checked(checked=on)

    def _choose(self, name: str, value: str) -> None:
        field = self._field(name)
        if not value:
            field.get_by_label("Clear selected options").click(force=True)
            return
        field.get_by_role("combobox").click()
        self._page.get_by_role("option", name=value, exact=True).click()

    def _input(self, name: str) -> Locator:
        return self.dialog.locator(f'[name="{name}"], [name="element_{name}"]')

    def _field(self, name: str) -> Locator:
        # A label's `for` does not always name the input, so the group around both is what is looked for.
        inside = self._page.locator(f'[name="{name}"], [name="element_{name}"], #element_{name}')
        return self.dialog.locator("[data-scope=field][data-part=root]").filter(has=inside)


class ConnectionsPage:
    """The list of connections.

    :param page: a browser's page.
    :param base_url: of Airflow.
    """

    def __init__(self, page: Page, base_url: str) -> None:
        self._page = page
        self._url = f"{base_url}/connections"

    def add(self, conn_id: str, title: str) -> Form:
        """Open the form for a new connection of a type."""
        form = self._form()
        self._page.get_by_role("button", name="Add Connection").click()
        form.dialog.get_by_label("Connection ID").fill(conn_id)
        form.dialog.get_by_role("combobox").fill(title)
        self._page.get_by_role("option", name=title, exact=True).click()
        form.open(STANDARD)
        return form

    def edit(self, conn_id: str) -> Form:
        """Open the form for a connection that exists."""
        form = self._form()
        self._row(conn_id).get_by_role("button", name="Edit Connection").click()
        return form

    def test(self, conn_id: str) -> str:
        """Press the button that tests a connection, and return what Airflow answers."""
        self._page.goto(self._url)
        self._row(conn_id).get_by_role("button", name="Test Connection").click()
        return self._page.get_by_role("status").filter(has_text="Test Connection").inner_text()

    def content(self) -> str:
        """The HTML as it is now."""
        return self._page.content()

    def _form(self) -> Form:
        """Return to the list, where no form is open."""
        form = Form(self._page)
        if self._page.url != self._url or form.dialog.is_visible():
            self._page.goto(self._url)
        return form

    def _row(self, conn_id: str) -> Locator:
        return self._page.get_by_role("row").filter(has=self._page.get_by_text(conn_id, exact=True))


def picture_of(page: Page, url: str, shows: str, *, size: tuple[int, int], press: str | None = None) -> bytes:
    """Return a PNG of a page of Airflow's whose details get most of the width.

    :param url: the page.
    :param shows: a text that is on it once it is complete.
    :param size: width and height of the picture in pixels.
    :param press: the name of a button that is pressed first.
    """
    width, height = size
    page.set_viewport_size({"width": width, "height": height})
    page.goto(url)
    edge = page.get_by_role("separator").first
    expect(edge).to_be_visible()
    box = edge.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, height / 2)
    page.mouse.down()
    page.mouse.move(DETAILS_FROM, height / 2, steps=5)
    page.mouse.up()
    if press is not None:
        page.get_by_role("button", name=press).click()
    expect(page.get_by_text(shows).first).to_be_visible()
    return _at_rest(page)


def graph_of(page: Page, base_url: str, dag_id: str, run_id: str, tasks: int, *, size: tuple[int, int]) -> bytes:
    """Return a PNG of a run's graph, from top to bottom, all of whose tasks have succeeded.

    From then on the page prefers graphs.

    :param base_url: of Airflow.
    :param tasks: how many there are.
    :param size: width and height of the picture in pixels; tasks are as large as fits.
    """
    page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
    remembered = {"default_dag_view": "graph", f"direction-{dag_id}": "DOWN"}  # by Airflow, in the browser
    for name, value in remembered.items():
        page.add_init_script(f"localStorage.setItem({json.dumps(name)}, {json.dumps(json.dumps(value))})")
    page.goto(f"{base_url}/dags/{dag_id}/runs/{run_id}")
    expect(page.locator(".react-flow__node").filter(has_text="success")).to_have_count(tasks)
    page.get_by_role("button", name="Collapse Details Panel").click()
    page.get_by_role("button", name="Fit View").click()
    return _at_rest(page)


def _at_rest(page: Page) -> bytes:
    page.mouse.move(0, 0)
    page.wait_for_timeout(2_000)  # milliseconds; what glides comes to its place
    return page.screenshot(animations="disabled")
