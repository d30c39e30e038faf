"""The modality of a medical image, in the spellings that data sets use."""

from __future__ import annotations

import re

SPELLINGS = {
    "MRI": re.compile(r"(?i)mri?\b|magnetic resonance"),  # "MR (Mag-netic Resonance Imaging)"
    "CT": re.compile(r"(?i)ct\b|computed tomography"),  # "CT(Computed Tomography)"; not "OCT (Optical ...)"
    "X-ray": re.compile(r"(?i)x-?\s?ray\b|radiograph"),  # "X-Ray"
}


def modality(text: str) -> str:
    """MRI, CT or X-ray from any known spelling; any other text unchanged."""
    return next((name for name, spelling in SPELLINGS.items() if spelling.match(text.strip())), text.strip())
