"""Writes each service's OpenAPI files from its routes, or checks that the committed ones agree.

`python -m reference_services.openapi --write` makes `openapi.yaml` (3.1, canonical) and `openapi-3.0.yaml`
beside each service; `--check` exits 1 and names the files that differ. Needs PyYAML (a development tool).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reference_services._kit import ServiceSettings, openapi
from reference_services._kit.openapi30 import to_30
from reference_services.services import SERVICES, Service


def describe(service: Service) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of a service, built in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        environ = {"HEALTHOBS_DATA_DIR": folder, "HEALTHOBS_CONTROL_INTERVAL_SECONDS": "0"}
        settings = ServiceSettings.from_env(service.info, environ)
        app = service.create_app(settings)
        kit = app.extensions["reference_services"]
        try:
            return openapi.document(kit.info, kit.operations)
        finally:
            kit.close()


def files(service: Service) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Give each committed file of a service and the document it should hold."""
    folder = Path(__file__).parent / service.prefix
    document = describe(service)
    yield folder / "openapi.yaml", document
    yield folder / "openapi-3.0.yaml", to_30(document)


def render(document: dict[str, Any]) -> str:
    """Return `document` as YAML with members in their own order."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, _data: Any) -> bool:
            return True

    return str(yaml.dump(document, Dumper=Plain, sort_keys=False, allow_unicode=True, width=100))


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m reference_services.openapi", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="write the files")
    action.add_argument("--check", action="store_true", help="fail when a file differs")
    parser.add_argument("service", nargs="*", help="only these services")
    options = parser.parse_args(argv)
    stale: list[str] = []
    for name in options.service or SERVICES:
        for path, document in files(SERVICES[name]):
            text = render(document)
            if options.write:
                path.write_text(text, encoding="utf-8")
            elif not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(f"{path.parent.name}/{path.name}")
    for name in stale:
        sys.stderr.write(
            f"{name} differs from the routes; run python -m reference_services.openapi --write\n"
        )
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
