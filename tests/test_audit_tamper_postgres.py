"""Every way to change a trail in PostgreSQL behind its back is noticed and named; retention works there as on SQLite."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.postgres import Postgres

from healthobs.audit import Verification, governance, keys, merkle, open_trail, verification
from healthobs.audit.checkpoint import Signer, Verifier
from healthobs.audit.command import main
from healthobs.audit.postgres import GUARDS, PostgresStore, prepare
from healthobs.audit.retention import RecordClass, Retention, approve
from healthobs.exceptions import AuditError
from healthobs.testing import SteppingClock

pytestmark = pytest.mark.server
ENTRIES = 6
MADE = "CREATE TRIGGER e AFTER INSERT ON sequenced FOR EACH ROW EXECUTE FUNCTION no_gap()"
ZEROS = "decode(repeat('00', 32), 'hex')"


class Pristine(NamedTuple):
    """A healthy log: its database, its vkey and its checkpoints by size."""

    server: Postgres
    database: str
    vkey: str
    notes: tuple[str, ...]

    def copy(self) -> str:
        """Return the owner's URL of a copy to be damaged."""
        name = f"{self.database}_copy"
        url = self.server.url("postgres")
        self.server.execute(
            url, f"DROP DATABASE IF EXISTS {name}", f"CREATE DATABASE {name} TEMPLATE {self.database}"
        )
        return self.server.url(name)

    def damage(self, url: str, *statements: str) -> None:
        """Run statements as the owner without guards, and put the guards back, as a careful attacker would."""
        tables = {guard[0] for guard in GUARDS.values()}
        self.server.execute(
            url,
            "SET search_path = healthobs_audit",
            *(f"ALTER TABLE {table} DISABLE TRIGGER ALL" for table in tables),
            *statements,
            *(f"ALTER TABLE {table} ENABLE TRIGGER ALL" for table in tables),
        )

    def verify(self, url: str, *known: str, vkey: str | None = None) -> Verification:
        with contextlib.closing(PostgresStore(url).connect(read_only=True)) as connection:
            return verification.verify(connection, Verifier(vkey or self.vkey), known)


@pytest.fixture(scope="module")
def pristine(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Pristine:
    database = postgres.database()
    trail = open_trail(postgres.url(database), service="s", key_file=tmp_path_factory.mktemp("keys") / "key")
    notes = [trail.checkpoint().note]
    for number in range(ENTRIES):
        trail.append({"action": "patient.read", "details": {"number": number}})
        notes.append(trail.checkpoint().note)
    trail.close()
    return Pristine(postgres, database, trail.vkey, tuple(notes))


#: What is done, the first bad entry, and a word of what is said.
ATTACKS = {
    "edit": ("UPDATE entry SET body = replace(body, '\"ok\"', '\"no\"') WHERE idx = 2", 2, "body is not"),
    "erase": ("UPDATE entry SET body = NULL WHERE idx = 5", 5, "body is missing"),
    "edit a leaf": (f"UPDATE entry SET leaf = {ZEROS} WHERE idx = 3", 3, "body is not"),
    "delete": ("DELETE FROM entry WHERE idx = 3", 3, "is missing"),
    "delete the first": ("DELETE FROM entry WHERE idx = 0", 0, "is missing"),
    "truncate": ("DELETE FROM entry WHERE idx >= 4", 4, "missing from here on; 5 were signed"),
    "empty": ("TRUNCATE entry", 0, "missing from here on"),
    "renumber": ("UPDATE entry SET idx = 9 WHERE idx = 2", 2, "is missing"),
    "reorder": (
        "UPDATE entry SET leaf = other.leaf, body = other.body FROM entry AS other WHERE other.idx = 5 - entry.idx",
        0, "entries 0 to 0 are not",
    ),
    "replace": (
        ("INSERT INTO entry SELECT 1, leaf, body FROM entry WHERE idx = 4 "
        "ON CONFLICT (idx) DO UPDATE SET leaf = excluded.leaf, body = excluded.body"),
        1, "entries 1 to 1 are not",
    ),
    "append unsigned": ("INSERT INTO entry SELECT 6, leaf, body FROM entry WHERE idx = 0", 6, "never signed"),
    "forge a checkpoint": (
        "UPDATE checkpoint SET note = replace(note, chr(10) || '4' || chr(10), chr(10) || '5' || chr(10)) WHERE size = 4",
        None, "checkpoint of size 4 does not verify",
    ),
    "delete the checkpoints": ("DELETE FROM checkpoint", 0, "no checkpoint at all"),
    "swap the key": ("UPDATE log SET vkey = 'x'", None, "not the expected key"),
    "surplus tile": (f"INSERT INTO tile VALUES (1, 7, 1, {ZEROS})", None, "belong to no entries"),
}  # fmt: skip


class TestTamper:
    """The verdict on tampered logs."""

    def test_healthy(self, pristine: Pristine) -> None:
        """A copy that nobody touched verifies, with every checkpoint that ever was, guards off and on again too."""
        url = pristine.copy()
        pristine.damage(url)
        assert pristine.verify(url, *pristine.notes).problems == ()

    @pytest.mark.parametrize("attack", ATTACKS)
    def test_attack_is_named(self, pristine: Pristine, attack: str) -> None:
        """Each change is found, and its first bad entry named."""
        statement, index, word = ATTACKS[attack]
        url = pristine.copy()
        pristine.damage(url, statement)
        verdict = pristine.verify(url)
        assert (verdict.ok, verdict.first_bad_index) == (False, index)
        assert word in " ".join(map(str, verdict.problems))

    def test_wide_tile_is_named(self, postgres: Postgres, tmp_path: Path) -> None:
        """A kept tile that is wider than its entries make it would stop the log at the next boundary."""
        trail = open_trail(postgres.url(postgres.database()), service="s", key_file=tmp_path / "key")
        trail.sequence([(trail.new_key(), trail.encode({"action": "a"})) for _ in range(300)])
        assert trail.verify().problems == ()
        with trail.changing() as connection, connection.writing():
            connection.execute(f"INSERT INTO tile SELECT level, n, width + 1, hashes || {ZEROS} FROM tile")
        said = [problem.what for problem in trail.verify().problems]
        assert said == ["the kept tile 0 of level 1 is not that of the entries"]
        trail.close()

    @pytest.mark.parametrize("guard", GUARDS)
    def test_guard_is_missed(self, pristine: Pristine, guard: str) -> None:
        """A guard that was dropped is named, and one that was only switched off."""
        for change in ("DROP TRIGGER {0} ON {1}", "ALTER TABLE {1} DISABLE TRIGGER {0}"):
            url = pristine.copy()
            statement = change.format(guard, f"healthobs_audit.{GUARDS[guard][0]}")
            pristine.server.execute(url, statement)
            said = [str(problem) for problem in pristine.verify(url).problems]
            assert said == [f"the guard {guard} is missing or altered"]

    @pytest.mark.parametrize(
        ("table", "change"),
        [
            ("entry", "ALTER TABLE entry ADD COLUMN more TEXT"),
            ("entry", "ALTER TABLE entry ALTER idx TYPE NUMERIC"),
            ("entry", "ALTER TABLE entry ALTER leaf DROP NOT NULL"),
            ("entry", "ALTER TABLE entry DROP CONSTRAINT entry_pkey"),
            ("entry", "ALTER TABLE entry ALTER body SET DEFAULT ''"),
            ("entry", "ALTER TABLE entry SET UNLOGGED"),
            ("entry", "ALTER TABLE entry ENABLE ROW LEVEL SECURITY"),
            ("entry", "CREATE TABLE more () INHERITS (entry)"),
            ("checkpoint", "ALTER TABLE checkpoint ADD CHECK (size < 9)"),
            ("tile", "ALTER TABLE tile ALTER hashes TYPE TEXT USING ''"),
            ("sequenced", 'ALTER TABLE sequenced ALTER id TYPE TEXT COLLATE "POSIX"'),
            ("log", "ALTER TABLE log ALTER vkey TYPE VARCHAR(999)"),
            ("sequenced", "DROP TABLE sequenced"),
        ],
    )
    def test_table_is_altered(self, pristine: Pristine, table: str, change: str) -> None:
        """A table whose columns, types or constraints are not those that were made is named."""
        url = pristine.copy()
        if "TYPE TEXT USING" in change:
            change = f"ALTER TABLE tile DROP CONSTRAINT tile_check; {change}"
        pristine.server.execute(url, "SET search_path = healthobs_audit", *change.split("; "))
        said = [problem.what for problem in pristine.verify(url).problems]
        assert [what for what in said if what.startswith("the table")] == [f"the table {table} is altered"]

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ("CREATE UNIQUE INDEX stop ON entry (length(leaf)) WHERE idx > 6", "index stop"),
            ("CREATE INDEX f ON checkpoint (note)", "index f"),
            ("CREATE RULE r AS ON UPDATE TO log DO ALSO NOTHING", "rule r"),
            ("CREATE POLICY p ON entry USING (false)", "policy p"),
            (f"{MADE}; UPDATE pg_trigger SET tgisinternal = true WHERE tgname = 'e'", "trigger e"),
        ],
    )
    def test_foreign_is_named(self, pristine: Pristine, change: str, named: str) -> None:
        """What somebody put on the tables is counted and named, one that the server is made to call its own too."""
        url = pristine.copy()
        pristine.server.execute(url, "SET search_path = healthobs_audit", *change.split("; "))
        said = [problem.what for problem in pristine.verify(url).problems]
        assert said == [f"what is not the log's is in its database (1): {named}"]

    def test_foreign_key(self, pristine: Pristine) -> None:
        """So are the triggers of a foreign key that refers to the log: it would keep a pruning from being carried out."""
        url = pristine.copy()
        pristine.server.execute(url, "CREATE TABLE other (idx bigint REFERENCES healthobs_audit.entry)")
        (said,) = [problem.what for problem in pristine.verify(url).problems]
        assert said.startswith(
            "what is not the log's is in its database (2): trigger RI_ConstraintTrigger_a_"
        )

    def test_view_in_the_place_of_a_table(self, pristine: Pristine) -> None:
        """A view that shows what the table held is no table."""
        url = pristine.copy()
        pristine.server.execute(
            url,
            "SET search_path = healthobs_audit",
            "ALTER TABLE entry RENAME TO old",
            "CREATE VIEW entry AS SELECT * FROM old",
        )
        assert "the table entry is altered" in [problem.what for problem in pristine.verify(url).problems]

    def test_function_of_a_guard_that_reads_elsewhere(self, pristine: Pristine) -> None:
        """A guard whose function was told where to look names up could find another `max` than the server's."""
        url = pristine.copy()
        pristine.server.execute(
            url, "ALTER FUNCTION healthobs_audit.no_gap() SET search_path = public, pg_catalog"
        )
        said = [problem.what for problem in pristine.verify(url).problems]
        assert said == ["the guard entry_no_gap is missing or altered"]

    @pytest.mark.parametrize("kind", ["TEXT", "NUMERIC", "DOUBLE PRECISION"])
    def test_numbers_of_another_type(self, pristine: Pristine, tmp_path: Path, kind: str) -> None:
        """Where numbers are none any more there is a verdict, and every other answer is one or an error of our own."""
        url = pristine.copy()
        change = (
            f"ALTER TABLE {table} ALTER {column} TYPE {kind}"
            for table, column in (("entry", "idx"), ("checkpoint", "size"))
        )
        pristine.server.execute(url, "SET search_path = healthobs_audit", *change)
        verdict = pristine.verify(url)
        assert (verdict.ok, verdict.first_bad_index) == (False, 0)
        for command in (["verify"], ["fsck"]):
            assert main([*command, url, "--vkey", pristine.vkey]) == 1
        for command in (
            ["prove", "3"],
            ["consistency", "1"],
            ["export"],
            ["export", "--tiles", str(tmp_path)],
            ["checkpoint"],
        ):
            assert main([command[0], url, *command[1:]]) in {0, 1, 2}

    def test_old_state_restored(self, pristine: Pristine) -> None:
        """An earlier state, whole and signed, is betrayed by a later checkpoint that was kept elsewhere."""
        url = pristine.copy()
        pristine.damage(url, "DELETE FROM entry WHERE idx >= 4", "DELETE FROM checkpoint WHERE size > 4")
        assert pristine.verify(url).ok, "in itself it is a healthy log of four entries"
        assert pristine.verify(url, pristine.notes[6]).first_bad_index == 4

    def test_rewritten_with_another_key(self, pristine: Pristine) -> None:
        """A log that was rewritten and signed with another key fails against the key that is known."""
        url = pristine.copy()
        impostor = Signer(Verifier(pristine.vkey).name, Ed25519PrivateKey.generate())
        note = impostor.checkpoint(0, merkle.EMPTY_ROOT).note
        pristine.damage(
            url,
            "TRUNCATE entry",
            "DELETE FROM checkpoint",
            f"INSERT INTO checkpoint VALUES (0, '{note}')",
            f"UPDATE log SET vkey = '{impostor.vkey}'",
        )
        assert pristine.verify(url, vkey=impostor.vkey).ok
        assert "not signed by the expected key" in str(pristine.verify(url).problems[0])


def test_retention(postgres: Postgres, tmp_path: Path) -> None:
    """The owner erases and prunes, every proof holds, the guards are back; the application may not; keys rotate."""
    role = "app_retention"
    postgres.execute(postgres.url("postgres"), f"CREATE ROLE {role} LOGIN")
    owner, application = (postgres.url(database := postgres.database()), postgres.url(database, role))
    prepare(owner, role)
    time = SteppingClock(datetime(2020, 1, 1, tzinfo=UTC))
    key_file = tmp_path / "key"
    trail = open_trail(application, service="s", key_file=key_file, clock=time.clock())
    for number in range(300):
        trail.append({"action": "a.b", "subject": f"s-{number % 2}"})
    kept = trail.checkpoint()
    approvers = [Signer(f"approver.example/{name}", Ed25519PrivateKey.generate()) for name in "ab"]
    time.advance(2 * 86_400)
    short = [RecordClass("short", 1)]
    with pytest.raises(AuditError):
        Retention(trail, short, clock=time.clock()).erase(actor="a", reason="r", entries=(290, 291))
    trail.close()
    keys.rotate(key_file)
    trail = open_trail(owner, service="s", key_file=key_file, clock=time.clock())
    assert trail.read(action=governance.KEY).total == 1
    retention = Retention(trail, short, clock=time.clock())
    retention.appoint(retention.appointment([one.vkey for one in approvers]), actor="dpo-1", reason="r")
    assert retention.erase(actor="a", reason="r", entries=(297, 299)) == (297, 298, 299)
    order = approve(approve(retention.order(256), approvers[0]), approvers[1])
    assert retention.prune(order, actor="a", reason="r") == 256
    verdict = trail.verify(known=(kept.note,))
    assert verdict.problems == ()
    assert (verdict.first, verdict.erased) == (256, 5)  # the refused order was on record, and is carried out
    assert trail.accepted_changes() == ()
    assert trail.inclusion_proof(297).verify(trail.checkpoint().root)
    trail.close()


def test_command(pristine: Pristine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`healthobs audit` takes a database URL wherever it takes a file, with the same exit codes."""
    url = pristine.copy()
    for arguments in (
        ["verify", url],
        ["fsck", url],
        ["prove", url, "1"],
        ["export", url, "--tiles", str(tmp_path)],
    ):
        assert main(arguments) == 0
    assert main(["fsck", str(tmp_path), "--vkey", pristine.vkey]) == 0
    pristine.damage(url, ATTACKS["edit"][0])
    capsys.readouterr()
    assert main(["verify", url, "--vkey", pristine.vkey]) == 1
    assert "first bad entry 2" in capsys.readouterr().out
    assert main(["verify", url.replace("/t", "/none")]) == 2
