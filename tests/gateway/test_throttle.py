"""Failed logins: who keeps failing waits."""

from __future__ import annotations

from easyremote.gateway.throttle import ADDRESSES_MAX, DELAY_S, AuthThrottle
from easyremote.transport.listener import place_of


def test_throttle_slows_one_address_after_ten_failures_a_minute() -> None:
    """The eleventh failure within a minute waits a second; others and later tries do not."""
    throttle = AuthThrottle()
    for number in range(10):
        assert throttle.delay_s("a", float(number) / 10) == 0.0
        throttle.failed("a", float(number) / 10)

    assert throttle.delay_s("b", 1.0) == 0.0
    throttle.failed("a", 1.0)
    assert throttle.delay_s("a", 1.0) == DELAY_S
    assert throttle.delay_s("a", 61.0) == 0.0


def test_throttle_forgives_even_a_long_attack() -> None:
    """However many failures there were, a minute and a bit of quiet is enough."""
    throttle = AuthThrottle()
    for _ in range(100_000):
        throttle.failed("a", 0.0)

    assert throttle.delay_s("a", 30.0) == DELAY_S
    assert throttle.delay_s("a", 70.0) == 0.0


def test_throttle_table_is_bounded() -> None:
    """Failures from many addresses do not grow the table without end; recent ones are kept."""
    throttle = AuthThrottle()
    for number in range(ADDRESSES_MAX + 100):
        throttle.failed(f"a{number}", 0.0)
    for _ in range(10):
        throttle.failed("last", 0.0)

    assert len(throttle._level) == ADDRESSES_MAX
    assert throttle.delay_s("last", 0.0) == DELAY_S


def test_ipv6_addresses_of_one_network_are_one_place() -> None:
    """Whoever has one IPv6 address has 2^64 of them; what is no address is a place of its own."""
    assert place_of("2001:db8::1") == place_of("2001:db8::ffff:1") == place_of("[2001:db8::2]")
    assert place_of("2001:db8:0:1::1") != place_of("2001:db8::1")
    assert place_of("192.0.2.1") != place_of("192.0.2.2")
    assert place_of("memory") == "memory"
