"""Tests of access token verification: what is valid passes, and every attack is refused with its code."""

from __future__ import annotations

import hmac
import json
import subprocess
import sys
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from healthobs.clock import Clock
from healthobs.exceptions import ConfigurationError, TokenError
from healthobs.tokens import CODES, MAX_TOKEN_BYTES, CachedJwks, Claims, Verifier
from healthobs.tokens import jwks as _jwks

NOW = 1_800_000_000
ISSUER = "https://auth.example"
AUDIENCE = "records"
HEADER = {"alg": "RS256", "kid": "k1", "typ": "at+jwt"}
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "aud": AUDIENCE,
    "sub": "app",
    "client_id": "app",
    "iat": NOW,
    "exp": NOW + 300,
    "jti": "t-1",
    "scope": "patient:read patient:write",
    "roles": ["clinician", "nurse"],
    "acr": "mfa",
}


@cache
def private_key(bits: int = 2048, exponent: int = 65537) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=exponent, key_size=bits)


def encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int) -> str:
    return encode(value.to_bytes((value.bit_length() + 7) // 8))


def public_jwk(key: rsa.RSAPrivateKey | None = None, **changes: Any) -> dict[str, Any]:
    numbers = (key or private_key()).public_key().public_numbers()
    jwk = {"kty": "RSA", "kid": "k1", "n": number(numbers.n), "e": number(numbers.e)}
    return {name: value for name, value in {**jwk, **changes}.items() if value is not None}


def sign(header: bytes, payload: bytes, key: rsa.RSAPrivateKey | None = None) -> str:
    signed = f"{encode(header)}.{encode(payload)}"
    signature = (key or private_key()).sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{signed}.{encode(signature)}"


def token(
    *,
    header: Mapping[str, Any] = HEADER,
    claims: Mapping[str, Any] = CLAIMS,
    key: rsa.RSAPrivateKey | None = None,
    **changes: Any,
) -> str:
    body = {name: value for name, value in {**claims, **changes}.items() if value is not None}
    return sign(json.dumps(header).encode(), json.dumps(body).encode(), key)


def clock(now_s: float = NOW) -> Clock:
    return Clock(wall_ns=lambda: int(now_s * 1e9), monotonic_ns=lambda: 0)


def verifier(*keys: Mapping[str, Any], now_s: float = NOW) -> Verifier:
    jwks = {"keys": list(keys) or [public_jwk()]}
    return Verifier(lambda: jwks, issuer=ISSUER, audience=AUDIENCE, clock=clock(now_s))


def refusal(text: str, *keys: Mapping[str, Any], now_s: float = NOW) -> str:
    with pytest.raises(TokenError) as caught:
        verifier(*keys, now_s=now_s).verify(text)
    assert caught.value.code in CODES
    return caught.value.code


class TestVerifier:
    """A token that meets RFC 9068 and the policy is accepted."""

    def test_returns_the_claims(self) -> None:
        """Every claim the services use is on the result, the rest in `raw`."""
        claims = verifier().verify(token())
        expected = Claims(
            sub="app",
            client_id="app",
            scopes=frozenset({"patient:read", "patient:write"}),
            roles=("clinician", "nurse"),
            exp=NOW + 300,
            jti="t-1",
            acr="mfa",
            raw=claims.raw,
        )
        assert claims == expected
        assert dict(claims.raw) == CLAIMS

    def test_raw_cannot_be_changed(self) -> None:
        """What was verified stays what was verified."""
        raw = verifier().verify(token()).raw
        with pytest.raises(TypeError):
            raw["sub"] = "other"  # type: ignore[index]

    def test_optional_claims_may_be_absent(self) -> None:
        """RFC 9068 §2.2 requires neither scope nor roles nor acr."""
        claims = verifier().verify(token(scope=None, roles=None, acr=None))
        assert (claims.scopes, claims.roles, claims.acr) == (frozenset(), (), None)

    def test_audience_may_be_one_of_several(self) -> None:
        """RFC 7519 §4.1.3: `aud` is a string or an array of them."""
        assert verifier().verify(token(aud=["other", AUDIENCE])).sub == "app"

    @pytest.mark.parametrize("typ", ["at+jwt", "application/at+jwt"])
    def test_both_spellings_of_the_type(self, typ: str) -> None:
        """RFC 9068 §4 allows both."""
        assert verifier().verify(token(header={**HEADER, "typ": typ})).jti == "t-1"

    @pytest.mark.parametrize(
        ("moment", "shift", "code"),
        [
            ("exp", 4.9, None),
            ("exp", 5, "expired"),
            ("iat", -5, None),
            ("iat", -6, "not_yet_valid"),
            ("nbf", -5, None),
            ("nbf", -6, "not_yet_valid"),
        ],
    )
    def test_leeway_is_five_seconds(self, moment: str, shift: float, code: str | None) -> None:
        """Clocks may differ by five seconds and not by more."""
        at = {"exp": NOW + 300, "iat": NOW, "nbf": NOW}
        made = token(**at)
        if code is None:
            assert verifier(now_s=at[moment] + shift).verify(made).sub == "app"
        else:
            assert refusal(made, now_s=at[moment] + shift) == code

    def test_nbf_counts_beside_iat(self) -> None:
        """A token may be issued now for later (RFC 7519 §4.1.5)."""
        assert refusal(token(nbf=NOW + 60)) == "not_yet_valid"

    def test_keys_are_imported_once(self) -> None:
        """A key set that keeps changing does not grow the memory of imported keys."""
        jwk = public_jwk()
        sets = [{"keys": [{**jwk, "kid": f"k{i}"}]} for i in range(3)]
        current = iter([*sets, *sets])
        checker = Verifier(lambda: next(current), issuer=ISSUER, audience=AUDIENCE, clock=clock())
        for i in (0, 1, 2, 0, 1, 2):
            assert checker.verify(token(header={**HEADER, "kid": f"k{i}"})).sub == "app"
        assert len(checker._keys) == 1

    def test_imported_keys_are_bounded(self) -> None:
        """An issuer that publishes ever new keys does not fill the memory."""
        checker = verifier()
        for count in range(40):
            checker._keys[str(count), ""] = None  # type: ignore[assignment]
        assert checker.verify(token()).sub == "app"
        assert len(checker._keys) == 1


class TestAttacks:
    """Each known way to forge or bend a token is refused, with the code that names it."""

    @pytest.mark.parametrize(
        ("header", "code"),
        [
            ({"alg": "none", "typ": "at+jwt", "kid": "k1"}, "unsupported"),
            ({"alg": "None", "typ": "at+jwt", "kid": "k1"}, "unsupported"),
            ({**HEADER, "alg": "RS384"}, "unsupported"),
            ({**HEADER, "alg": "PS256"}, "unsupported"),
            ({**HEADER, "alg": ["RS256"]}, "unsupported"),
            ({**HEADER, "typ": "JWT"}, "unsupported"),
            ({**HEADER, "typ": "AT+JWT"}, "unsupported"),
            ({**HEADER, "typ": ["at+jwt"]}, "unsupported"),
            ({"alg": "RS256", "kid": "k1"}, "unsupported"),
            ({**HEADER, "jwk": public_jwk()}, "unsupported"),
            ({**HEADER, "jku": "https://attacker.example/keys"}, "unsupported"),
            ({**HEADER, "x5u": "https://attacker.example/cert"}, "unsupported"),
            ({**HEADER, "x5c": ["MII="]}, "unsupported"),
            ({**HEADER, "crit": ["exp"]}, "unsupported"),
            ({**HEADER, "b64": False, "crit": ["b64"]}, "unsupported"),
            ({**HEADER, "zip": "DEF"}, "unsupported"),
            ({"alg": "RS256", "typ": "at+jwt"}, "unknown_key"),
            ({**HEADER, "kid": "k2"}, "unknown_key"),
            ({**HEADER, "kid": ""}, "unknown_key"),
            ({**HEADER, "kid": 1}, "unknown_key"),
            ({**HEADER, "kid": None}, "unknown_key"),
        ],
    )
    def test_header(self, header: dict[str, Any], code: str) -> None:
        """The header chooses neither algorithm nor key nor rules; properly signed or not."""
        assert refusal(token(header=header)) == code

    def test_none_without_signature(self) -> None:
        """RFC 8725 §3.2: an unsecured token is no token."""
        unsigned = token(header={**HEADER, "alg": "none"}).rpartition(".")[0] + "."
        assert refusal(unsigned) == "malformed"

    def test_hs256_with_the_public_key_as_secret(self) -> None:
        """The classic confusion: the public key's text used as a MAC key."""
        pem = (
            private_key()
            .public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        signed = token(header={**HEADER, "alg": "HS256"}).rpartition(".")[0]
        assert refusal(f"{signed}.{encode(hmac.digest(pem, signed.encode(), 'sha256'))}") == "unsupported"

    def test_other_key(self) -> None:
        """A token signed by somebody else under our key id."""
        assert refusal(token(key=private_key(2049))) == "bad_signature"

    @pytest.mark.parametrize("bits", [2048, 3072])
    def test_forged_for_the_control(self, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """What `forged` returns is refused by its signature, and by nothing else: unchecked, it is accepted."""
        made = verifier(public_jwk(private_key(bits)))
        forged = made.forged(scope="a b")
        with pytest.raises(TokenError) as caught:
            made.verify(forged)
        monkeypatch.setattr("healthobs.tokens.verifier._check_signature", lambda *_: None)
        assert (caught.value.code, made.verify(forged).scopes) == ("bad_signature", {"a", "b"})

    def test_forged_without_keys(self) -> None:
        """Where the issuer has no key, no token is good but for its signature."""
        with pytest.raises(TokenError, match="unknown_key"):
            Verifier(lambda: {"keys": []}, issuer="i", audience="a").forged()

    @pytest.mark.parametrize("length", [0, 1, 255, 257])
    def test_signature_of_another_length(self, length: int) -> None:
        """RSA signatures are as long as the modulus (RFC 8017 §8.2.2)."""
        expected = "malformed" if length == 0 else "bad_signature"
        assert refusal(f"{token().rpartition('.')[0]}.{encode(bytes(length))}") == expected

    def test_non_canonical_signature(self) -> None:
        """The unused bits of the last character must be zero, or one token has many spellings."""
        good = token()
        last = good[-1]
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        other = good[:-1] + alphabet[alphabet.index(last) ^ 1]
        decoded = [urlsafe_b64decode(text.rpartition(".")[2] + "==") for text in (good, other)]
        assert decoded[0] == decoded[1]
        assert refusal(other) == "malformed"

    @pytest.mark.parametrize(
        "spoiled", ["{0}=", "{0}\n", " {0}", "{0}.", "{0}.x", "{0}.eHh4", "{0}é", ".{0}", "", "..", "a.b"]
    )
    def test_spelling(self, spoiled: str) -> None:
        """Padding, white space, more or fewer parts: not the compact serialisation."""
        assert refusal(spoiled.format(token())) == "malformed"

    def test_too_large(self) -> None:
        """Size is checked before anything is decoded."""
        assert refusal("a" * (MAX_TOKEN_BYTES + 1)) == "too_large"
        assert refusal("a" * MAX_TOKEN_BYTES) == "malformed"

    @pytest.mark.parametrize(
        "header",
        [
            b'{"alg":"RS256","kid":"k1","typ":"at+jwt","alg":"RS256"}',
            b'["alg"]',
            b"null",
            b"{",
            b'{"alg":"RS256","kid":"k1","typ":"at+jwt"} x',
            '{"alg":"RS256","kid":"k1","typ":"at+jwt"}'.encode("utf-16"),
            b"\xef\xbb\xbf" + b'{"alg":"RS256","kid":"k1","typ":"at+jwt"}',
            b'{"alg":"RS256","kid":"\xff","typ":"at+jwt"}',
            b"[" * 9000,
        ],
    )
    def test_header_json(self, header: bytes) -> None:
        """The header is one JSON object in UTF-8 without duplicate members (RFC 7515 §4)."""
        assert refusal(sign(header, json.dumps(CLAIMS).encode())) == "malformed"

    @pytest.mark.parametrize(
        "exp", ["NaN", "Infinity", "-Infinity", "1" * 5000, '1,"exp":2000000000', '{"a":1,"a":2}']
    )
    def test_payload_json(self, exp: str) -> None:
        """The same holds for the claims; NaN is not JSON, and a number of 5,000 digits is an attack."""
        payload = json.dumps({**CLAIMS, "exp": 0}).replace('"exp": 0', f'"exp": {exp}')
        assert refusal(sign(json.dumps(HEADER).encode(), payload.encode())) == "malformed"

    @pytest.mark.parametrize("exp", ['"1900000000"', "1e400", "1900000000.5", "1.9e9", "true", "[1]", "{}"])
    @pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
    def test_times_are_whole_numbers(self, name: str, exp: str) -> None:
        """A time is a finite integer, neither text nor float nor boolean."""
        payload = json.dumps({**CLAIMS, name: 0}).replace(f'"{name}": 0', f'"{name}": {exp}')
        assert refusal(sign(json.dumps(HEADER).encode(), payload.encode())) == "bad_claim"

    @pytest.mark.parametrize("name", ["iss", "aud", "sub", "client_id", "iat", "exp", "jti"])
    def test_required_claims(self, name: str) -> None:
        """RFC 9068 §2.2 lists them."""
        assert refusal(token(**{name: None})) == "missing_claim"

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"iss": "https://auth.example/"}, "wrong_issuer"),
            ({"iss": [ISSUER]}, "bad_claim"),
            ({"aud": "other"}, "wrong_audience"),
            ({"aud": "record"}, "wrong_audience"),
            ({"aud": []}, "wrong_audience"),
            ({"aud": [1]}, "bad_claim"),
            ({"aud": {AUDIENCE: 1}}, "bad_claim"),
            ({"sub": 7}, "bad_claim"),
            ({"sub": ""}, "bad_claim"),
            ({"jti": False}, "bad_claim"),
            ({"scope": ["patient:read"]}, "bad_claim"),
            ({"roles": "clinician"}, "bad_claim"),
            ({"roles": ["clinician", 1]}, "bad_claim"),
            ({"acr": 1}, "bad_claim"),
            ({"exp": NOW - 5}, "expired"),
            ({"exp": -(10**30)}, "expired"),
            ({"iat": 10**30}, "not_yet_valid"),
        ],
    )
    def test_claims(self, changes: dict[str, Any], code: str) -> None:
        """Each claim has the right type and the right value."""
        assert refusal(token(**changes)) == code

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"kty": "oct", "k": "c2VjcmV0"}, "unsupported"),
            ({"kty": None}, "unsupported"),
            ({"use": "enc"}, "unsupported"),
            ({"alg": "RS512"}, "unsupported"),
            ({"n": None}, "weak_key"),
            ({"e": None}, "weak_key"),
            ({"e": 65537}, "weak_key"),
            ({"e": number(3)}, "weak_key"),
            ({"e": number(65538)}, "weak_key"),
            ({"n": number(1 << 8193 | 1)}, "weak_key"),
            ({"n": "A"}, "malformed"),
        ],
    )
    def test_keys(self, changes: dict[str, Any], code: str) -> None:
        """A key of the set is used only when it is a strong RSA key for RS256."""
        assert refusal(token(), public_jwk(**changes)) == code

    def test_short_key(self) -> None:
        """RFC 7518 §3.3: 2048 bits or more."""
        weak = private_key(1024)
        assert refusal(token(key=weak), public_jwk(weak)) == "weak_key"

    def test_duplicate_key_id(self) -> None:
        """Two keys of one id leave it to chance which one verifies."""
        assert refusal(token(), public_jwk(), public_jwk(private_key(2049))) == "ambiguous_key"

    @pytest.mark.parametrize("jwks", [{}, {"keys": None}, {"keys": "x"}, {"keys": [1, None, "k1"]}])
    def test_broken_key_set(self, jwks: dict[str, Any]) -> None:
        """A key set that is none has no keys."""
        checker = Verifier(lambda: jwks, issuer=ISSUER, audience=AUDIENCE, clock=clock())
        with pytest.raises(TokenError, match="unknown_key"):
            checker.verify(token())

    @given(position=st.integers(min_value=0), mask=st.integers(1, 255))
    def test_any_flipped_byte(self, position: int, mask: int) -> None:
        """No single byte of a valid token can be changed."""
        data = bytearray(_GOOD.encode())
        data[position % len(data)] ^= mask
        with pytest.raises(TokenError) as caught:
            verifier().verify(data.decode("latin-1"))
        assert caught.value.code in CODES

    @given(length=st.integers(0, 10_000))
    def test_truncated(self, length: int) -> None:
        """No beginning of a valid token is one."""
        with pytest.raises(TokenError):
            verifier().verify(_GOOD[: length % len(_GOOD)])

    @given(st.text(max_size=400))
    def test_any_text_is_refused_with_a_known_code(self, text: str) -> None:
        """No input makes the verifier fail in another way than by refusing."""
        assert refusal(text) in CODES

    @given(
        st.dictionaries(
            st.sampled_from(sorted(CLAIMS)), st.none() | st.integers() | st.text() | st.lists(st.text())
        )
    )
    def test_any_signed_claims_are_judged(self, changes: dict[str, Any]) -> None:
        """Even claims that the issuer did sign are accepted only as the result says, or refused with a code."""
        body = {**CLAIMS, **changes}
        try:
            claims = verifier().verify(sign(json.dumps(HEADER).encode(), json.dumps(body).encode()))
            outcome = (claims.sub, claims.raw["iss"])
        except TokenError as error:
            outcome = (error.code, "")
        assert outcome in {(str(body["sub"]), ISSUER), *((code, "") for code in CODES)}

    def test_messages_hold_no_token(self) -> None:
        """The exception names the code and nothing of what was sent."""
        with pytest.raises(TokenError) as caught:
            verifier().verify(token(sub="jane.roe") + "x")
        assert str(caught.value) == f"access token refused: {caught.value.code}"
        assert caught.value.__cause__ is None


class TestRoca:
    """Moduli of the factorable form are recognised, others are not."""

    def test_finds_the_structure(self) -> None:
        """A modulus built as the flawed library did is found."""
        primorial = 1
        for prime, _ in _jwks._ROCA:
            primorial *= prime
        primorial *= 2
        first = (1 << 1024) // primorial * primorial + pow(65537, 12345, primorial)
        second = (3 << 1023) // primorial * primorial + pow(65537, 777, primorial)
        assert _jwks.has_roca_fingerprint(first * second)
        assert refusal(token(), public_jwk(n=number(first * second))) == "weak_key"

    def test_spares_sound_keys(self) -> None:
        """A generated key is not suspected."""
        assert not _jwks.has_roca_fingerprint(private_key().public_key().public_numbers().n)


class Source:
    """A key server whose answers and clock the test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.fetches = 0
        self.fail = False
        self.keys: list[Mapping[str, Any]] = [public_jwk()]

    def fetch(self) -> Mapping[str, Any]:
        """Answer, or fail."""
        self.fetches += 1
        if self.fail:
            raise ConnectionError("down")
        return {"keys": list(self.keys)}

    def cached(self) -> CachedJwks:
        """Return a cache over this source."""
        ticking = Clock(wall_ns=lambda: NOW * 10**9, monotonic_ns=lambda: int(self.now_s * 1e9))
        return CachedJwks(
            self.fetch, ttl_seconds=300, min_interval_seconds=5, max_stale_seconds=3600, clock=ticking
        )


class TestCachedJwks:
    """The key set is fetched when needed, not more often, and outlives short failures."""

    def test_serves_from_memory_until_the_time_to_live(self) -> None:
        """One fetch in five minutes."""
        source = Source()
        jwks = source.cached()
        for source.now_s in (0, 1, 299.9):
            jwks()
        assert source.fetches == 1
        source.now_s = 300
        jwks()
        assert source.fetches == 2

    def test_unknown_key_id_refreshes(self) -> None:
        """A key published a moment ago verifies at once."""
        source = Source()
        source.keys = []
        jwks = source.cached()
        jwks()
        source.keys, source.now_s = [public_jwk()], 6
        checker = Verifier(jwks, issuer=ISSUER, audience=AUDIENCE, clock=clock())
        assert checker.verify(token()).sub == "app"
        assert source.fetches == 2

    def test_invented_key_ids_do_not_hammer_the_issuer(self) -> None:
        """However many unknown ids arrive, two fetches are at least five seconds apart."""
        source = Source()
        checker = Verifier(source.cached(), issuer=ISSUER, audience=AUDIENCE, clock=clock())
        for _ in range(50):
            with pytest.raises(TokenError, match="unknown_key"):
                checker.verify(token(header={**HEADER, "kid": "invented"}))
        assert source.fetches == 1

    def test_old_set_serves_while_fetching_fails(self) -> None:
        """An issuer that is down for a while stops nobody."""
        source = Source()
        jwks = source.cached()
        first = jwks()
        source.fail, source.now_s = True, 3599
        assert jwks() is first
        assert jwks() is first
        assert source.fetches == 2

    def test_old_set_is_not_trusted_for_ever(self) -> None:
        """A key that may have been withdrawn an hour ago no longer verifies."""
        source = Source()
        jwks = source.cached()
        jwks()
        source.fail, source.now_s = True, 3600
        for _ in range(2):
            with pytest.raises(ConnectionError):
                jwks()

    def test_tells_whether_a_set_may_serve(self) -> None:
        """Not before the first fetch, then as long as it is trusted; asking fetches nothing."""
        source = Source()
        jwks = source.cached()
        assert (jwks.usable(), source.fetches) == (False, 0)
        jwks()
        for source.now_s, usable in ((0, True), (300, True), (3599, True), (3600, False)):
            assert jwks.usable() is usable
        assert source.fetches == 1

    def test_failure_without_a_set_is_the_callers(self) -> None:
        """The caller learns why, and the next call tries again."""
        source = Source()
        source.fail = True
        jwks = source.cached()
        with pytest.raises(ConnectionError):
            jwks()
        source.fail = False
        assert jwks() == {"keys": source.keys}

    def test_another_thread_has_just_fetched(self) -> None:
        """Who waited for the lock takes what the other fetched."""
        source = Source()
        jwks = source.cached()
        assert jwks() is jwks._update()
        assert source.fetches == 1


class TestImports:
    """joserfc is needed for verifying only."""

    def test_importing_loads_no_cryptography(self) -> None:
        """`healthobs.tokens` can be imported where the extra is not installed."""
        code = "import sys, healthobs.tokens; print({'joserfc', 'cryptography'} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "set()\n"

    def test_missing_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The remedy is in the message."""
        monkeypatch.setitem(sys.modules, "joserfc.jwk", None)
        with pytest.raises(ConfigurationError, match=r"healthobs\[tokens\]"):
            verifier().verify(token())


_GOOD = token()
