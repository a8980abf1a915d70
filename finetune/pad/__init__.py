"""PAD: phase-amplitude decoupling for SAR-RGB segmentation (arXiv 2504.19136, doi:10.1109/TGRS.2025.3621902).

"Equation" in this package is one of that paper; "release" is its public code, whose checkpoints `convert` reads.
"""
