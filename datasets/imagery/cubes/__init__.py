"""Cubes: arrays in HDF5, netCDF, MATLAB and NumPy files, read as scenes of one or many bands."""

from datasets.imagery.cubes.arrays import SUFFIXES, open_arrays
from datasets.imagery.cubes.scene import CubeOptions, CubeScene, describe_cube

__all__ = ["SUFFIXES", "CubeOptions", "CubeScene", "describe_cube", "open_arrays"]
