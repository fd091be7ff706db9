import pytest

from roles.gpu.cards import Card, cards, fitting_modules, has_nvswitch, misfits

NODE = """\
0000:17:00.0 "3D controller [0302]" "NVIDIA [10de]" "GH100 [H100 SXM5 80GB] [2330]" -ra1 "x" "y"
0000:65:00.0 "VGA compatible controller [0300]" "NVIDIA [10de]" "TU104GL [Quadro RTX 5000] [1eb0]" -ra1
0000:65:00.1 "Audio device [0403]" "NVIDIA [10de]" "TU104 HD Audio Controller [10f8]" -ra1
0000:07:00.0 "Bridge [0680]" "NVIDIA [10de]" "GH100 [H100 NVSwitch] [22a3]" -ra1
0000:b1:00.0 "3D controller [0302]" "NVIDIA [10de]" "Device [3182]" -ra1
"""


def card(chip: str, model: str = "x") -> Card:
    return Card("0000:17:00.0", "0000", chip, model)


def test_cards_are_read_and_their_sound_is_not() -> None:
    found = cards(NODE)
    assert [(one.bus, one.chip, one.model, one.memory_gb) for one in found] == [
        ("0000:17:00.0", "GH100", "H100 SXM5 80GB", 80),
        ("0000:65:00.0", "TU104GL", "Quadro RTX 5000", None),
        ("0000:b1:00.0", "", "", None),
    ]
    assert [one.generation.name if one.generation else None for one in found] == ["Hopper", "Turing", None]
    assert has_nvswitch(NODE)
    assert not has_nvswitch(NODE.replace("[0680]", "[0604]"))


def test_a_node_without_cards() -> None:
    assert cards("") == ()
    assert misfits("535.309.01", "proprietary", ()) == ()


@pytest.mark.parametrize(
    "driver, modules, chip, why",
    [
        ("535.309.01", "proprietary", "GH100", None),
        ("535.309.01", "open", "TU104GL", None),
        ("535.309.01", "open", "GP102", "needs the proprietary kernel modules"),
        ("535.309.01", "proprietary", "GB100", "needs driver 570 or later"),
        ("590.48.01", "proprietary", "GB100", "needs the open kernel modules"),
        ("590.48.01", "proprietary", "GV100", "is supported up to driver 580 only"),
        ("535.309.01", "proprietary", "", "is of no generation known here"),
    ],
)
def test_what_does_not_fit_is_said(driver: str, modules: str, chip: str, why: str | None) -> None:
    found = misfits(driver, modules, [card(chip)])
    assert (why is None) == (found == ()), found
    assert why is None or any(one.endswith(why) for one in found), found


def test_modules_that_all_cards_of_a_node_take() -> None:
    assert fitting_modules([card("GA100"), card("GH100")]) == "proprietary"
    assert fitting_modules([card("GB100"), card("GH100")]) == "open"
    # Nothing fits both of these: the one that is left out is named.
    mixed = [card("GB100"), card("GP102")]
    assert any("Pascal" in one for one in misfits("580.95.05", fitting_modules(mixed), mixed))
