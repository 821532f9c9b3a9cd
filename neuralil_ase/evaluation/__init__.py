"""Labelled data, and comparison of a potential with them: metrics, calibration, reports. Needs no optimiser."""
