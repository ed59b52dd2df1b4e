"""Every architecture through the whole engine: read, lifted, cut by half, proven, trained, written and read again."""
