import pytest

from src.core.origin import RequestOrigin


@pytest.mark.parametrize(
    ("address", "network"),
    [
        (None, "unknown"),
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
    ],
)
def test_addresses_that_one_host_may_have_count_as_one_network(address: str | None, network: str) -> None:
    assert RequestOrigin(address).network == network
