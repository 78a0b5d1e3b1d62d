"""What the names in files mean, one family at a time."""
