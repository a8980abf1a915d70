"""Images from files: scenes of any format, their grids and labels, and the maps that are written."""
