import pytest

from onprem_mlops.versions import is_older


@pytest.mark.parametrize(
    "version, than, older",
    [
        ("1.26.4", "1.27.0", True),
        ("1.9.0", "1.10.0", True),
        ("1.26.4", "1.26.4", False),
        ("3.17.2", "3.9.0", False),
        ("v1.0.8", "1.0.9", True),
        ("1.26.4", "", False),
    ],
)
def test_numbers_are_compared_and_not_text(version: str, than: str, older: bool) -> None:
    assert is_older(version, than) is older
