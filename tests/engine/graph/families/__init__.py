"""What the operators of each channel rule are given when networks are drawn at random."""
