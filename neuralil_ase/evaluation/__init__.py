"""Labelled data, and how far a potential is from them: metrics, calibration, reports. Needs no optimiser."""
