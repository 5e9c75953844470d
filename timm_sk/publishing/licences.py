"""Licences that weights can be published under."""

import re

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

LICENCE_RULE = "an SPDX identifier, such as apache-2.0, or another identifier of the Hub's list of licences"

# Identifiers of the Hub's list that SPDX lacks, without `unknown` and `other`, which state no licence.
_OF_HUB = """
    apple-amlr apple-ascl bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m bsd c-uda cc
    creativeml-openrail-m deepfloyd-if-license fair-noncommercial-research-license gemma gfdl gpl grok2-community
    h-research intel-research lgpl lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 odbl odc-by openmdw-1.0
    openrail openrail++ pddl
"""


def is_licence(text: object) -> bool:
    """Whether a text is a single identifier of a licence; upper and lower case are the same."""
    if not isinstance(text, str) or not re.fullmatch(r'[\w.+-]+', text) or text.lower().startswith('licenseref-'):
        return False
    try:
        return text.lower() in _OF_HUB.split() or bool(canonicalize_license_expression(text))
    except InvalidLicenseExpression:
        return False
