"""Linear probes: labels of images as directions in z (Sec. 5.3, Appendix A.2).

Imports no network.
"""

from diffae_jax.probes.fitting import check_labels, components, fit, is_known, kind_of, score
from diffae_jax.probes.linear import ClassProbe, Probe, Score, describe, directions, find, from_json

__all__ = [
    "ClassProbe",
    "Probe",
    "Score",
    "check_labels",
    "components",
    "describe",
    "directions",
    "find",
    "fit",
    "from_json",
    "is_known",
    "kind_of",
    "score",
]
