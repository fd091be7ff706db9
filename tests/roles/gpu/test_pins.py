import pytest

from onprem_mlops.errors import MlopsError
from roles.gpu.pins import OPEN, resolved

OLD, NEW = "535.261.03-1", "535.309.01-0+deb12u1"
OFFERS = {
    "linux-image-amd64": ("6.1.176-1", "6.1.192-2"),
    "linux-image-6.1.0-9-amd64": ("6.1.27-1",),
    "linux-headers-6.1.0-9-amd64": ("6.1.27-1",),
    "linux-image-6.1.0-56-amd64": ("6.1.192-2",),
    "linux-headers-6.1.0-56-amd64": ("6.1.192-2",),
    "nvidia-persistenced": ("535.171.04-1~deb12u1",),
    **dict.fromkeys(
        (
            "nvidia-kernel-dkms",
            "nvidia-kernel-support",
            "libcuda1",
            "libnvidia-ml1",
            "libnvidia-ptxjitcompiler1",
            "nvidia-smi",
        ),
        (OLD, NEW),
    ),
    "nvidia-open-kernel-dkms": (OLD,),
    "nvidia-open-kernel-support": (OLD,),
    "nvidia-fabricmanager-535": (OLD, "535.309.01-1"),
}


def test_without_a_pin_the_newest_of_the_mirror() -> None:
    pins = resolved(OFFERS, None, None)
    assert (pins.driver, pins.kernel) == ("535.309.01", "6.1.0-56-amd64")
    assert pins.kernel_packages == {
        "linux-image-6.1.0-56-amd64": "6.1.192-2",
        "linux-headers-6.1.0-56-amd64": "6.1.192-2",
    }


def test_a_pin_is_one_version_of_everything_that_is_the_drivers_own() -> None:
    pins = resolved(OFFERS, "535.261.03", "6.1.0-9-amd64")
    assert set(pins.driver_packages.values()) == {OLD}
    assert "nvidia-smi" in pins.driver_packages
    assert "nvidia-persistenced" not in pins.driver_packages


@pytest.mark.parametrize(
    "driver, kernel, said",
    [
        ("550.54.14", None, "settings.gpu.driver is 550.54.14, and the mirror has 535.309.01, 535.261.03"),
        (
            None,
            "6.1.0-50-amd64",
            "settings.gpu.kernel is 6.1.0-50-amd64, and the mirror has 6.1.0-56-amd64, 6.1.0-9-amd64",
        ),
    ],
)
def test_a_wrong_pin_is_answered_with_what_there_is(driver: str | None, kernel: str | None, said: str) -> None:
    with pytest.raises(MlopsError, match=said):
        resolved(OFFERS, driver, kernel)


def test_open_modules_bring_the_newest_driver_that_has_them() -> None:
    pins = resolved(OFFERS, None, None, OPEN)
    assert pins.driver == "535.261.03"
    assert {"nvidia-open-kernel-dkms", "nvidia-open-kernel-support", "libcuda1"} <= pins.driver_packages.keys()
    assert not {"nvidia-kernel-dkms", "nvidia-kernel-support"} & pins.driver_packages.keys()
    with pytest.raises(MlopsError, match=r"mirror has 535\.261\.03 as drivers with open kernel modules"):
        resolved(OFFERS, "535.309.01", None, OPEN)


def test_nvswitch_needs_the_fabric_manager_of_the_very_version() -> None:
    assert "nvidia-fabricmanager-535" not in resolved(OFFERS, None, None).driver_packages
    pins = resolved(OFFERS, None, None, nvswitch=True)
    assert pins.driver_packages["nvidia-fabricmanager-535"] == "535.309.01-1"
    # NVIDIA numbers its own package as Debian numbers the driver: other nodes do not get it all the same.
    assert "nvidia-fabricmanager-535" not in resolved(OFFERS, "535.261.03", None).driver_packages
    without = {name: versions for name, versions in OFFERS.items() if name != "nvidia-fabricmanager-535"}
    with pytest.raises(MlopsError, match=r"need nvidia-fabricmanager-535 535\.261\.03") as caught:
        resolved(without, "535.261.03", None, nvswitch=True)
    assert "artifacts/debs/gpu-bookworm/" in caught.value.advice


def test_halves_of_a_driver_are_refused() -> None:
    offers = {name: versions for name, versions in OFFERS.items() if name != "libcuda1"}
    with pytest.raises(MlopsError, match="without its libcuda1"):
        resolved(offers, None, None)
