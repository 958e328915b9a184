"""Claims with their measurements, one folder each; run by launch.py."""
