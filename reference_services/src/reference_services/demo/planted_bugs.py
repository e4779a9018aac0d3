"""Five bugs for a fuzzer to find, planted in synthetic-phi-service from outside (`reference_services.demo.planted`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from reference_services.demo.patching import Planter, replace


def _bug_crash() -> None:
    from reference_services.synthetic_phi import api

    def generate(right: Any, seed: int, index: int) -> Any:
        return right(seed // (index % 2), index)

    replace(api, "generate_single_patient", generate)


def _bug_wrong_schema() -> None:
    from reference_services.synthetic_phi import api

    def generate(right: Any, seed: int, index: int) -> Any:
        return {**cast("dict[str, Any]", right(seed, index)), "created_at": None}

    replace(api, "generate_single_patient", generate)


def _bug_undocumented_status() -> None:
    from reference_services._kit import Problem
    from reference_services.synthetic_phi import api

    def generate(_right: Any, _seed: int, _index: int) -> Any:
        raise Problem(418, "teapot", "I am a teapot.")

    replace(api, "generate_single_patient", generate)


def _bug_wrong_content_type() -> None:
    from reference_services._kit.routes import Operation

    def response(right: Any, operation: Any, result: Any) -> Any:
        made = right(operation, result)
        if operation.rule == "/synthetic-patient":
            made.headers["Content-Type"] = "text/html"
        return made

    replace(Operation, "response", response)


def _bug_accepts_anything() -> None:
    from reference_services._kit import Problem, validation
    from reference_services.synthetic_phi.models import BatchRequest

    def json_body(right: Any, request: Any, model: Any) -> Any:
        try:
            return right(request, model)
        except Problem:
            if model is not BatchRequest:
                raise
            return BatchRequest(count=1)

    replace(validation, "json_body", json_body)


BUGS: Mapping[str, Planter] = {
    "bug-crash": _bug_crash,
    "bug-wrong-schema": _bug_wrong_schema,
    "bug-undocumented-status": _bug_undocumented_status,
    "bug-wrong-content-type": _bug_wrong_content_type,
    "bug-accepts-anything": _bug_accepts_anything,
}
