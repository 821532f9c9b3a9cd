"""From labelled frames to what networks learn from: what is taken from the labels, and arrays computed once."""
