"""Dense tasks with an Alliance encoder: one or several images, a head on their features, a class for every pixel."""
