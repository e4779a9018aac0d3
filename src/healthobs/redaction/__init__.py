"""Redaction: the one choke point that every signal passes on its way out.

Order of decision for a value: its type (`Phi`, what is no primitive), then its key (allow-list, deny by
words), then its content (a staged scan for identifiers). Whatever goes wrong inside yields a mark, never
the value, and never an exception. Basis: 45 CFR 164.514(b)(2) (the eighteen identifiers), 164.502(b)
(minimum necessary), PCI DSS 4.0 requirements 3.3 and 3.4.

Marks: ``[PHI:<kind>]`` for a pattern, ``[PHI:key]`` for a denied key, ``[PHI:type]`` for a value that is no
primitive, ``[PHI:strict]`` for unknown text in strict mode, ``[PHI:length]`` for what is too long to scan,
``[PHI:error]`` for a fault of the redactor. A mark never holds a part of the value.

Limits: see `healthobs.redaction.scan`: free text can name a person without any pattern. Use strict mode, or keep
free text out of telemetry.
"""

from healthobs.redaction.failures import ExceptionFacts, describe_exception
from healthobs.redaction.phi import PHI, Phi
from healthobs.redaction.redactor import Redactor

__all__ = ["PHI", "ExceptionFacts", "Phi", "Redactor", "describe_exception"]
