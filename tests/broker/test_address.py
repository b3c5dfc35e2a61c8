"""A broker's URL: each kind, and what is wrong with the others, told without the password."""

from __future__ import annotations

import traceback

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from redis.connection import SSLConnection

from qserve.base.settings import Settings
from qserve.broker.address import Address
from qserve.broker.connection import connect
from qserve.exceptions import QserveException

SECRET = "s3cr3t-CANARY-word"


def test_a_single_server_is_what_redis_py_reads() -> None:
    address = Address.of(f"redis://user:{SECRET}@broker:6380/2")
    assert address.where == "broker:6380/2"
    assert address.options == {"username": "user", "password": SECRET, "host": "broker", "port": 6380, "db": 2}
    assert (address.service, address.sentinels) == ("", ())


def test_sentinels_have_a_port_a_service_and_a_database() -> None:
    address = Address.of(f"sentinel://user:{SECRET}@one:26380,two,[::1]:5/mine/3")
    assert address.where == "one:26380,two,[::1]:5/mine/3"
    assert address.service == "mine"
    assert address.options == {"username": "user", "password": SECRET, "db": 3}
    assert address.sentinels == (
        {"host": "one", "port": 26380},
        {"host": "two", "port": 26379},
        {"host": "::1", "port": 5},
    )


def test_the_password_of_the_broker_is_not_sent_to_sentinels_which_have_their_own() -> None:
    address = Address.of(f"sentinel://:{SECRET}@one/mine?sentinel_password=other&sentinel_username=me")
    assert address.options == {"password": SECRET, "db": 0}
    assert address.sentinels == ({"password": "other", "username": "me", "host": "one", "port": 26379},)


def test_tls_is_for_the_sentinels_as_well() -> None:
    address = Address.of("sentinels://one/mine?ssl_ca_certs=/ca.pem")
    assert address.options["connection_class"] is SSLConnection
    assert address.sentinels[0]["connection_class"] is SSLConnection
    assert address.sentinels[0]["ssl_ca_certs"] == "/ca.pem"
    connect("sentinels://one/mine?ssl_ca_certs=/ca.pem").close()


@given(password=st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1), db=st.integers(0, 15))
def test_what_is_written_is_read(password: str, db: int) -> None:
    single = Address.of(f"redis://:{password}@h:1/{db}").options
    watched = Address.of(f"sentinel://:{password}@h:1/mine/{db}").options
    assert (single["password"], single["db"]) == (watched["password"], watched["db"]) == (password, db)


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("http://:{0}@broker", "broker"),
        ("{0}@broker", "broker"),
        ("redis://:a/{0}@broker:x/0", "broker:x/0"),
        ("redis://:{0}@broker:port/0", "broker:port/0"),
        ("sentinel://:{0}@one:26379", "service is missing"),
        ("sentinel://:{0}@one:26379/", "service is missing"),
        ("sentinel://:{0}@one:26379/mine/zero", "'zero' is not a whole number"),
        ("sentinel://:{0}@one,,two/mine", "host of a Sentinel is missing"),
        ("sentinel://:{0}@/mine", "host of a Sentinel is missing"),
        ("sentinel://:{0}@one:port/mine", "one:port/mine"),
    ],
)
def test_an_address_that_cannot_be_read_is_shown_without_its_password(url: str, what: str) -> None:
    for read in (Address.of, connect):
        with pytest.raises(QserveException, match="is not a broker address.*sentinel://") as told:
            read(url.format(SECRET))
        assert what in str(told.value)
        assert SECRET not in "".join(traceback.format_exception(told.value))


OPTIONS = "is not one of db, username, password"


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("redis://host/0?foo=bar", f"the option 'foo' {OPTIONS}"),
        ("redis://host/0?decode_responses=true", f"the option 'decode_responses' {OPTIONS}"),
        ("redis://host/0?max_connections=1", f"the option 'max_connections' {OPTIONS}"),
        ("redis://host/0?socket_timeout=1", f"the option 'socket_timeout' {OPTIONS}"),
        ("redis://host/0?protocol=3", f"the option 'protocol' {OPTIONS}"),
        ("redis://host/0?ssl_cert_reqs=none", f"the option 'ssl_cert_reqs' {OPTIONS}"),
        ("unix:///sock?foo=bar", f"the option 'foo' {OPTIONS}"),
        ("sentinel://host/mine?foo=bar", f"the option 'foo' {OPTIONS}"),
        ("rediss://host?ssl_cert_reqs=CERT_NONE", "ssl_cert_reqs is not one of none, optional, required"),
        ("rediss://host?ssl_check_hostname=maybe", "ssl_check_hostname is not one of true, false"),
        ("redis://host?db=1&db=2", "db is empty or given twice"),
        ("redis://host?db=", "db is empty or given twice"),
        ("foo", "'foo' is not a broker address: it has no scheme. Write redis://host:6379/0"),
        ("broker:6379/0", "'broker:6379/0' is not a broker address: it has no scheme"),
        ("redis://:p#w@host/0", "If that is part of the password, write it as %23 or %40"),
        ("redis://host/x", "the database is not a whole number"),
        ("redis://host/0/1", "the database is not a whole number"),
        ("redis://host/-1", "the database is not a whole number"),
        ("redis://host:0/0", "the port is not a number from 1 to 65535"),
        ("sentinel://host:0/mine", "the port is not a number from 1 to 65535"),
        ("redis://host:70000/0", "is not a broker address"),
        ("redis://::1:6379/0", "is not a broker address"),
        ("redis://one,two/0", "several hosts are for sentinel://"),
        ("redis://a host/0", "the host has a blank or a comma"),
        ("unix://", "the path of the socket is missing"),
        ("unix://run/sock", "three slashes"),
        (f"unix:///{'x' * 110}", "at most 107 bytes"),
    ],
)
def test_an_address_that_cannot_work_is_refused_before_anything_connects(url: str, what: str) -> None:
    with pytest.raises(QserveException, match="is not a broker address") as told:
        connect(url)
    assert what in str(told.value)


@given(
    password=st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), min_size=1, max_size=8),
    shape=st.sampled_from(
        [
            "redis://:{}@broker.example:6379/0",
            "redis://user:{}@broker.example/0",
            "rediss://{}@broker.example/0",
            "redis://user:{}",
            "redis://:{}:broker.example:6379",
            "redis://broker.example/0?password={}",
            "unix://:{}@/run/broker.sock",
            "sentinel://:{}@one.example:26379,two.example/mine",
        ]
    ),
)
@example("p/w", "redis://:{}@broker.example:6379/0")
@example("12?w", "redis://user:{}@broker.example/0")
@example("12#w", "redis://user:{}@broker.example/0")
@example("p#w", "rediss://{}@broker.example/0")
@example("a&b", "redis://broker.example/0?password={}")
def test_no_part_of_a_password_is_shown_however_it_is_written(password: str, shape: str) -> None:
    assume("@" in shape or "@" not in password)  # what follows the last @ is a host to everybody
    # a mark before and after each character that has a meaning in URLs
    marked = "".join(f"QQ{character}" if not character.isalnum() else character for character in password) + "QQ"
    url = shape.format(marked)
    try:
        address = Address.of(url)
    except QserveException as error:
        assert "QQ" not in str(error)
        return
    assert "QQ" not in address.where
    places = [
        str(one.get(name, "")) for one in (address.options, *address.sentinels) for name in ("host", "port", "path")
    ]
    assert "QQ" not in "".join(places), "a connection that fails names its place"


def test_no_repr_shows_a_password_or_a_key() -> None:
    for url in (f"redis://:{SECRET}@h:1/0", f"sentinel://:{SECRET}@h:1/mine?sentinel_password={SECRET}"):
        client = connect(url)
        settings = Settings(broker_url=url, secret_key=SECRET.encode())
        for one in (client, client.connection_pool, settings, Address.of(url)):
            assert SECRET not in repr(one), type(one)
        client.close()
