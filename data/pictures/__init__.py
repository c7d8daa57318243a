"""What is measured of pictures, and what must not be trained on."""
