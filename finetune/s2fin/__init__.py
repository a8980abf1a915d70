"""S2Fin: a spatial-spectral-frequency interactive network for pixel classification from two modalities, few labels.

After H. Liu et al., arXiv 2510.04628. The abstract names the modules and what they exchange; sizes, layers and formulas
are not public to us. Everything below the level of the abstract is our own design, so no score here is the paper's.

Symbols: b batch, c bands of the passive image (HSI or MSI), h w = patch rows and columns, n = h w pixels as tokens,
    d width, e scan heads, k modalities with a spatial branch. Spectra are orthonormal, frequencies in units of Nyquist.
"""

from finetune.s2fin.attention import AttentionConfig
from finetune.s2fin.enhancement import EnhancementConfig
from finetune.s2fin.network import SIZES, Prediction, S2Fin, S2FinConfig, classification_loss
from finetune.s2fin.resonance import ResonanceConfig

__all__ = [
    "SIZES",
    "AttentionConfig",
    "EnhancementConfig",
    "Prediction",
    "ResonanceConfig",
    "S2Fin",
    "S2FinConfig",
    "classification_loss",
]
