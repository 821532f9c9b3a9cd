"""Turns labelled frames into training samples: subtracts known parts from the labels, and computes arrays once."""
