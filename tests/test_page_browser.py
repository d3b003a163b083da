"""The page in a browser, by real clicks and keys: `pytest -m browser`, with chromium and chromedriver."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
from test_page import QUICK, make_root, rendered

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
#: Positions of the boards on the page.
FP16, TF32 = 1, 2


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start a browser with a profile of its own, or skip where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("no chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = make_root(tmp_path_factory.mktemp("page"))
    path = root / "index.html"
    path.write_text(rendered(root))
    return path.as_uri()


@pytest.fixture
def browser(chromium: Any, address: str) -> Any:
    """Return the browser at the page, as wide as a desktop's and light; nothing may go to its console."""
    show(chromium, address)
    yield chromium
    assert chromium.get_log("browser") == []


def show(browser: Any, address: str, width: int = 1100, scheme: str = "light") -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(address)


def find(browser: Any, selector: str) -> list[Any]:
    found: list[Any] = browser.find_elements("css selector", selector)
    return found


def names(browser: Any, board: int) -> list[str]:
    """Return the solutions of a board in the order shown."""
    return [row.text for row in find(browser, f"section:nth-of-type({board}) > .scroll tbody th")]


def header(browser: Any, board: int, name: str) -> Any:
    headers = find(browser, f"section:nth-of-type({board}) > .scroll thead th")
    (found,) = (th for th in headers if name in th.text)
    return found


def click(element: Any) -> None:
    element.find_element("css selector", "button, summary").click()


def test_a_click_on_a_column_sorts_by_it_and_says_so(browser: Any) -> None:
    assert header(browser, TF32, "rank").get_attribute("aria-sort") == "ascending"
    assert names(browser, TF32) == ["quick", "slow"]
    speedup = header(browser, TF32, "speedup")
    click(speedup)
    assert names(browser, TF32) == ["slow", "quick"]
    assert speedup.get_attribute("aria-sort") == "ascending"
    assert header(browser, TF32, "rank").get_attribute("aria-sort") == "none"
    click(speedup)
    assert names(browser, TF32) == ["quick", "slow"]
    assert speedup.get_attribute("aria-sort") == "descending"


def test_what_has_no_number_stays_last(browser: Any) -> None:
    # quick has no records in fp16 but a failure, and therefore no speed-up
    for _ in range(2):
        click(header(browser, FP16, "speedup"))
        assert names(browser, FP16) == ["slow", "quick"]
    click(header(browser, FP16, "solution"))
    assert names(browser, FP16) == ["quick", "slow"]


def test_numbers_sort_as_numbers(browser: Any) -> None:
    (every,) = find(browser, f"section:nth-of-type({TF32}) > details:last-of-type")
    click(every)
    column = every.find_elements("css selector", "thead th")[5]

    def times_us() -> list[float]:
        rows = every.find_elements("css selector", "tbody tr")
        return [float(row.find_elements("css selector", "td")[4].text) for row in rows]

    before = times_us()
    # 200.00 comes before 45.45 as a text
    assert before != sorted(before) != sorted(before, key=str)
    click(column)
    assert times_us() == sorted(before)
    click(column)
    assert times_us() == sorted(before, reverse=True)


def test_a_solution_links_to_its_source_which_unfolds(browser: Any) -> None:
    (link,) = (a for a in find(browser, f"section:nth-of-type({TF32}) tbody th a") if a.text == "quick")
    source = browser.find_element("css selector", link.get_attribute("hash"))
    assert not source.is_displayed()
    link.click()
    assert source.is_displayed()
    assert source.text == QUICK.strip()


def test_everything_is_within_reach_of_the_keyboard_and_visibly_so(browser: Any) -> None:
    keys = pytest.importorskip("selenium.webdriver").Keys
    reached = []
    while True:
        browser.switch_to.active_element.send_keys(keys.TAB)
        current = browser.switch_to.active_element
        if current.tag_name == "body":
            break
        reached.append(current)
        style = "const s = getComputedStyle(document.activeElement); return s.outlineStyle + s.outlineWidth"
        assert browser.execute_script(style) == "solid3px"
    assert reached[0].accessible_name == "Skip to the boards"
    operable = [one for one in find(browser, "a, button, summary, [tabindex]") if one.is_displayed()]
    assert {one.id for one in operable} <= {one.id for one in reached}


def test_keys_sort_and_unfold(browser: Any) -> None:
    keys = pytest.importorskip("selenium.webdriver").Keys
    header(browser, TF32, "speedup").find_element("css selector", "button").send_keys(keys.ENTER)
    assert names(browser, TF32) == ["slow", "quick"]
    (guide, *_) = find(browser, "header details")
    guide.find_element("css selector", "summary").send_keys(keys.SPACE)
    assert guide.get_attribute("open")


def test_the_charts_show_each_cell_and_hide_a_solution_on_request(browser: Any) -> None:
    board = f"section:nth-of-type({TF32})"
    plot = f"{board} .plot[data-chart=speedup][data-sweep=kernelbench] svg"
    assert len(find(browser, f"{plot} .mark")) == 2
    assert len(find(browser, f"{plot} .mark.full")) == 1
    assert {"1.50 ▲", "0.50 ▼"} <= {text.text for text in find(browser, f"{plot} text")}
    assert len(find(browser, f"{board} .plot[data-chart=roofline] .mark")) == 16
    # one panel for each solution; 129 programs are one more than a wave
    assert len(find(browser, f"{board} .plot[data-chart=waves] svg")) == 2
    assert len(find(browser, f"{board} .plot[data-chart=waves] .edge:not(.inner)")) == 2
    (toggle,) = (button for button in find(browser, f"{board} .legend button") if button.text == "quick")
    toggle.click()
    assert toggle.get_attribute("aria-pressed") == "false"
    assert len(find(browser, f"{plot} .mark")) == 1
    toggle.click()
    assert len(find(browser, f"{plot} .mark")) == 2


def test_edges_of_the_target_stand_beside_those_of_the_card(browser: Any) -> None:
    """129 programs pass an edge of the target's 128 SMs and none of 132."""
    plot = f"section:nth-of-type({TF32}) .plot[data-chart=waves]"
    assert find(browser, f"{plot} .edge.target") == []
    browser.execute_script(f"""
        for (const one of BOARDS[{TF32 - 1}].solutions) for (const cell of one.cells) cell.sms = 132;
        document.querySelectorAll("{plot}").forEach(draw)""")
    assert len(find(browser, f"{plot} .edge")) == len(find(browser, f"{plot} .edge.target:not(.inner)")) == 2
    described = find(browser, f"{plot} desc")[0].get_attribute("textContent")
    assert "129 programs, 0.98 waves of 132 SMs, 1.01 waves of 128 SMs" in described


def test_a_chart_is_drawn_when_it_is_unfolded(browser: Any) -> None:
    plot = f"section:nth-of-type({TF32}) .plot[data-sweep=layers]"
    assert find(browser, f"{plot} svg") == []
    (summary,) = (
        s for s in find(browser, f"section:nth-of-type({TF32}) summary") if s.text.startswith("layers")
    )
    summary.click()
    browser.implicitly_wait(5)
    assert len(find(browser, f"{plot} .mark")) == 10
    browser.implicitly_wait(0)
    assert len(find(browser, f"{plot} .interval.apart")) == 2


def test_every_drawing_has_a_title_and_a_description(browser: Any) -> None:
    drawings = find(browser, ".plot svg")
    assert drawings
    for drawing in drawings:
        assert drawing.aria_role in ("img", "image")
        assert drawing.accessible_name
        assert drawing.find_element("css selector", "desc").get_attribute("textContent")


@pytest.mark.parametrize("width", [390, 768, 1100])
def test_the_page_never_scrolls_sideways(browser: Any, address: str, width: int) -> None:
    show(browser, address, width)
    browser.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    widths = "const one = document.documentElement; return [one.scrollWidth, one.clientWidth]"
    needed, given = browser.execute_script(widths)
    assert needed <= given <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark(browser: Any, address: str, scheme: str) -> None:
    show(browser, address, scheme=scheme)
    paper, *inks = (
        browser.execute_script(f"return getComputedStyle(document.querySelector('{selector}')).{name}")
        for selector, name in [
            ("html", "backgroundColor"),
            ("html", "color"),
            ("caption", "color"),
            ("a", "color"),
        ]
    )
    assert (luminance(paper) > 0.5) == (scheme == "light")
    for ink in inks:
        low, high = sorted((luminance(paper), luminance(ink)))
        assert (high + 0.05) / (low + 0.05) >= 4.5


def luminance(color: str) -> float:
    """Return the relative luminance of `rgb(...)`, as WCAG 2 defines it; contrast of text is at least 4.5."""
    channels = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
