"""Which gateway, which pin, which token: the order of the sources and the refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from easyremote.config import Address, home
from easyremote.errors import AuthenticationError, GatewayUnreachableError, NotConnectedError
from easyremote.identity.credential import Credential, resolve_credential
from easyremote.identity.join import JoinString
from easyremote.identity.profile import Profile, remember_join, save_profile
from easyremote.identity.token import Token, TokenKind


def join_of(host: str, port: int = 8080, number: int = 1) -> JoinString:
    """Return a join string of a gateway whose pin is `number` repeated."""
    return JoinString(
        (host, "203.0.113.7"), port, bytes([number]) * 32, Token.new(TokenKind.CLIENT)
    )


def local_gateway(port: int, number: int = 9) -> Profile:
    """Save and return the profile that the gateway on `port` of this machine leaves."""
    token = Token.new(TokenKind.ADMIN).text()
    profile = Profile(
        f"gateway-{port}",
        ("127.0.0.1", "203.0.113.9"),
        port,
        bytes([number]) * 32,
        token,
        origin="gateway",
    )
    save_profile(profile)
    return profile


def test_join_keyword_wins_over_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """join= gives address, pin and token whatever the environment and the profiles say."""
    monkeypatch.setenv("EASYREMOTE_JOIN", join_of("env").encode())
    monkeypatch.setenv("EASYREMOTE_GATEWAY", "elsewhere:1")
    local_gateway(8080)
    join = join_of("vps", 8443, 5)
    found = resolve_credential(join=join.encode())

    assert found.addresses == join.addresses
    assert (found.pin, found.token) == (join.pin, join.token.text())


def test_explicit_address_keeps_pin_and_token_of_the_join() -> None:
    """An address beside join= changes where to dial, not whom to trust."""
    join = join_of("vps")
    found = resolve_credential("tunnel:9000", join=join.encode())

    assert found.addresses == (Address("tunnel", 9000),)
    assert (found.pin, found.token) == (join.pin, join.token.text())


@pytest.mark.parametrize("keyword", ["token", "auth", "join"])
@pytest.mark.parametrize("form", ["plain", "env", "file"])
def test_join_string_is_accepted_directly_by_name_and_from_a_file(
    keyword: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each keyword takes the text itself, env:NAME or file:PATH."""
    join = join_of("vps")
    (tmp_path / "secret").write_text(join.encode() + "\n")
    monkeypatch.setenv("MY_JOIN", join.encode())
    value = {"plain": join.encode(), "env": "env:MY_JOIN", "file": f"file:{tmp_path}/secret"}[form]
    found = resolve_credential(**{keyword: value})  # type: ignore[arg-type]

    assert found.addresses == join.addresses
    assert (found.pin, found.token) == (join.pin, join.token.text())


@pytest.mark.parametrize("keyword", ["token", "auth"])
def test_bare_token_uses_the_known_pin_of_the_address(keyword: str) -> None:
    """A bearer token for a gateway that is known is sent under that gateway's pin."""
    local = local_gateway(8080)
    token = Token.new(TokenKind.CLIENT).text()
    found = resolve_credential("localhost:8080", **{keyword: token})  # type: ignore[arg-type]

    assert (found.token, found.pin) == (token, local.pin)

    elsewhere = resolve_credential("vps:8080", **{keyword: token})  # type: ignore[arg-type]
    assert (elsewhere.token, elsewhere.pin) == (token, None)


def test_pin_of_a_live_link_is_used_for_a_bare_token() -> None:
    """A function's own auth_token travels under the pin that the client already checked."""
    token = Token.new(TokenKind.CLIENT).text()
    found = resolve_credential("vps:8080", token=token, pin=bytes(32))

    assert (found.token, found.pin) == (token, bytes(32))


def test_stored_token_is_never_sent_under_a_foreign_pin() -> None:
    """A pin from elsewhere does not redirect the token of a profile."""
    local = local_gateway(8080)

    assert resolve_credential("localhost:8080", pin=bytes(32)).pin == local.pin


def test_token_beside_join_takes_pin_and_address_from_the_join() -> None:
    """join= says which gateway, token= as whom."""
    join, token = join_of("vps"), Token.new(TokenKind.CLIENT).text()
    found = resolve_credential(join=join.encode(), token=token)

    assert (found.addresses, found.pin, found.token) == (join.addresses, join.pin, token)


def test_named_profile() -> None:
    """auth="NAME" takes address, pin and token from the profile of that name."""
    join = join_of("work.example.org", 8443, 3)
    save_profile(Profile.from_join("work", join))
    found = resolve_credential(auth="work")

    assert (found.addresses, found.pin) == (join.addresses, join.pin)
    assert found.token == join.token.text()
    assert "work" in found.source


def test_unknown_profile_says_which_are_known() -> None:
    """A name that is no profile is a typed error with the known ones and the way to make it."""
    save_profile(Profile.from_join("work", join_of("vps")))

    with pytest.raises(AuthenticationError, match=r"known: work.*login home --join") as caught:
        resolve_credential(auth="home")
    assert isinstance(caught.value, PermissionError)
    with pytest.raises(AuthenticationError):
        resolve_credential(auth="../../etc/passwd")


def test_credential_object() -> None:
    """auth= takes a `Credential`, whose repr shows no secret."""
    join = join_of("vps")
    credential = Credential.from_join(join.encode())
    found = resolve_credential(auth=credential)

    assert (found.addresses, found.pin) == (join.addresses, join.pin)
    assert join.token.text()[16:40] not in f"{credential!r} {found!r}"


def test_environment_gives_address_pin_and_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """With only EASYREMOTE_JOIN set, everything comes from it, read at the call."""
    join = join_of("vps", 8443)
    monkeypatch.setenv("EASYREMOTE_JOIN", join.encode())
    found = resolve_credential()

    assert (found.addresses, found.pin) == (join.addresses, join.pin)
    assert found.token == join.token.text()
    assert found.address == Address("vps", 8443)
    assert found.gateway_key == join.pin.hex()


def test_gateway_variable_names_the_address_and_join_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """EASYREMOTE_GATEWAY comes before the address inside EASYREMOTE_JOIN."""
    join = join_of("vps", 8443)
    monkeypatch.setenv("EASYREMOTE_JOIN", join.encode())
    monkeypatch.setenv("EASYREMOTE_GATEWAY", "tunnel:9000")
    found = resolve_credential()

    assert found.addresses == (Address("tunnel", 9000),)
    assert (found.pin, found.token) == (join.pin, join.token.text())


def test_environment_join_wins_over_the_local_profile_of_its_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who sets EASYREMOTE_JOIN to a guest's string on the gateway's own machine is that guest."""
    local_gateway(8080)
    join = join_of("203.0.113.9", 8080, 9)
    monkeypatch.setenv("EASYREMOTE_JOIN", join.encode())

    assert resolve_credential("localhost:8080").token == join.token.text()


def test_environment_join_leaves_another_gateway_its_own_profile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An address that has a profile and another port than the join string is another gateway."""
    local = local_gateway(9000)
    monkeypatch.setenv("EASYREMOTE_JOIN", join_of("vps", 8080).encode())
    found = resolve_credential("localhost:9000")

    assert (found.token, found.pin) == (local.token, local.pin)


def test_two_local_gateways_have_each_their_profile() -> None:
    """Two gateways of one user on one machine are told apart by their ports."""
    first, second = local_gateway(9001, 1), local_gateway(9002, 2)

    assert resolve_credential("localhost:9001").token == first.token
    assert resolve_credential("[::1]:9002").token == second.token
    assert resolve_credential("127.0.0.1:9002").pin == second.pin
    assert resolve_credential("203.0.113.9:9001").pin == first.pin


def test_the_only_local_gateway_needs_no_address() -> None:
    """With one gateway on the machine connect() finds it; among several the default port."""
    only = local_gateway(9001)
    assert resolve_credential().token == only.token

    local_gateway(9002)
    with pytest.raises(NotConnectedError, match=r"ports 9001, 9002"):
        resolve_credential()

    usual = local_gateway(8080)
    assert resolve_credential().token == usual.token


def test_joined_gateway_is_the_default_and_beats_the_local_one() -> None:
    """After `easyremote join STRING`, connect() without an address means that gateway."""
    local_gateway(8080)
    join = join_of("vps", 8443)
    remember_join(join.encode())

    assert resolve_credential().addresses == join.addresses
    assert resolve_credential("vps:8443").token == join.token.text()


def test_joined_profile_beats_the_automatic_one_of_the_same_gateway() -> None:
    """What the user joined by hand comes before what the gateway left."""
    local_gateway(8080)
    join = JoinString(("127.0.0.1",), 8080, bytes([9]) * 32, Token.new(TokenKind.CLIENT))
    remember_join(join.encode())

    assert resolve_credential("localhost:8080").token == join.token.text()


def test_one_login_for_an_address_is_used_and_two_are_asked_about() -> None:
    """A single login for the address works unnamed; of two, the user has to name one."""
    first = join_of("vps")
    save_profile(Profile.from_join("alice", first))
    assert resolve_credential("vps:8080").token == first.token.text()

    save_profile(Profile.from_join("bob", join_of("vps")))
    with pytest.raises(AuthenticationError, match="auth='alice', auth='bob'"):
        resolve_credential("vps:8080")


def test_config_file_names_gateway_and_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """config.toml comes after environment and joined profile, before the local gateway."""
    local_gateway(8080)
    join = join_of("vps", 8443)
    save_profile(Profile.from_join("work", join))
    config = home() / "config.toml"

    config.write_text('gateway = "vps:8443"\n')
    assert resolve_credential().addresses == (Address("vps", 8443),)
    assert resolve_credential().token == join.token.text()

    config.write_text('profile = "work"\n')
    assert resolve_credential().addresses == join.addresses

    config.write_text('profile = "work"\ngateway = "tunnel:9000"\n')
    found = resolve_credential()
    assert (found.address, found.pin) == (Address("tunnel", 9000), join.pin)

    monkeypatch.setenv("EASYREMOTE_GATEWAY", "localhost:8080")
    assert resolve_credential().address == Address("localhost", 8080)


@pytest.mark.parametrize(("role", "example"), [("client", "connect("), ("node", "ComputeNode(")])
def test_nothing_named_tells_the_three_ways(role: str, example: str) -> None:
    """Without any gateway the error names program, environment and `easyremote join`."""
    with pytest.raises(NotConnectedError) as caught:
        resolve_credential(role=role)  # type: ignore[arg-type]

    text = str(caught.value)
    for way in (example, "EASYREMOTE_GATEWAY", "EASYREMOTE_JOIN", "easyremote join"):
        assert way in text


def test_no_credential_tells_the_three_ways() -> None:
    """A gateway elsewhere without a credential is an AuthenticationError with the ways out."""
    with pytest.raises(AuthenticationError) as caught:
        resolve_credential("vps:8080", role="node")

    text = str(caught.value)
    for way in ("vps:8080", "join=", "EASYREMOTE_JOIN", "easyremote join", "--role node"):
        assert way in text


def test_local_gateway_that_has_not_run_is_unreachable_not_forbidden() -> None:
    """A node that starts before its gateway may try again: the profile will appear."""
    with pytest.raises(GatewayUnreachableError, match="gateway run --port 8080"):
        resolve_credential("localhost:8080")

    local_gateway(8080)
    assert resolve_credential("localhost:8080").pin == bytes([9]) * 32


@pytest.mark.parametrize(
    "keywords",
    [
        {"join": "er1_damaged"},
        {"join": Token.new(TokenKind.CLIENT).text()},
        {"join": "team_token"},
        {"token": "team_token"},
        {"token": "erc_damaged"},
        {"token": "env:NOT_SET_AT_ALL"},
        {"token": "file:/does/not/exist"},
        {"token": "file:/"},
        {"auth": "env:NOT_SET_AT_ALL"},
    ],
)
def test_bad_credential_is_one_typed_error(keywords: dict[str, str]) -> None:
    """Whatever is wrong with a credential is an AuthenticationError that repeats no secret."""
    with pytest.raises(AuthenticationError) as caught:
        resolve_credential("vps:8080", **keywords)  # type: ignore[arg-type]

    value = next(iter(keywords.values()))
    assert len(value) < 40 or value not in str(caught.value)


@pytest.mark.parametrize("value", ["er1_damaged", Token.new(TokenKind.CLIENT).text()])
def test_bad_environment_names_the_variable(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged EASYREMOTE_JOIN, or a bare token in it, is said with its name."""
    monkeypatch.setenv("EASYREMOTE_JOIN", value)

    with pytest.raises(AuthenticationError, match="EASYREMOTE_JOIN"):
        resolve_credential()


def test_wrong_address_is_a_value_error() -> None:
    """An address that is none is refused at once, before any credential is looked up."""
    with pytest.raises(ValueError, match="host:port"):
        resolve_credential("vps:80:90", join="er1_damaged")


def test_unpinned_gateway_is_known_by_its_address() -> None:
    """Where there is no pin, node secrets are kept by address."""
    found = resolve_credential("vps:8080", token=Token.new(TokenKind.NODE).text())

    assert found.gateway_key == "vps:8080"
