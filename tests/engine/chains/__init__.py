"""Whole chains of steps: every pair that the rules allow, and the long ones."""
