"""A network that labels whole images: an Alliance encoder, a read-out, and a small head."""
