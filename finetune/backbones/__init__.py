"""What turns images into features: ConvNeXt V2, and an Alliance encoder in several modes."""
