import pytest

from roles.gpu.cards import Card, cards, fitting_modules, has_nvswitch, misfits

NODE = """\
0000:17:00.0 0x030200 0x2330
0000:65:00.0 0x030000 0x1eb0
0000:65:00.1 0x040300 0x10f8
0000:07:00.0 0x068000 0x22a3
0000:b1:00.0 0x030200 0x4000
"""
PASCAL, VOLTA, TURING, AMPERE, HOPPER, BLACKWELL, UNKNOWN = 0x1B38, 0x1DB4, 0x1EB8, 0x20B2, 0x2330, 0x2901, 0x4000


def card(number: int) -> Card:
    return Card("0000:17:00.0", number)


def test_cards_are_read_and_their_sound_is_not() -> None:
    found = cards(NODE)
    assert [str(one) for one in found] == [
        "0000:17:00.0 H100 SXM5, 80 GB, Hopper",
        "0000:65:00.0 card 10de:1eb0, Turing",
        "0000:b1:00.0 card 10de:4000, unknown generation",
    ]
    assert has_nvswitch(NODE)
    assert not has_nvswitch(NODE.replace("0x0680", "0x0604"))


def test_a_node_without_cards() -> None:
    assert cards("") == ()
    assert misfits("535.309.01", "proprietary", ()) == ()


@pytest.mark.parametrize(
    "driver, modules, number, why",
    [
        ("535.309.01", "proprietary", HOPPER, None),
        ("535.309.01", "open", TURING, None),
        ("535.309.01", "open", PASCAL, "needs the proprietary kernel modules"),
        ("535.309.01", "proprietary", BLACKWELL, "needs driver 570 or later"),
        ("590.48.01", "proprietary", BLACKWELL, "needs the open kernel modules"),
        ("590.48.01", "proprietary", VOLTA, "is supported up to driver 580 only"),
        ("535.309.01", "proprietary", UNKNOWN, "is of no generation known here"),
    ],
)
def test_what_does_not_fit_is_said(driver: str, modules: str, number: int, why: str | None) -> None:
    found = misfits(driver, modules, [card(number)])
    assert (why is None) == (found == ()), found
    assert why is None or any(one.endswith(why) for one in found), found


def test_modules_that_all_cards_of_a_node_take() -> None:
    assert fitting_modules([card(AMPERE), card(HOPPER)]) == "proprietary"
    assert fitting_modules([card(BLACKWELL), card(HOPPER)]) == "open"
    # Nothing fits both of these: the one that is left out is named.
    mixed = [card(BLACKWELL), card(PASCAL)]
    assert any("Pascal" in one for one in misfits("580.95.05", fitting_modules(mixed), mixed))
